"""Weights that a user brings are read where they fit, and never told to be trained again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from knarr.train import RecipeError
from knarr.train.fitting.weights import load_user_weights


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda found: found,
        lambda found: {"state_dict": found, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda found: {"model_state_dict": found, "loss": 0.5},
        lambda found: {f"module.{name}": value for name, value in found.items()},
        lambda found: {
            name: value.double() if value.is_floating_point() else value
            for name, value in found.items()
        },
    ],
)
def test_what_training_scripts_save_is_read(wrap: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(wrap(state()), path)
    loaded = network()
    load_user_weights(loaded, path)
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state()[name])
        assert value.dtype == state()[name].dtype


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "net.safetensors")
    loaded = network()
    load_user_weights(loaded, tmp_path / "net.safetensors")
    assert torch.equal(loaded.state_dict()["0.weight"], state()["0.weight"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (network(), "holds more than weights.*torch.save\\(network.state_dict"),
        ({"epoch": 3}, "holds keys epoch, no weights by name"),
        ({**state(), "2.weight": torch.zeros(1)}, "only the file has '2.weight'"),
        ({"0.weight": torch.zeros(2, 3)}, "only the network has '0.bias, 1.weight"),
        (
            {**state(), "0.weight": torch.zeros(2, 4)},
            "'0.weight' has shape \\(2, 4\\), the network's has \\(2, 3\\)",
        ),
        (
            {**state(), "0.weight": torch.full((2, 3), 0.1, dtype=torch.float64)},
            "rounds to other values",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_a_cure(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(RecipeError, match=words) as caught:
        load_user_weights(network(), path)
    assert "train again" not in str(caught.value)
    assert path.read_bytes() == before


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "text.safetensors").write_text("weights")
    for name, words in (
        ("text.pt", "no file of torch.save"),
        ("text.safetensors", "not a safetensors"),
        ("no.pt", "no such file"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_user_weights(network(), tmp_path / name)
