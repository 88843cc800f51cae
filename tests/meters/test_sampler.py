"""The sampler: real threads, a real HTTP engine, hardware that fails and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from meters.engine_reader import EngineReader, EngineUnavailable
from meters.local import LocalMeter
from meters.sampler import Sampler, new_run
from meters.settings import MeterSettings
from meters.types import Evidence, Meter, MeterUnavailable, Reading, Window
from tests.fakes.http import Handler, HttpServer
from tests.waiting import until


class Counter:
    """200 W, updated every 20 ms, until told otherwise."""

    name, evidence, resolution_j = "test", Evidence.METERED, 0.001

    def __init__(self) -> None:
        self.failing: str | None = None
        self.zero_j = 0.0
        self.reads = 0
        self.closed = 0

    def read(self) -> list[Reading]:
        self.reads += 1
        if self.failing:
            raise MeterUnavailable(self.failing)
        now_s = time.monotonic()
        return [Reading("gpu0", now_s, self.zero_j + 200.0 * (now_s // 0.02 * 0.02))]

    def close(self) -> None:
        self.closed += 1


class Engine:
    """A metrics page that counts, over real HTTP."""

    def __init__(self) -> None:
        self.status, self.delay_s, self.began_s = 200, 0.0, time.monotonic()
        self.requests: list[str] = []
        self.started = 1.7e9
        engine = self

        class Asked(Handler):
            protocol_version = "HTTP/1.1"

            def get(self) -> None:
                engine.requests.append(self.path)
                if engine.delay_s:
                    time.sleep(engine.delay_s)
                tokens = 1000 * (time.monotonic() - engine.began_s)
                page = (
                    f"process_start_time_seconds {engine.started}\n"
                    f"vllm:generation_tokens_total {tokens}\nvllm:num_requests_running 4\n"
                )
                body = b'{"version": "0.32.0"}' if self.path == "/version" else page.encode()
                self.answer(engine.status, body)

        self.server = HttpServer(Asked)
        self.url = f"{self.server.url}/metrics"


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.server.close()


class Running:
    def __init__(self, meter: Meter, **changes: object) -> None:
        self.windows: list[Window] = []
        settings: dict[str, object] = {"node": "n1", "window_s": 0.1, **changes}
        self.sampler = Sampler(lambda: meter, **settings)  # type: ignore[arg-type]
        self.sampler.start(self.windows.append)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.sampler.stop()


def test_windows_come_by_themselves_and_carry_unix_time() -> None:
    meter = Counter()
    with Running(meter) as running:
        until(lambda: len(running.windows) >= 5)
        status = running.sampler.status()
    assert meter.closed == 1
    for window in running.windows:
        seconds = window.end_s - window.start_s
        # a busy machine looks late, and says so
        unknown_j = max(12.0, 3 * (window.resolution_j or 0.0))
        assert window.energy_j == pytest.approx(200.0 * seconds, abs=unknown_j)
        assert abs(window.end_s - time.time()) < 30
    whole_s = running.windows[-1].end_s - running.windows[0].start_s
    assert sum(w.energy_j for w in running.windows) == pytest.approx(200 * whole_s, rel=0.15)
    assert status.meter == "test"
    assert status.devices == ("gpu0",)
    assert status.problems == ()


def test_windows_follow_a_wall_clock_that_is_set_and_stay_as_long_as_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    set_by_s = 0.0
    with Running(Counter(), wall=lambda: time.time() + set_by_s) as running:
        for set_by_s in (0.0, 3600.0, -2.0):
            came = len(running.windows)
            until(lambda came=came: len(running.windows) >= came + 3)  # type: ignore[misc]
            window = running.windows[-1]
            assert abs(window.end_s - set_by_s - time.time()) < 1.5
            assert 0 < window.end_s - window.start_s < 5
    assert caplog.text.count("the clock was set by") == 2


def test_windows_whose_mapping_was_given_stay_on_it() -> None:
    with Running(Counter(), unix_offset_s=-time.monotonic(), wall=lambda: 1e9) as running:
        until(lambda: len(running.windows) >= 2)
    assert abs(running.windows[-1].end_s) < 30


@pytest.mark.alone
def test_the_counters_period_is_found_and_looked_at_accordingly() -> None:
    with Running(Counter()) as running:
        until(lambda: len(running.windows) >= 3)
        status = running.sampler.status()
    assert status.update_period_s is not None
    assert 0.015 < status.update_period_s < 0.12  # 20 ms, as seen every 25 ms or later
    assert status.poll_s <= 0.05


def test_a_meter_that_is_dear_to_read_is_read_less_often() -> None:
    class Dear(Counter):
        def read(self) -> list[Reading]:
            until_s = time.thread_time() + 0.004
            while time.thread_time() < until_s:
                pass
            return super().read()

    with Running(Dear()) as running:
        until(lambda: running.sampler.status().poll_s == 0.1)


def test_a_slow_counter_gets_windows_of_at_least_two_updates() -> None:
    class Slow(Counter):
        def read(self) -> list[Reading]:
            now_s = time.monotonic()
            return [Reading("gpu0", now_s, 200.0 * (now_s // 0.2 * 0.2))]

    with Running(Slow()) as running:
        until(lambda: len(running.windows) >= 2)
        status = running.sampler.status()
    assert status.window_s >= 0.38
    assert status.poll_s == pytest.approx(0.05, abs=0.02)
    assert running.windows[-1].end_s - running.windows[-1].start_s > 0.3


def test_windows_carry_what_the_engine_did(engine: Engine) -> None:
    reader = EngineReader(engine.url)
    with Running(Counter(), engine=reader) as running:
        until(lambda: sum(w.generated_tokens is not None for w in running.windows) >= 4)
    counted = [w for w in running.windows if w.generated_tokens is not None]
    for window in counted:
        # tokens are of the window's own interval, but for the time an answer takes
        seconds = window.end_s - window.start_s
        assert window.generated_tokens == pytest.approx(1000 * seconds, abs=150)
        assert window.running == 4.0
    tokens = sum(w.generated_tokens or 0 for w in counted)
    assert tokens == pytest.approx(1000 * sum(w.end_s - w.start_s for w in counted), rel=0.15)


def test_an_engine_that_hangs_holds_nothing_up(engine: Engine) -> None:
    engine.delay_s = 5.0
    with Running(Counter(), engine=EngineReader(engine.url, timeout_s=0.2)) as running:
        until(lambda: len(running.windows) >= 3)
        until(lambda: running.sampler.status().problems)
        problems = running.sampler.status().problems
    assert all(w.generated_tokens is None for w in running.windows)
    assert "does not answer" in problems[0]


def test_a_missed_answer_lengthens_the_window_and_loses_no_tokens(engine: Engine) -> None:
    with Running(Counter(), engine=EngineReader(engine.url), window_s=0.4) as running:
        until(lambda: len(running.windows) >= 2)
        before = len(engine.requests)
        engine.status = 500
        until(lambda: len(engine.requests) > before)
        engine.status = 200
        until(lambda: len(running.windows) >= 5)
    counted = [w for w in running.windows if w.generated_tokens is not None]
    assert counted == running.windows
    assert max(w.end_s - w.start_s for w in counted) > 0.7
    tokens = sum(w.generated_tokens or 0 for w in counted)
    seconds = sum(w.end_s - w.start_s for w in counted)
    assert tokens == pytest.approx(1000 * seconds, rel=0.1)
    assert running.sampler.status().problems == ()


def test_hardware_that_is_not_there_is_named_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meter = Counter()
    meter.failing = "no GPU here: do this"
    with Running(meter) as running:
        until(lambda: running.sampler.status().problems == ("no GPU here: do this",))
        meter.failing = None
        until(lambda: len(running.windows) >= 1)
        assert running.sampler.status().problems == ()
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["n1, meter: no GPU here: do this", "n1, meter: it is read again"]


def test_a_meter_that_fails_under_way_comes_back_without_wrong_windows() -> None:
    meter = Counter()
    with Running(meter) as running:
        until(lambda: len(running.windows) >= 2)
        meter.failing = "driver reloaded"
        until(lambda: running.sampler.status().problems)
        meter.zero_j, meter.failing = -1e6, None  # the counter began anew
        seen = len(running.windows)
        until(lambda: len(running.windows) >= seen + 2)
        status = running.sampler.status()
    assert status.dropped.get("counter_reset") == 1
    assert all(0 < w.energy_j < 200 * 5 for w in running.windows)
    assert len({w.window_id for w in running.windows}) == len(running.windows)


def test_a_board_that_vanished_beside_others_is_told_and_so_is_its_return(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Boards(Counter):
        missing: dict[str, str] = {}  # noqa: RUF012

    meter = Boards()
    with Running(meter) as running:
        until(lambda: running.windows)
        meter.missing = {"gpu1": "gpu1: The GPU has fallen off the bus."}
        until(lambda: running.sampler.status().problems)
        assert running.sampler.status().problems == ("gpu1: The GPU has fallen off the bus.",)
        meter.missing = {}
        until(lambda: not running.sampler.status().problems)
    assert "n1, devices: gpu1: The GPU has fallen off the bus." in caplog.text
    assert "n1, devices: it is read again" in caplog.text


def test_a_dropped_window_is_told_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    meter = Counter()
    meter.zero_j = 1e9
    with Running(meter) as running:
        until(lambda: running.windows)
        meter.zero_j = 0.0
        until(lambda: running.sampler.status().dropped)
    assert "n1: a window was dropped: counter_reset" in caplog.text


def test_a_callback_that_fails_stops_nothing() -> None:
    seen: list[Window] = []

    def callback(window: Window) -> None:
        seen.append(window)
        raise RuntimeError("the ledger is away")

    sampler = Sampler(Counter, node="n1", window_s=0.1)
    sampler.start(callback)
    until(lambda: len(seen) >= 3)
    assert sampler.status().callback_errors >= 2
    sampler.stop()


def test_a_counter_that_stands_still_gives_no_windows_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Still(Counter):
        def read(self) -> list[Reading]:
            return [Reading("gpu0", time.monotonic(), 7.0)]

    monkeypatch.setattr("meters.sampler.STILL_S", 0.2)
    with Running(Still()) as running:
        until(lambda: running.sampler.status().problems)
        assert "has not moved" in running.sampler.status().problems[0]
    assert running.windows == []


def test_no_two_runs_share_their_windows_names() -> None:
    assert new_run() != new_run()


def test_a_host_meter_fills_its_own_column() -> None:
    class Cpu(Counter):
        def read(self) -> list[Reading]:
            now_s = time.monotonic()
            return [Reading("cpu0", now_s, 50.0 * now_s)]

    with Running(Counter(), open_host=Cpu) as running:
        until(lambda: sum(w.host_energy_j is not None for w in running.windows) >= 2)
    window = running.windows[-1]
    assert window.host_energy_j is not None
    seconds = window.end_s - window.start_s
    assert window.host_energy_j == pytest.approx(50 * seconds, rel=0.2, abs=2)


def test_a_local_meter_starts_at_once_and_says_what_is_wrong() -> None:
    local = LocalMeter(MeterSettings(node="here", meter="none", host="none"))
    local.start(lambda _: None)
    until(lambda: local.status().problems)
    assert "estimates" in local.status().problems[0]
    local.stop()
    with pytest.raises(EngineUnavailable, match="known: auto"):
        LocalMeter(MeterSettings(engine_url="http://x/metrics", engine_dialect="vlm"))


def test_a_slow_answer_is_of_its_end(engine: Engine) -> None:
    """A busy engine makes a request wait, and then looks at its counters."""
    reader = EngineReader(engine.url)
    reader.read()
    engine.delay_s = 0.3
    seen = reader.read()
    tokens_at_s = engine.began_s + (seen.generated_tokens or 0) / 1000
    assert seen.at_s == pytest.approx(tokens_at_s, abs=0.06)
    engine.delay_s = 0.0


# --- the engine's page over HTTP


def test_the_engines_version_is_asked_once_and_again_after_a_restart(engine: Engine) -> None:
    reader = EngineReader(engine.url)
    assert reader.read().version == "0.32.0"
    assert reader.read().version == "0.32.0"
    assert engine.requests.count("/version") == 1
    engine.started += 100
    reader.read()
    assert engine.requests.count("/version") == 2
    reader.close()


def test_a_connection_the_engine_closed_is_opened_again(engine: Engine) -> None:
    reader = EngineReader(engine.url)
    reader.read()
    assert reader._connection is not None
    assert reader._connection.sock is not None
    reader._connection.sock.close()
    assert reader.read().running == 4.0


def test_an_engine_that_is_not_there_or_not_an_engine_says_what_to_check(engine: Engine) -> None:
    with pytest.raises(EngineUnavailable, match="Check that the engine runs"):
        EngineReader("http://127.0.0.1:1/metrics").read()
    engine.status = 404
    with pytest.raises(EngineUnavailable, match="answered 404"):
        EngineReader(engine.url).read()
    with pytest.raises(EngineUnavailable, match="not an HTTP URL"):
        EngineReader("ftp://x/metrics")
