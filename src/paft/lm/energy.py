"""Energy as the machine counts it: RAPL packages of the CPU (Linux powercap), and an NVIDIA GPU's own counter.

Counters belong to the whole package or board: what else runs there is in the figure.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
EVERY = 10.0
"""Seconds between readings at least: a package's counter starts anew after some minutes, which must not go unseen."""


class EnergyMeter:
    """Joules since the meter was made; `poll` is called now and then while the work goes on.

    gpu: UUID of the NVIDIA GPU in use, as torch gives it. Needs a readable `energy_uj` (root on most systems) or `pynvml`.
    packages: count the CPUs; of several processes of a machine one does.
    """

    def __init__(self, gpu: str | None = None, powercap: Path = POWERCAP, packages: bool = True):
        found = [*(_packages(powercap) if packages else []), *([_board(gpu)] if gpu else [])]
        self._counters = [counter for counter in found if counter is not None and counter[0]() is not None]
        self._last = [read() for read, _ in self._counters]
        self._total, self._read_at = 0.0, time.monotonic()

    def poll(self) -> None:
        """Read the counters if they were not read for a while."""
        if self._counters and time.monotonic() - self._read_at > EVERY:
            self._read()

    @property
    def joules(self) -> float | None:
        """What was used so far; None where the machine does not tell."""
        self._read()
        return self._total if self._counters else None

    def _read(self) -> None:
        self._read_at = time.monotonic()
        for n, (read, most) in enumerate(self._counters):
            now, before = read(), self._last[n]
            if now is not None and before is not None:
                self._total += now - before + (most if now < before else 0.0)
                self._last[n] = now


Counter = tuple[Callable[[], float | None], float]
"""Reads joules; and the value after which it starts anew."""


def _packages(powercap: Path) -> list[Counter]:
    found: list[Counter] = []
    for zone in sorted(powercap.glob("*:*")):
        with contextlib.suppress(OSError, ValueError):
            # parts of a package (core, dram) are counted in it or beside it; the packages alone are the same on all CPUs
            if (zone / "name").read_text(encoding="ascii").startswith("package"):
                most = int((zone / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
                found.append((lambda file=zone / "energy_uj": _microjoules(file), most))  # type: ignore[misc]
    return found


def _microjoules(file: Path) -> float | None:
    try:
        return int(file.read_text(encoding="ascii")) / 1e6
    except (OSError, ValueError):
        return None


def _board(uuid: str) -> Counter | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, no driver, or a board that does not count
        return None
    return (lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000.0), 0.0
