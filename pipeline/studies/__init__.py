"""Studies: what many runs say, made by any number of processes and machines.

- `engine`: points, their storage, and a worker that makes their runs.
- `sweep_file`, `sweeps`: a sampler searches settings of a recipe.
- `grid`, `tables`: runs of recipes, seeds and folds as a table beside published numbers.
- `pareto_front`: what accuracy costs on the chip.

Their names are at hand in `knarr.pipeline`.
"""
