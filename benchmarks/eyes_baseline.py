"""How far a linear classifier gets on the demo's eyes: a mean frame must not give the emotion away.

    .venv/bin/python benchmarks/eyes_baseline.py runs/eyes

Logistic regression on the standardised mean frame of each clip; C is chosen on the training people alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from knarr.pipeline import report
from knarr.pipeline.run_folder import read_run
from knarr.train.datasets.see.sequences import read_sequences
from knarr.train.systems.cnn import CnnEyesData


def main(run: Path) -> None:
    recipe, root = read_run(run)
    if not isinstance(recipe.data, CnnEyesData):
        sys.exit(f"{run}: not a run on eyes")
    size, steps = recipe.data.size, recipe.data.timesteps
    train = read_sequences(root, subset="training", size=size, timesteps=steps)
    test = read_sequences(root, subset="testing", size=size, timesteps=steps)
    means = [side.stacked()[0].mean(axis=1).reshape(len(side.labels), -1) for side in (train, test)]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    grid = {"logisticregression__C": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]}
    search = GridSearchCV(pipeline, grid, cv=GroupKFold(5))
    search.fit(means[0], train.labels, groups=train.subjects)
    correct = int((search.predict(means[1]) == test.labels).sum())
    accuracy = report(run)["correct"]
    print(
        f"linear on the mean frame: {correct} of {len(test.labels)}, cross-validated {search.best_score_:.1%}"
    )
    print(f"teacher {accuracy['teacher']}, student {accuracy['student']}, chip {accuracy['chip']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
