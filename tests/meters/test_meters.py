"""Every kind of meter, run through the same checks; and what is special about the small ones."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meters.checks import CHECKS
from meters.dcgm import DcgmMeter, PrometheusMeter
from meters.kinds import KINDS, open_meter
from meters.none import NoMeter
from meters.nvml import NvmlMeter
from meters.power import PowerIntegrator
from meters.rapl import RaplMeter
from meters.replay import (
    BadRecording,
    RecordingHeader,
    RecordingLine,
    ReplayMeter,
    read_recording,
    write_recording,
)
from meters.types import Evidence, Meter, MeterUnavailable, Reading
from tests.fakes.http import Handler, HttpServer
from tests.fakes.nvml import FakeGpu, FakeNvml, driver


class Ticking:
    """A clock that goes on by a little with each look."""

    def __init__(self, step_s: float = 0.01) -> None:
        self.now_s, self.step_s = 50.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


class Exporter:
    """A real HTTP server with a metrics page that tests write."""

    def __init__(self) -> None:
        self.page, self.status = "", 200
        exporter = self

        class Asked(Handler):
            def get(self) -> None:
                self.answer(exporter.status, exporter.page.encode())

        self.server = HttpServer(Asked)
        self.url = f"{self.server.url}/metrics"


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    exporter = Exporter()
    yield exporter
    exporter.server.close()


DCGM_PAGE = """
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a"} 250.5
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a",GPU_I_ID="3"} 5000000
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a",GPU_I_ID="4"} 5000000
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="1",UUID="GPU-b"} 7000500
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="2",UUID="GPU-c"} 9223372036854775794
"""


def powercap(root: Path, *zones: tuple[str, str, int]) -> Path:
    for folder, name, energy_uj in zones:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "name").write_text(f"{name}\n")
        (root / folder / "energy_uj").write_text(f"{energy_uj}\n")
        (root / folder / "max_energy_range_uj").write_text("262143328850\n")
    return root


def recording(path: Path) -> Path:
    lines = [RecordingLine(at_s=n / 10, energy_j={"gpu0": 30.0 * n}) for n in range(100)]
    header = RecordingHeader(device="Fake", driver="1", date="2026-11-21", resolution_j=0.001)
    write_recording(path, header, lines)
    return path


MAKERS: dict[str, Callable[[Path, Exporter], Meter]] = {
    "nvml": lambda _, __: NvmlMeter(clock=Ticking(), sleep=lambda _: None),
    "rapl": lambda path, _: RaplMeter(powercap(path, ("intel-rapl:0", "package-0", 5_000_000))),
    "dcgm": lambda _, exporter: DcgmMeter(exporter.url),
    "prometheus": lambda _, exporter: PrometheusMeter(
        exporter.url, series="DCGM_FI_DEV_POWER_USAGE", unit="W"
    ),
    "replay": lambda path, _: ReplayMeter(recording(path / "r.jsonl"), clock=Ticking()),
    "zeus": lambda _, __: open_meter("zeus"),
}


class FakeZeusGpus:
    """What zeus.device.get_gpus() gives, as far as ZeusMeter uses it."""

    def __init__(self, counters: bool = True) -> None:
        self.counters, self.energy_mj = counters, 1_000

    def __len__(self) -> int:
        return 2

    def supports_get_total_energy_consumption(self, index: int) -> bool:
        return self.counters

    def get_total_energy_consumption(self, index: int) -> int:
        self.energy_mj += 1
        return self.energy_mj

    def get_instant_power_usage(self, index: int) -> int:
        return 150_000


@pytest.fixture
def zeus(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    package, device = types.ModuleType("zeus"), types.ModuleType("zeus.device")
    device.get_gpus = FakeZeusGpus  # type: ignore[attr-defined]
    package.device = device  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zeus", package)
    monkeypatch.setitem(sys.modules, "zeus.device", device)
    return device


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: str(c.__name__))
@pytest.mark.parametrize("kind", MAKERS)
def test_every_meter_keeps_the_contract(
    kind: str,
    check: Callable[[Meter], None],
    tmp_path: Path,
    exporter: Exporter,
    zeus: types.ModuleType,
) -> None:
    exporter.page = DCGM_PAGE
    ticking = Ticking()
    with driver(FakeNvml([FakeGpu(), FakeGpu(uuid="GPU-1", energy="zero")], ticking)):
        check(MAKERS[kind](tmp_path, exporter))


def test_every_kind_is_either_checked_or_reads_nothing() -> None:
    # the simulated engine's meter is checked beside the engine
    assert {*MAKERS, "none", "simulated"} == set(KINDS)


class Backwards:
    name, evidence, resolution_j = "backwards", Evidence.METERED, 0.0

    def __init__(self) -> None:
        self.energy_j = 1e6

    def read(self) -> list[Reading]:
        self.energy_j -= 1
        return [Reading("gpu0", 1e6 - self.energy_j, self.energy_j)]

    def close(self) -> None:
        pass


class Milli(Backwards):
    def read(self) -> list[Reading]:
        self.energy_j += 300_000
        return [Reading("gpu0", self.energy_j / 300_000, self.energy_j)]


@pytest.mark.parametrize("broken", [Backwards, Milli])
def test_the_contract_finds_broken_meters(broken: type[Meter]) -> None:
    failed = 0
    for check in CHECKS:
        try:
            check(broken())
        except AssertionError:
            failed += 1
    assert failed


def test_none_reads_nothing_and_says_what_to_do() -> None:
    meter = NoMeter()
    assert meter.evidence is Evidence.UNKNOWN
    with pytest.raises(MeterUnavailable, match="estimates"):
        meter.read()
    with pytest.raises(MeterUnavailable, match="because"):
        open_meter("none", why="because").read()


def test_an_unknown_kind_or_option_says_what_is_known() -> None:
    with pytest.raises(MeterUnavailable, match=r"nvml, dcgm"):
        open_meter("nvlm")
    with pytest.raises(MeterUnavailable, match="cannot be imported"):
        open_meter("no_such_module:Meter")
    with pytest.raises(MeterUnavailable, match="does not take"):
        open_meter("none", colour="red")
    assert isinstance(open_meter("meters.none:NoMeter"), NoMeter)


# --- RAPL


def test_packages_and_dram_are_read_and_their_parts_are_not(tmp_path: Path) -> None:
    root = powercap(
        tmp_path,
        ("intel-rapl:0", "package-0", 5_000_000),
        ("intel-rapl:0:0", "core", 1_000_000),
        ("intel-rapl:0:1", "dram", 2_000_000),
        ("intel-rapl:1", "package-1", 7_000_000),
        ("intel-rapl:1:0", "dram", 3_000_000),
        ("intel-rapl:2", "psys", 99_000_000),
    )
    readings = {r.device: r.energy_j for r in RaplMeter(root).read()}
    assert readings == {"cpu0": 5.0, "dram0": 2.0, "cpu1": 7.0, "dram1": 3.0}


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    root = powercap(tmp_path, ("intel-rapl:0", "package-0", 262_143_000_000))
    meter = RaplMeter(root, clock=Ticking(0.1))
    before_j = meter.read()[0].energy_j
    powercap(tmp_path, ("intel-rapl:0", "package-0", 10_000_000))
    assert meter.read()[0].energy_j == pytest.approx(before_j + 0.328850 + 10.0)


def test_a_fall_that_is_no_wrap_is_a_reset(tmp_path: Path) -> None:
    root = powercap(tmp_path, ("intel-rapl:0", "package-0", 100_000_000_000))
    meter = RaplMeter(root, clock=Ticking(0.1))
    before_j = meter.read()[0].energy_j
    powercap(tmp_path, ("intel-rapl:0", "package-0", 10_000_000))
    assert meter.read()[0].energy_j < before_j


def test_no_powercap_and_no_permission_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MeterUnavailable, match="virtual machine"):
        RaplMeter(tmp_path / "none")
    with pytest.raises(MeterUnavailable, match="intel_rapl_msr"):
        RaplMeter(tmp_path)
    root = powercap(tmp_path, ("intel-rapl:0", "package-0", 1))

    def refuse(path: Path, *_: object, **__: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return path.read_bytes().decode()

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read anything, so chmod is no test
    with pytest.raises(MeterUnavailable, match="CAP_DAC_READ_SEARCH"):
        RaplMeter(root)


# --- Prometheus and DCGM


def test_dcgm_counts_a_gpu_once_however_often_it_is_listed(exporter: Exporter) -> None:
    exporter.page = DCGM_PAGE
    readings = {r.device: r.energy_j for r in DcgmMeter(exporter.url).read()}
    assert readings == {"gpu0": 5000.0, "gpu1": 7000.5}  # and a blank value is no value


def test_dcgm_gpus_are_chosen_by_index_or_uuid(exporter: Exporter) -> None:
    exporter.page = DCGM_PAGE
    assert [r.device for r in DcgmMeter(exporter.url, devices=[1]).read()] == ["gpu1"]
    assert [r.device for r in DcgmMeter(exporter.url, devices=["GPU-a"]).read()] == ["gpu0"]


@pytest.mark.parametrize(("unit", "joules"), [("kWh", 7.2e6), ("uJ", 2e-6), ("Wh", 7200.0)])
def test_any_series_has_its_unit_turned_into_joules(
    exporter: Exporter, unit: str, joules: float
) -> None:
    exporter.page = 'pdu_energy{outlet="rack 3"} 2\n'
    meter = PrometheusMeter(exporter.url, series="pdu_energy", unit=unit, label="outlet")
    assert [(r.device, r.energy_j) for r in meter.read()] == [("rack 3", pytest.approx(joules))]


def test_watts_are_integrated(exporter: Exporter) -> None:
    exporter.page = "node_power 200\n"
    meter = PrometheusMeter(
        exporter.url, series="node_power", unit="W", clock=Ticking(0.5), label=""
    )
    first = meter.read()[0]
    second = meter.read()[0]
    assert second.energy_j - first.energy_j == pytest.approx(200 * (second.at_s - first.at_s))
    assert meter.relative_error > 0


def test_an_exporter_that_fails_says_what_to_check(exporter: Exporter) -> None:
    exporter.page = "up 1\n"
    with pytest.raises(MeterUnavailable, match="has no series"):
        DcgmMeter(exporter.url).read()
    exporter.status = 404
    with pytest.raises(MeterUnavailable, match="answered 404"):
        DcgmMeter(exporter.url).read()
    with pytest.raises(MeterUnavailable, match="does not answer"):
        DcgmMeter("http://127.0.0.1:1/metrics").read()
    with pytest.raises(MeterUnavailable, match="not known; known: J"):
        PrometheusMeter(exporter.url, series="x", unit="BTU")


# --- zeus


def test_zeus_reads_millijoules(zeus: types.ModuleType) -> None:
    meter = open_meter("zeus", devices=[1])
    readings = meter.read()
    assert [r.device for r in readings] == ["gpu1"]
    assert readings[0].energy_j == pytest.approx(1.001)


def test_zeus_integrates_power_where_there_is_no_counter(zeus: types.ModuleType) -> None:
    zeus.get_gpus = lambda: FakeZeusGpus(counters=False)  # type: ignore[attr-defined]
    meter = open_meter("zeus", clock=Ticking(0.1))
    first = meter.read()[0]
    last = [meter.read()[0] for _ in range(10)][-1]
    assert last.energy_j - first.energy_j == pytest.approx(150 * (last.at_s - first.at_s))


def test_zeus_that_finds_nothing_or_is_not_installed_says_so(
    zeus: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> None:
        raise RuntimeError("no GPU")

    zeus.get_gpus = nothing  # type: ignore[attr-defined]
    with pytest.raises(MeterUnavailable, match="no GPU"):
        open_meter("zeus")
    monkeypatch.setitem(sys.modules, "zeus", None)
    monkeypatch.setitem(sys.modules, "zeus.device", None)
    with pytest.raises(MeterUnavailable, match=r"joulegate\[zeus\]"):
        open_meter("zeus")


# --- replay


def test_a_recording_is_written_and_read_back(tmp_path: Path) -> None:
    lines = [
        RecordingLine(at_s=1.0, energy_j={"gpu0": 5.0}, phase="idle"),
        RecordingLine(at_s=2.0, energy_j={"gpu0": 9.0}, engine={"generated_tokens": 3.0}),
    ]
    header = RecordingHeader(device="H100", driver="570", date="2026-11-21")
    write_recording(tmp_path / "r.jsonl", header, lines)
    again, read = read_recording(tmp_path / "r.jsonl")
    assert (again, list(read)) == (header, lines)
    counters = lines[1].counters()
    assert counters is not None
    assert (counters.at_s, counters.generated_tokens, counters.steps) == (2.0, 3.0, None)


def test_a_recording_plays_at_its_own_pace_and_ends(tmp_path: Path) -> None:
    clock = Ticking(0.0)
    meter = ReplayMeter(recording(tmp_path / "r.jsonl"), clock=clock)
    assert meter.header.evidence is Evidence.METERED  # there, and then
    assert meter.evidence is Evidence.SIMULATED  # here, and now
    first = meter.read()[0]
    clock.now_s += 5.05
    assert meter.read()[0].energy_j - first.energy_j == pytest.approx(30.0 * 50)
    clock.now_s += 5
    with pytest.raises(MeterUnavailable, match="has ended"):
        meter.read()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "line 1: not a recording's header"),
        ('{"device":"x","driver":"1","date":"d","colour":1}\n', "line 1"),
        ('{"recording":2,"device":"x","driver":"1","date":"d"}\n', "reads 1"),
        ('{"device":"x","driver":"1","date":"d"}\n{"at":1}\n', "line 2"),
        ('{"device":"x","driver":"1","date":"d"}\n{"at_s":2}\n{"at_s":1}\n', "time goes back"),
    ],
)
def test_what_is_no_recording_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(BadRecording, match=why):
        list(read_recording(path)[1])
    with pytest.raises(MeterUnavailable):
        ReplayMeter(path)


def test_integrated_power_starts_anew_after_a_gap() -> None:
    power = PowerIntegrator("gpu0", max_gap_s=5.0)
    power.add(0.0, 100.0)
    assert power.add(1.0, 300.0).energy_j == pytest.approx(201.0)
    assert power.add(7.0, 300.0).energy_j == 0.0
