"""The agent as a process of its own, and as a class, against a real HTTP proxy side."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from meters.agent import Agent
from meters.intake import WindowIntake
from meters.settings import AgentSettings
from meters.types import Evidence, Reading, Window
from tests.fakes.http import Handler, HttpServer
from tests.fakes.nvml import build_library
from tests.waiting import until

TOKEN = "agent-token"


class ProxySide:
    """The two routes agents use, over real HTTP, with an engine's metrics page beside them."""

    def __init__(self, port: int = 0, known: set[str] | None = None) -> None:
        self.kept: list[Window] = []
        self.posts = 0
        self.lose_answers = 0  # answer this many batches by hanging up, after keeping them
        self.away = False  # hang up on everything
        self.ahead_s = 0.0  # how far this side's clock is ahead
        self.gains = 0.0  # seconds a second, since it was made
        made_s = time.time()
        self.intake = WindowIntake(
            {TOKEN: None},
            known or {"gpu-1"},
            lambda: time.time() + self.ahead_s + self.gains * (time.time() - made_s),
            self.kept.append,
        )
        side = self

        class Asked(Handler):
            protocol_version = "HTTP/1.1"

            def parse_request(self) -> bool:
                parsed = super().parse_request()
                self.close_connection |= side.away
                return parsed and not side.away

            def post(self) -> None:
                side.posts += 1
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = side.intake.accept(self.token(), body)
                if side.lose_answers:
                    side.lose_answers -= 1
                    self.close_connection = True
                    return
                self.answer(*answer)

            def get(self) -> None:
                if self.path == "/metrics":
                    tokens = 100 * time.monotonic()
                    page = f"vllm:generation_tokens_total {tokens}\nvllm:num_requests_running 1\n"
                    self.answer(200, page.encode())
                elif self.path == "/meters/clock":
                    self.answer(*side.intake.time(self.token()))
                else:
                    self.answer(404, b"{}")

            def token(self) -> str | None:
                return (self.headers["authorization"] or "").removeprefix("Bearer ")

        server = HttpServer(Asked, port)
        self.port, self.url, self.close = server.server_port, server.url, server.close


@pytest.fixture
def side() -> Iterator[ProxySide]:
    side = ProxySide()
    yield side
    side.close()


class Fast:
    """200 W, moving at every look."""

    name, evidence, resolution_j, continuous = "test", Evidence.METERED, 0.0, True

    def read(self) -> list[Reading]:
        now_s = time.monotonic()
        return [Reading("gpu0", now_s, 200.0 * now_s)]

    def close(self) -> None:
        pass


class RunningAgent:
    def __init__(self, url: str, spool: Path, **changes: object) -> None:
        fields: dict[str, object] = {
            "node": "gpu-1",
            "proxy_url": url,
            "token": TOKEN,
            "spool_dir": str(spool),
            "host": "none",
            "window_s": 0.5,
            "poll_s": 0.05,
            "send_s": 0.05,
        }
        self.agent = Agent(AgentSettings(**{**fields, **changes}), meter=Fast)  # type: ignore[arg-type]
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.agent.run, args=(self.stopping,))
        self.thread.start()

    def __enter__(self) -> Agent:
        return self.agent

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join(15)
        assert not self.thread.is_alive()


def whole(windows: list[Window]) -> None:
    """No window twice, none missing between the first and the last, none overlapping."""
    numbers = [int(w.window_id.rpartition(":")[2]) for w in windows]
    assert sorted(numbers) == list(range(min(numbers), max(numbers) + 1))
    ordered = sorted(windows, key=lambda w: w.start_s)
    assert all(a.end_s <= b.start_s + 1e-6 for a, b in itertools.pairwise(ordered))


def test_windows_reach_the_proxy(side: ProxySide, tmp_path: Path) -> None:
    with RunningAgent(side.url, tmp_path, engine_url=f"{side.url}/metrics"):
        until(lambda: len(side.kept) >= 3)
    whole(side.kept)
    for window in side.kept:
        assert window.energy_j == pytest.approx(200 * (window.end_s - window.start_s), rel=1e-3)
        assert window.generated_tokens == pytest.approx(
            100 * (window.end_s - window.start_s), rel=0.1
        )
        assert abs(window.end_s - time.time()) < 60
    assert not list(tmp_path.glob("*.jsonl"))


