"""Reader of netx `.net` files, ours or not; what it does not know, it refuses by name.

The file rules find every fault; without one, the file is a network. What a manifest adds, our own attribute which netx does
not look at, is names and units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from knarr.deploy.errors import DeployError
from knarr.deploy.netx.draft import Draft, draft_of
from knarr.deploy.netx.file_rules import FILE_RULES
from knarr.deploy.netx.raw import load_raw
from knarr.deploy.violation import Violation, fatal, shown
from knarr.hw_sim import ChipError, ChipNetwork, InputCoding, Readout

MANIFEST = "knarr_manifest"
MANIFEST_FORMAT = 3
MAX_MANIFEST_BYTES = 16_000_000


@dataclass(frozen=True)
class Examined:
    """A file and what is wrong with it.

    Args:
        violations: of the file rules.
        draft: its layers as far as they can be built.
        network: None when a violation is an error.
    """

    violations: tuple[Violation, ...]
    draft: Draft
    network: ChipNetwork | None


def read_net(path: Path) -> ChipNetwork:
    """Read a CUBA netx file, ours or not.

    Raises:
        DeployError: missing, not HDF5, malformed, or holds what is not supported; names the layer and the reason.
    """
    examined = examine(path)
    if examined.network is None:
        first, *more = fatal(examined.violations)
        raise DeployError(f"{path}: {first}" + (f" and {len(more)} more" if more else ""))
    return examined.network


def examine(path: Path) -> Examined:
    """Apply every file rule, and build the network when none is broken.

    Raises:
        DeployError: missing, not HDF5, damaged, or beyond a limit of size, so that no rule can look at it.
    """
    raw = load_raw(path)
    violations: list[Violation] = []
    manifest: Mapping[str, Any] = {}
    try:
        with h5py.File(path, "r") as file:
            manifest = _read_manifest(file)
        named = _named(manifest)
    except DeployError as error:
        violations.append(Violation("manifest_fits", "file", str(error)))
        manifest, named = {}, {}
    except (ValueError, OSError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = shown(" ".join(str(error).split()))
        message = f"its manifest cannot be read ({type(error).__name__}: {reason}); write the file again with `knarr deploy`"
        violations.append(Violation("manifest_fits", "file", message))
        manifest, named = {}, {}
    draft = draft_of(raw, named)
    violations += [violation for rule in FILE_RULES for violation in rule(draft)]
    network = None
    if not fatal(violations):
        try:
            network = _network(draft, manifest)
        except ChipError as error:
            violations.append(
                Violation("network_is_consistent", "file", " ".join(str(error).split()))
            )
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = shown(" ".join(str(error).split()))
            message = f"its manifest does not fit the file ({reason}); write the file again with `knarr deploy`"
            violations.append(Violation("manifest_fits", "file", message))
    return Examined(tuple(violations), draft, network)


def _network(draft: Draft, manifest: Mapping[str, Any]) -> ChipNetwork:
    layers = tuple(found.layer for found in draft.layers if found.layer is not None)
    if draft.mended or len(layers) != len(draft.synapses):
        raise ChipError(
            f"no rule explains {list(draft.mended)} in {len(draft.synapses)} layers; this is a fault in knarr, report it"
        )
    first = draft.layers[0]
    input_shape, input_neuron = (
        (first.outgoing, first.neuron) if first.raw.kind == "input" else (_arriving(draft), None)
    )
    coding = manifest.get("input", {})
    readout = manifest.get("readout", {"kind": "spikes" if layers[-1].neuron.spikes else "voltage"})
    return ChipNetwork(
        layers,
        InputCoding(
            input_shape or (),
            int(coding.get("bits", 1)),
            input_neuron,
            float(coding.get("units", 1.0)),
            coding.get("kind", "events"),
        ),
        Readout(**readout),
        manifest.get("dt_s"),
        manifest.get("graph_hash"),
        manifest.get("lowering", {}),
    )


def _arriving(draft: Draft) -> tuple[int, ...] | None:
    """Without an input layer a file begins with a dense layer, whose width says what it takes."""
    layer = draft.synapses[0].layer
    return None if layer is None else (layer.weight_int.shape[1],)


def _read_manifest(file: h5py.File) -> Mapping[str, Any]:
    if MANIFEST not in file.attrs:
        return {}
    content = file.attrs[MANIFEST]
    if not isinstance(content, str) or len(content) > MAX_MANIFEST_BYTES:
        raise DeployError(
            f"its manifest is no text of at most {MAX_MANIFEST_BYTES:,} bytes; write the file again with `knarr deploy`"
        )
    manifest = json.loads(content)
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise DeployError(
            f"its manifest has another format than {MANIFEST_FORMAT}; write the file again with `knarr deploy`"
        )
    return manifest


def _named(manifest: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The manifest's entries by position among the layers with synapses, -1 for the input."""
    entries = {-1: manifest.get("input", {}), **dict(enumerate(manifest.get("layers", [])))}
    for entry in entries.values():
        names = [entry.get(key) for key in ("name", "neuron") if entry.get(key) is not None]
        scale = entry.get("units_per_volt")
        for name in names:
            if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
                raise DeployError(
                    f"its manifest names a layer {shown(name)}; names are short text, write the file again with `knarr deploy`"
                )
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
            raise DeployError(
                f"its manifest has {shown(scale)} units per volt; write the file again with `knarr deploy`"
            )
    return entries
