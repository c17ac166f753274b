"""Write clips/: 300 clips of 12 people, one .npz each. Which of three bands of 8 sensors fires most
is the class; clips have 35 to 45 steps. It stands for recordings of your own.
"""

from pathlib import Path

import numpy as np

rng = np.random.default_rng(0)
folder = Path(__file__).parent / "clips"
folder.mkdir(exist_ok=True)
for number in range(300):
    person, label, steps = number // 25, number % 3, rng.integers(35, 46)
    rates = 0.04 + 0.06 * rng.random(24)
    rates[8 * label : 8 * label + 8] += 0.05
    np.savez_compressed(
        folder / f"{number:03d}.npz",
        inputs=rng.random((steps, 24)) < rates,
        label=("left", "middle", "right")[label],
        group=f"person {person:02d}",
    )
