"""Labels are read by their values, and refused alike by whatever takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from knarr.hw_sim import ChipError, check_labels


@pytest.mark.parametrize("dtype", ["i1", ">i8", "u8", "f4", ">f8", "?"])
def test_whole_numbers_of_any_type_are_classes(dtype: str) -> None:
    found = check_labels(np.array([0, 1, 1], dtype=dtype), 3, 2)
    assert found.dtype == np.int64
    assert found.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3], r"1\.\.3, the network has classes 0\.\.2; they begin at 1, subtract 1"),
        ([1.0, 2.0, 3.0], "they begin at 1, subtract 1"),
        ([0, 1, 7], r"0\.\.7, the network has classes 0\.\.2; give those of this network"),
        (np.eye(3), r"numpy.argmax\(labels, axis=1\)"),
        (np.eye(3, dtype=bool), r"numpy.argmax\(labels, axis=1\)"),
        ([[0], [1], [2]], r"shape \(3, 1\) for 3 samples"),
        ([0, 1], r"shape \(2,\) for 3 samples"),
        ([0, 0.5, 1], "0.5 is no class"),
        ([0, np.nan, 1], "NaN or infinity"),
        ([0, -1, 1], r"-1\.\.1; number the classes"),
        (np.array([0, 1, 2**63], dtype=np.uint64), "number the classes"),
        (["a", "b", "c"], "number the classes"),
        ([[0], [1, 2]], "labels: "),
    ],
)
def test_what_is_no_class_of_the_network_is_refused(labels: Any, message: str) -> None:
    with pytest.raises(ChipError, match=message):
        check_labels(labels, 3, 3)
