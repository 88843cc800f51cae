"""Text that is not UTF-8, and nesting without end, wherever JSON is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meters.intake import WindowIntake
from proxy.__main__ import main
from proxy.sse import StreamWatcher, usage_in
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Config, Joulegate, config_of

BAD_TEXT = b'"\xff"'
TOO_DEEP = b"[" * 100_000


@pytest.mark.parametrize("bad", [BAD_TEXT, TOO_DEEP], ids=["text", "deep"])
def test_every_route_that_takes_json_says_what_is_wrong(
    joulegate: Callable[[Config], Joulegate], bad: bytes
) -> None:
    with Upstream(answers.answer(answers.CHAT)) as upstream:
        running = joulegate(config_of(upstream.base_url))
        for path, body in (
            ("/v1/chat/completions", b'{"model": %b}'),
            ("/v1/route", b'{"model": %b}'),
            ("/v1/feedback", b'{"request_id": %b}'),
            ("/v1/batches", b'{"endpoint": %b}'),
            ("/admin/teams", b'{"team": %b}'),
            ("/admin/keys", b'{"team": %b}'),
        ):
            reply = running.post(body % bad, path=path)
            assert reply.status == 400, (path, reply.body)
            assert reply.code in ("invalid_json", "invalid_type"), path


@pytest.mark.parametrize("bad", [BAD_TEXT, TOO_DEEP], ids=["text", "deep"])
def test_windows_that_cannot_be_read_are_refused(bad: bytes) -> None:
    intake = WindowIntake(
        tokens={"right": None}, known_nodes={"n"}, clock=lambda: 0.0, on_window=lambda _: None
    )
    status, said = intake.accept("right", b'{"windows": [{"node": %b}]}' % bad)
    assert status == 400
    assert b"Not a batch of windows" in said


@pytest.mark.parametrize("bad", [BAD_TEXT, TOO_DEEP], ids=["text", "deep"])
@pytest.mark.parametrize(
    "event",
    [
        b'{"type": %b}',
        b'{"type": "response.completed", "response": {"usage": %b}}',
        b'{"choices": [], "usage": {"prompt_tokens": "x", "a": %b}}',
    ],
)
def test_an_event_that_cannot_be_read_passes_as_it_came(event: bytes, bad: bytes) -> None:
    data = b"data: " + event % bad + b"\n\n"
    watcher = StreamWatcher(hide_usage=True)
    assert watcher.feed(data) + watcher.end() == data
    assert usage_in(event % bad) is None


@pytest.mark.parametrize("bad", [BAD_TEXT, TOO_DEEP], ids=["text", "deep"])
def test_a_file_of_lines_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: bytes
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\n{"id": %b}\n' % bad)
    assert main(["estimate", "--batch", str(path)]) == 1
    assert "in.jsonl, line 2: " in capsys.readouterr().err
