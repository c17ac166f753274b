"""Names for the types of arrays that hold what a chip holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.integer[Any]]
"""Integers of any width: what users give, and events between layers."""
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
"""Recorded spikes, 0 or 1."""
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
