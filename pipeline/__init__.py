"""The main flow: runs and their folders, the stages of a run, evaluation, pictures, reports, many
runs.

    from knarr.pipeline import run
    result = run("eyes", "runs/eyes")

Nothing here prints. Long work reports its progress to a function that the caller gives, see
`Progress`. Names are imported when they are first asked for, since most need torch.

- `stages`: `run`, and each stage by itself. `run_folder`: a run, its files, its settings, its lock.
- `evaluation`, `evaluation_file`, `measures`: how right the networks of a run are.
- `energy_report`: what an inference costs. `run_report`: what the files of a run say.
- `published`: results of papers. `pictures`: figures. `progress`: events of long work.
- `studies`: what many runs say, shared by processes and machines.
"""

from typing import TYPE_CHECKING

from knarr.lazy import lazy_face

if TYPE_CHECKING:
    from knarr.deploy import read_deployable
    from knarr.pipeline.energy_report.amounts import amount, digits, interval, prefix_of, spelled
    from knarr.pipeline.energy_report.export import TERMS, csv_text, latex_text
    from knarr.pipeline.energy_report.facts import energy_of, outputs_of
    from knarr.pipeline.energy_report.names import short_names, short_reason
    from knarr.pipeline.energy_report.pricing import REUSE, Pricing
    from knarr.pipeline.energy_report.same_technology import over_technologies
    from knarr.pipeline.energy_report.schema import read_energy
    from knarr.pipeline.errors import RunError
    from knarr.pipeline.evaluation import SHARED, EvaluationError, Network, RunEvaluation
    from knarr.pipeline.evaluation_file import measures_json
    from knarr.pipeline.files import (
        PICTURES,
        expecting,
        json_text,
        read_json,
        write_json,
        write_picture,
    )
    from knarr.pipeline.fine_tuning import Arrays, FineTuning, finetune
    from knarr.pipeline.measures import RATES, ConfidenceInterval, Estimate, Measures
    from knarr.pipeline.pictures.energy import draw_energy
    from knarr.pipeline.pictures.raster import draw_raster
    from knarr.pipeline.pictures.verification import draw_verification
    from knarr.pipeline.progress import OnProgress, Progress, counter
    from knarr.pipeline.published import OTHER_DATA, PublishedCell
    from knarr.pipeline.run_folder import (
        BASELINE,
        ENERGY,
        GRAPH,
        NET,
        RECORDING,
        VERIFICATION,
        Run,
        open_run,
        reopen,
    )
    from knarr.pipeline.run_report import ON_TEST, divergence_text, missing_pictures, report
    from knarr.pipeline.stages import (
        chip_samples,
        deploy,
        draw_pictures,
        energy,
        evaluate,
        export,
        fork_run,
        price_run,
        run,
        simulate,
        train,
        verify,
    )
    from knarr.pipeline.studies.engine import StudyError
    from knarr.pipeline.studies.grid import load_grid
    from knarr.pipeline.studies.pareto_front import ParetoPoint, ParetoResult, pareto
    from knarr.pipeline.studies.sweeps import SweepResult, SweepTrial, sweep
    from knarr.pipeline.studies.tables import (
        Costs,
        GridTable,
        Rate,
        RowSummary,
        TableResult,
        table,
    )
    from knarr.pipeline.value_measures import ERRORS, ValueMeasures
else:
    __getattr__, __dir__ = lazy_face(__name__)

__all__ = [
    "BASELINE",
    "ENERGY",
    "ERRORS",
    "GRAPH",
    "NET",
    "ON_TEST",
    "OTHER_DATA",
    "PICTURES",
    "RATES",
    "RECORDING",
    "REUSE",
    "SHARED",
    "TERMS",
    "VERIFICATION",
    "Arrays",
    "ConfidenceInterval",
    "Costs",
    "Estimate",
    "EvaluationError",
    "FineTuning",
    "GridTable",
    "Measures",
    "Network",
    "OnProgress",
    "ParetoPoint",
    "ParetoResult",
    "Pricing",
    "Progress",
    "PublishedCell",
    "Rate",
    "RowSummary",
    "Run",
    "RunError",
    "RunEvaluation",
    "StudyError",
    "SweepResult",
    "SweepTrial",
    "TableResult",
    "ValueMeasures",
    "amount",
    "chip_samples",
    "counter",
    "csv_text",
    "deploy",
    "digits",
    "divergence_text",
    "draw_energy",
    "draw_pictures",
    "draw_raster",
    "draw_verification",
    "energy",
    "energy_of",
    "evaluate",
    "expecting",
    "export",
    "finetune",
    "fork_run",
    "interval",
    "json_text",
    "latex_text",
    "load_grid",
    "measures_json",
    "missing_pictures",
    "open_run",
    "outputs_of",
    "over_technologies",
    "pareto",
    "prefix_of",
    "price_run",
    "read_deployable",
    "read_energy",
    "read_json",
    "reopen",
    "report",
    "run",
    "short_names",
    "short_reason",
    "simulate",
    "spelled",
    "sweep",
    "table",
    "train",
    "verify",
    "write_json",
    "write_picture",
]
