"""Pictures, as matplotlib figures that nothing has shown or saved yet.

- `run`: those of a run, and how its clips look.
- `raster`: spikes of one sample. `energy`: energy per layer and model. `verification`: where stages
part.
"""