def test_what_was_answered_for_but_not_heard_is_not_counted_twice(
    side: ProxySide, tmp_path: Path
) -> None:
    side.lose_answers = 2
    with RunningAgent(side.url, tmp_path):
        until(lambda: len(side.kept) >= 3)
    assert side.intake.counts["duplicate", ""] >= 1
    whole(side.kept)


def test_while_the_proxy_is_away_windows_wait_on_disk(tmp_path: Path) -> None:
    away = ProxySide()
    away.close()
    with RunningAgent(away.url, tmp_path) as agent:
        until(lambda: agent.local.status().windows >= 3)
        back = ProxySide(away.port)
        until(lambda: len(back.kept) >= 4)
    back.close()
    whole(back.kept)
    assert agent.refused == 0


def test_windows_of_a_run_that_ended_are_sent_by_the_next(tmp_path: Path) -> None:
    with RunningAgent("http://127.0.0.1:1", tmp_path) as agent:
        until(lambda: agent.local.status().windows >= 2)
    side = ProxySide()
    with RunningAgent(side.url, tmp_path):
        until(lambda: len({w.window_id.rpartition(":")[0] for w in side.kept}) == 2)
    side.close()
    assert side.intake.counts["refused", "overlapping"] == 0


def test_the_proxys_clock_is_the_one_that_counts(side: ProxySide, tmp_path: Path) -> None:
    side.ahead_s = 7200.0
    with RunningAgent(side.url, tmp_path):
        until(lambda: len(side.kept) >= 2)
    assert abs(side.kept[-1].end_s - (time.time() + 7200.0)) < 30
    # the offset was measured before anything was sent, so there was nothing to repair
    assert side.intake.counts["repaired", "clock"] == 0
    assert side.intake.nodes()["gpu-1"].clock_off_s == pytest.approx(0.0, abs=1.0)


