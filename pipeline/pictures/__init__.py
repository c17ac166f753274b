"""Pictures, as matplotlib figures that nothing has shown or saved yet.

- `run`: those of a run, and how its clips look.
- `raster`: spikes of one sample. `energy`: energy per layer and model. `verification`: where stages
part.
"""

from typing import Any, Final

SMALL: Final[Any] = {
    "axes.labelsize": 8,
    "axes.titlesize": 9,
    "figure.titlesize": 10,
    "legend.fontsize": 8,
}
"""Sizes of text in all figures, in points; what differs says so where it is drawn."""
