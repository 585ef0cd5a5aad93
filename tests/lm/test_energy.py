"""The counters of a machine, as its kernel lays them out in files."""

from pathlib import Path

import pytest

from paft.lm import energy
from paft.lm.energy import EnergyMeter


def zone(root: Path, name: str, title: str, microjoules: int, most: int = 1_000_000_000) -> Path:
    folder = root / name
    folder.mkdir()
    for file, text in (("name", title), ("energy_uj", str(microjoules)), ("max_energy_range_uj", str(most))):
        (folder / file).write_text(f"{text}\n", encoding="ascii")
    return folder / "energy_uj"


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    part = zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    meter = EnergyMeter(powercap=tmp_path)
    for file, value in ((first, 7_000_000), (part, 9_000_000), (second, 500_000)):
        file.write_text(str(value), encoding="ascii")
    assert meter.joules == pytest.approx(2.5)
    assert EnergyMeter(powercap=tmp_path, packages=False).joules is None


def test_a_counter_that_starts_anew_is_followed(tmp_path, monkeypatch):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 900_000_000)
    monkeypatch.setattr(energy, "EVERY", 0.0)
    meter = EnergyMeter(powercap=tmp_path)
    for value in (100_000_000, 600_000_000, 50_000_000):
        file.write_text(str(value), encoding="ascii")
        meter.poll()
    assert meter.joules == pytest.approx(200 + 500 + 450)


def test_a_machine_that_does_not_tell_gives_none(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    file.unlink()
    assert EnergyMeter(powercap=tmp_path).joules is None
    assert EnergyMeter(gpu="00000000-0000-0000-0000-000000000000", powercap=tmp_path / "none").joules is None
