"""RAPL: the energy counters of Intel (and AMD) processors, as Linux shows them in /sys/class/powercap.

Only packages are summed. Cores, uncore and the like are parts of a package; `psys` holds the packages; DRAM is counted
outside of them and left out, as many processors have no counter of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from knarr.hw_sim.energy.measurement import MeasureError

POWERCAP = Path("/sys/class/powercap")


class RaplMeter:
    """The packages of the machine as a `Meter`. Whatever else runs on them is counted too.

    Args:
        powercap: folder of the counters.

    Raises:
        MeasureError: no counters, or this user may not read them.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._zones = [zone for zone in zones if _read(zone / "name").startswith("package")]
        if not self._zones:
            raise MeasureError(
                f"RAPL: no package under {powercap}; it needs Linux on an Intel or AMD processor with the module "
                "intel_rapl_msr, and a virtual machine or container usually has none"
            )
        self.packages = tuple(_read(zone / "name") for zone in self._zones)
        self._range_uj = [_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last_uj = self._counters_uj()
        self._total_uj = 0

    def energy_j(self) -> float:
        """Joules of all packages since this meter was made; a counter that wrapped once between two calls is right."""
        now_uj = self._counters_uj()
        for now, last, span in zip(now_uj, self._last_uj, self._range_uj, strict=True):
            self._total_uj += wrapped_difference(now, last, span)
        self._last_uj = now_uj
        return self._total_uj / 1e6

    def power_w(self) -> float | None:
        """None: RAPL has no power. Reads the counters all the same, so that a long window cannot wrap twice unseen."""
        self.energy_j()
        return None

    def conditions(self) -> Mapping[str, float]:
        return {}

    def check(self) -> None:
        """Nobody can have a processor to himself: load of others shows as drift of idle power."""

    def _counters_uj(self) -> list[int]:
        return [_number(zone / "energy_uj") for zone in self._zones]


def wrapped_difference(now: int, last: int, span: int) -> int:
    """Counts from `last` to `now` of a counter that goes from `span` to 0 (the step back itself, at most 61 uJ, is lost)."""
    return now - last if now >= last else span - last + now


def _number(path: Path) -> int:
    text = _read(path)
    try:
        return int(text)
    except ValueError:
        raise MeasureError(f"RAPL: {path} holds '{text}', not a number; the counter cannot be used") from None


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except PermissionError as error:
        raise MeasureError(
            f"RAPL: {path} may be read by root only, as energy gives secrets away (CVE-2020-8694); run as root, or let "
            "root give you the right to read it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise MeasureError(f"RAPL: {path} cannot be read ({error}); the counter cannot be used") from error