def test_windows_of_a_long_outage_are_placed_by_the_clock_as_it_drifted(
    side: ProxySide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meters.agent.CLOCK_EVERY_S", 0.1)
    with RunningAgent(side.url, tmp_path):
        until(lambda: len(side.kept) >= 3)
        side.away = True
        time.sleep(4.0)
        side.ahead_s = -0.2  # its clock lost a second in twenty meanwhile
        side.away = False
        until(lambda: len(side.kept) >= 12)
    # by the newest offset the first of them would begin before the one that was sent last ended
    assert side.intake.counts["refused", "overlapping"] == 0
    whole(side.kept)
    assert all(w.end_s - w.start_s > 0.9 * w.energy_j / 200 for w in side.kept)


def test_a_clock_that_runs_too_fast_costs_no_windows(
    side: ProxySide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meters.agent.CLOCK_EVERY_S", 2.0)
    monkeypatch.setattr("meters.agent.CLOCK_SOON_S", 0.05, raising=False)
    side.gains = -0.08  # as a clock does that is being set right by 83,333 ppm, the most of chrony
    with RunningAgent(side.url, tmp_path):
        until(lambda: len(side.kept) >= 16)
    # one as it shows; an offset that is moved every two seconds costs one each time
    assert side.intake.counts["refused", "overlapping"] <= 1
    placed = [abs(w.end_s - w.start_s) for w in side.kept]
    assert sum(placed) == pytest.approx(side.kept[-1].end_s - side.kept[0].start_s, rel=0.1)


def test_a_wrong_token_keeps_windows_and_says_so(
    side: ProxySide, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunningAgent(side.url, tmp_path, token="wrong"):
        until(lambda: "the proxy answered 401" in caplog.text)
        until(lambda: list(tmp_path.iterdir()))
    assert side.kept == []
    assert TOKEN not in caplog.text
    assert list(tmp_path.glob("*.jsonl"))


def test_a_token_that_is_replaced_in_its_file_is_taken_up(side: ProxySide, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("before\n")
    with RunningAgent(side.url, tmp_path / "spool", token=None, token_file=str(file)) as agent:
        until(lambda: side.intake.counts["refused", "wrong_token"] or agent._said)
        assert not side.kept
        file.write_text(f"{TOKEN}\n")
        until(lambda: len(side.kept) >= 3)
    whole(side.kept)


def test_refused_windows_are_logged_and_not_sent_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    side = ProxySide(known={"another"})
    with RunningAgent(side.url, tmp_path) as agent:
        until(lambda: agent.refused >= 2)
    side.close()
    assert "unknown_node" in caplog.text
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.alone
def test_as_a_process_it_stays_small_and_ends_when_told(side: ProxySide, tmp_path: Path) -> None:
    """At most 60 MB, at most a percent of a core (measured at ten looks a second and more)."""
    library = build_library(tmp_path)
    if library is None:
        pytest.skip("no C compiler on this machine")
    config = tmp_path / "meter.yaml"
    config.write_text(
        f"node: gpu-1\nproxy_url: {side.url}\ntoken: {TOKEN}\nhost: none\nwindow_s: 0.5\n"
        f"engine_url: {side.url}/metrics\nspool_dir: {tmp_path / 'spool'}\nsend_s: 0.2\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "meter", "--config", str(config)],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "FAKE_NVML_COUNT": "8"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: len(side.kept) >= 2)
        seen = psutil.Process(process.pid)
        began_s, used = time.monotonic(), seen.cpu_times()
        before = len(side.kept)
        until(lambda: len(side.kept) >= before + 5)
        now = seen.cpu_times()
        seconds = time.monotonic() - began_s
        cpu_s = now.user + now.system - used.user - used.system
        memory_mb = seen.memory_info().rss / 1e6
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=15)
    assert process.returncode == 0, said
    assert "stopped" in said
    whole(side.kept)
    window = side.kept[-1]
    assert len(window.devices) == 8
    assert window.energy_j == pytest.approx(8 * 300 * (window.end_s - window.start_s), rel=0.1)
    print(f"rss {memory_mb:.1f} MB, cpu {cpu_s / seconds:.2%} of a core")
    assert memory_mb <= 60
    assert cpu_s / seconds <= 0.05  # twice the windows of the usual setting, on a noisy machine


def test_killed_at_any_moment_it_loses_no_window(tmp_path: Path) -> None:
    library = build_library(tmp_path)
    if library is None:
        pytest.skip("no C compiler on this machine")
    side = ProxySide()
    side.close()  # away while the first run lives
    config = tmp_path / "meter.yaml"
    config.write_text(
        f"node: gpu-1\nproxy_url: {side.url}\ntoken: {TOKEN}\nhost: none\nwindow_s: 0.5\n"
        f"spool_dir: {tmp_path / 'spool'}\nsend_s: 0.1\n"
    )
    command = [sys.executable, "-m", "proxy", "meter", "--config", str(config)]
    here = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}

    def on_disk() -> int:
        files = [*(tmp_path / "spool").glob("*.open"), *(tmp_path / "spool").glob("*.jsonl")]
        return sum(f.read_bytes().count(b"\n") for f in files)

    first = subprocess.Popen(command, env=here, stderr=subprocess.DEVNULL)
    until(lambda: on_disk() >= 3)
    first.kill()
    first.wait()
    kept_before = on_disk()
    side = ProxySide(side.port)
    second = subprocess.Popen(command, env=here, stderr=subprocess.DEVNULL)
    try:
        until(lambda: len({w.window_id.rpartition(":")[0] for w in side.kept}) == 2)
    finally:
        second.terminate()
        second.wait(15)
        side.close()
    runs = [w.window_id.rpartition(":")[0] for w in side.kept]
    assert runs.count(runs[0]) == kept_before
    whole([w for w, run in zip(side.kept, runs, strict=True) if run == runs[0]])


def test_probing_says_what_is_there_and_sends_nothing(side: ProxySide, tmp_path: Path) -> None:
    library = build_library(tmp_path)
    if library is None:
        pytest.skip("no C compiler on this machine")
    config = tmp_path / "meter.yaml"
    config.write_text(
        f"node: gpu-1\nproxy_url: {side.url}\ntoken: x\nhost: none\nwindow_s: 0.5\n"
        "engine_url: http://127.0.0.1:9/metrics\n"
    )
    command = [sys.executable, "-m", "proxy", "meter", "--config", str(config), "--probe"]
    here = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "nvml" in done.stdout
    assert "gpu0" in done.stdout
    assert "http://127.0.0.1:9/metrics does not answer" in done.stdout
    assert side.posts == 0


def test_mistakes_in_the_file_are_told_in_a_sentence(tmp_path: Path) -> None:
    config = tmp_path / "meter.yaml"
    config.write_text("node: gpu-1\nproxy_urll: http://x\n")
    command = [sys.executable, "-m", "proxy", "meter", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "line 2: unknown key 'proxy_urll'. Did you mean 'proxy_url'?" in done.stderr
