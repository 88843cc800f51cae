"""No prompt, answer or key is in a log, the journal, the ledger, a metric, a receipt or an error,
however a request ends."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import answers
from tests.fakes.upstream import CUT, HANG, Upstream, refusing_address
from tests.joulegate_server import ADMIN, Config, Joulegate, Reply, config_of

Start = Callable[[Config], Joulegate]

PROMPT = "canary-prompt-5f2c91"
ANSWER = "canary-answer-8d77e0"
KEY = "sk-canary-key-3b9a64"
WRONG_KEY = "sk-canary-wrong-77aa12"
UPSTREAM_KEY = "sk-canary-upstream-c0ffee"
SESSION = "canary-session-e4d1aa"
SECRETS = (PROMPT, ANSWER, KEY, WRONG_KEY, UPSTREAM_KEY, ADMIN, SESSION)

CHAT: dict[str, Any] = json.loads(
    json.dumps(answers.CHAT, ensure_ascii=False).replace("Grüß Gott", ANSWER)
)


def ask(**more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], **more}


def found_in(text: bytes) -> list[str]:
    return [secret for secret in SECRETS if secret.encode() in text]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


def test_secrets_are_nowhere_however_a_request_ends(
    joulegate: Start, upstream: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with refusing_address() as nobody:
        running = joulegate(
            config_of(
                {"url": upstream.base_url, "api_key": UPSTREAM_KEY},
                {"url": f"{nobody}/v1", "model": "gone", "api_key": UPSTREAM_KEY},
                teams={
                    "physics": {"keys": [KEY]},
                    "operators": {"keys": [{"key": ADMIN, "role": "admin"}]},
                },
                cache={"enabled": True, "sampled": True},
                retries={"attempts": 1, "health_check_s": 0, "wait_s": 0.01},
            )
        )
        ours = every_ending(running, upstream)
    ids = {reply.header("x-request-id") for reply in ours}
    records = [running.record(one) for one in ids if one]
    assert {"ok", "refused", "failed"} <= {record.outcome for record in records}
    assert any(record.cache == "hit" for record in records)
    running.records(lambda record: record.outcome == "cancelled")

    headers = {"authorization": f"Bearer {ADMIN}"}
    seen = [running.get("/metrics", **headers), running.get("/admin/keys", **headers)]
    seen += [running.get(f"/v1/usage/{one}", **headers) for one in ids]
    seen += [running.get("/admin/audit", **headers), running.get("/admin/teams", **headers)]
    seen += [running.get("/dashboard/physics/overview", **headers)]
    assert b"joulegate_requests_total" in seen[0].body
    for reply in seen:
        assert found_in(reply.body + repr(reply.headers).encode()) == []
    logged = caplog.text + "".join(str(r.__dict__) for r in caplog.records)
    assert found_in(logged.encode()) == []
    proxy = running.proxy
    assert proxy is not None
    assert proxy.journal.flush(5.0)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "state" in path.parts]
    kept = {path: path.read_bytes() for path in files}
    assert any(b"physics" in text for text in kept.values())  # this is where the books are
    for path, text in kept.items():
        assert found_in(text) == [], path
        assert path.stat().st_mode & 0o077 == 0 or b"physics" not in text, path


def every_ending(running: Joulegate, upstream: Upstream) -> list[Reply]:
    """Answers to requests that succeed, are cached, streamed, refused, fail, and are given up;
    errors of ours are looked at here."""
    headers = {"authorization": f"Bearer {KEY}", "x-session-id": SESSION}

    def post(body: bytes | dict[str, object], **more: str) -> Reply:
        fields = headers | {name.replace("_", "-"): value for name, value in more.items()}
        return running.post(body, headers=fields)

    events = [answers.event(e) for e in answers.chat_events([ANSWER], usage=True)]
    upstream.play(answers.answer(CHAT))
    good = [post(ask(temperature=0)), post(ask(temperature=0))]
    assert [(r.status, r.header("x-joulegate-cache")) for r in good] == [
        (200, "miss"),
        (200, "hit"),
    ], good
    upstream.play(answers.stream(events))
    good.append(post(ask(stream=True)))
    assert all(reply.status == 200 and ANSWER.encode() in reply.body for reply in good)

    raw = json.dumps(ask()).encode()
    bad = [
        post(ask(), authorization=f"Bearer {WRONG_KEY}"),
        post(ask(), x_joulegate_max_energy_j="0"),
        post(ask(), x_joulegate_policy="nothing-like-it"),
        post(raw[:-1]),
        post(raw.replace(b'"role"', b'"role')),
        post(raw[:-1] + b',"max_tokens":"' + PROMPT.encode() + b'"}'),
        post(raw[:-1] + b',"stream":{"a":"' + PROMPT.encode() + b'"}}'),
        post({"model": "tiny", "input": PROMPT}),
        post(raw[:-1] + b',"x":"\xff"}'),
        post(raw, content_encoding="gzip"),
        post(raw, content_encoding="br"),
        post(ask(model="gone")),
    ]
    upstream.play(answers.answer(ANSWER.encode(), headers={"content-type": "text/plain"}))
    bad.append(post(ask(seed=1)))
    for script in ((b"HTTP/1.1 " + ANSWER.encode() + b"\r\n\r\n",), (CUT,)):
        upstream.play(script)
        bad.append(post(ask(seed=2)))
    for reply in bad:
        assert reply.status >= 400
        assert found_in(reply.body + repr(reply.headers).encode()) == []
        assert SESSION.encode() not in reply.body

    upstream.play(answers.stream([events[0], events[1], CUT], end=False))
    broken = post(ask(stream=True, seed=3))
    assert b'"error"' in broken.body
    assert found_in(broken.body.partition(b'"error"')[2]) == []

    upstream.play(answers.stream([events[0], events[1], HANG], end=False))
    connection = running.open(ask(stream=True, seed=4), headers=headers)
    response = connection.getresponse()
    assert response.readline()
    assert isinstance(connection.sock, socket.socket | None)
    response.close()
    connection.close()
    return [*good, *bad, broken]
