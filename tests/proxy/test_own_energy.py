"""Joulegate's own energy: metered where the host's counter can be read, else modelled."""

from pathlib import Path

import pytest

from meters.rapl import RaplMeter
from proxy.own_energy import LONGEST_GAP_S, OwnMeter, busy_s


class Machine:
    """A host whose counters are files, and a process on it."""

    def __init__(self, folder: Path) -> None:
        self.zone, self.stat = folder / "intel-rapl:0", folder / "stat"
        self.root = folder
        self.zone.mkdir()
        (self.zone / "name").write_text("package-0\n")
        (self.zone / "max_energy_range_uj").write_text("262143328850\n")
        self.cpu_s = self.now_s = 0.0
        self.at(0.0, 0.0, 0.0)

    def at(self, host_j: float, host_busy_s: float, cpu_s: float, passed_s: float = 10.0) -> None:
        (self.zone / "energy_uj").write_text(f"{round(host_j * 1e6)}\n")
        self.stat.write_text(f"cpu {round(host_busy_s * 100)} 0 0 99999 5 0 0 0 0 0\ncpu0 1 2\n")
        self.cpu_s = cpu_s
        self.now_s += passed_s

    def meter(self) -> OwnMeter:
        return OwnMeter(
            host=lambda: RaplMeter(self.root),
            stat=self.stat,
            cpu_s=lambda: self.cpu_s,
            clock=lambda: self.now_s,
        )


def test_it_is_our_share_of_what_the_hosts_counter_read(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter()
    meter.look()
    machine.at(200.0, 8.0, 2.0)  # a quarter of the host's work
    used = meter.look()
    assert used.metered_j == pytest.approx(50.0)
    assert used.modelled_j == 0.0


def test_where_there_is_no_counter_it_is_modelled_and_says_so(tmp_path: Path) -> None:
    meter = OwnMeter(host=lambda: RaplMeter(tmp_path / "none"), cpu_s=lambda: 3.0)
    used = meter.look()
    assert (used.energy_j, used.metered_j, used.core_w) == (15.0, 0.0, 5.0)


def test_after_a_long_pause_the_counter_may_have_wrapped_unseen(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter()
    meter.look()
    machine.at(100.0, 50.0, 4.0, passed_s=LONGEST_GAP_S + 1)
    used = meter.look()
    assert used.metered_j == 0.0
    assert used.modelled_j == pytest.approx(20.0)
    machine.at(200.0, 60.0, 5.0)  # from there on it is metered again
    assert meter.look().metered_j == pytest.approx(10.0)


def test_a_counter_that_fell_is_not_known_in_between(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter()
    meter.look()
    machine.at(200.0, 8.0, 2.0)
    assert meter.look().metered_j == pytest.approx(50.0)
    machine.at(5.0, 16.0, 4.0)
    used = meter.look()
    assert (used.metered_j, used.modelled_j) == (pytest.approx(50.0), pytest.approx(10.0))


def test_a_counter_that_can_no_longer_be_read_loses_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter()
    meter.look()
    machine.at(100.0, 10.0, 1.0)
    (machine.zone / "energy_uj").unlink()
    assert meter.look().modelled_j == pytest.approx(5.0)


def test_a_machine_without_such_a_file_is_unknown(tmp_path: Path) -> None:
    assert busy_s(tmp_path / "stat") is None
    (tmp_path / "stat").write_text("nonsense\n")
    assert busy_s(tmp_path / "stat") is None
