"""No prompt, answer or key is in a log, the journal, the ledger, a metric, a receipt, an error, a
trace, a webhook's message or in Redis (but for the answers that are cached there), however a
request ends."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql

from tests.fakes import answers
from tests.fakes.collector import Collector
from tests.fakes.upstream import CUT, HANG, Upstream, refusing_address
from tests.joulegate_server import ADMIN, Joulegate, Reply, Start, config_of
from tests.servers import new_database
from tests.waiting import until

PROMPT = "canary-prompt-5f2c91"
ANSWER = "canary-answer-8d77e0"
KEY = "sk-canary-key-3b9a64"
WRONG_KEY = "sk-canary-wrong-77aa12"
UPSTREAM_KEY = "sk-canary-upstream-c0ffee"
SESSION = "canary-session-e4d1aa"
SECRETS = (PROMPT, ANSWER, KEY, WRONG_KEY, UPSTREAM_KEY, ADMIN, SESSION)

NEARLY_FULL = {"per": "day", "requests": 100_000, "soft": 1e-5}  # told of at the first request
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


@pytest.fixture
def sinks() -> Iterator[tuple[Collector, Collector]]:
    """Where traces and where budgets' messages go."""
    both = Collector(), Collector()
    yield both
    for each in both:
        each.close()


@pytest.mark.parametrize("kind", ["one machine", "everything that can be connected"])
def test_secrets_are_nowhere_however_a_request_ends(
    joulegate: Start,
    upstream: Upstream,
    sinks: tuple[Collector, Collector],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    request: pytest.FixtureRequest,
) -> None:
    caplog.set_level(logging.DEBUG)
    traces, hook = sinks
    connected: dict[str, Any] = {}
    if kind != "one machine":
        postgres_url = request.getfixturevalue("postgres_url")
        connected = {
            "redis": {"url": request.getfixturevalue("redis_url"), "timeout_s": 5},
            "ledger": {"url": new_database(postgres_url, f"leaks_{time.time_ns()}")},
            "otlp": {"url": traces.url, "hold_s": 0.0},
            "budget_alerts": {"url": hook.url},
        }
    with refusing_address() as nobody:
        running = joulegate(
            config_of(
                {"url": upstream.base_url, "api_key": UPSTREAM_KEY},
                {"url": f"{nobody}/v1", "model": "gone", "api_key": UPSTREAM_KEY},
                teams={
                    "physics": {"keys": [KEY], "budgets": [NEARLY_FULL]},
                    "operators": {"keys": [{"key": ADMIN, "role": "admin"}]},
                },
                cache={"enabled": True, "sampled": True},
                retries={"attempts": 1, "health_check_s": 0, "wait_s": 0.01},
                log={"level": "debug", "requests": True},
                **connected,
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
    if connected:
        assert found_in(_sent(traces, hook)) == []
        assert proxy.drain is not None
        assert proxy.drain.wait(20.0)
        dumped = _in_postgres(connected["ledger"]["url"])
        assert b"physics" in dumped
        assert found_in(dumped) == []
        names, values = _in_redis(connected["redis"]["url"])
        assert any(b"physics" in name for name in names)
        assert found_in(b" ".join(names)) == []
        cached = [value for value in values if found_in(value)]
        # the whole answer and the stream, as said; prompts are hashed
        assert [found_in(value) for value in cached] == [[ANSWER], [ANSWER]]
    for path, text in kept.items():
        assert found_in(text) == [], path
        assert path.stat().st_mode & 0o077 == 0 or b"physics" not in text, path


def _sent(traces: Collector, hook: Collector) -> bytes:
    """All that was posted to both, once there is something."""
    traces.spans(10)
    until(lambda: hook.bodies)
    return json.dumps([each.bodies + each.headers for each in (traces, hook)]).encode()


def _in_postgres(url: str) -> bytes:
    """Every row of every table, as ``pg_dump`` writes them."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        tables = cursor.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        found = []
        for (name,) in tables:
            statement = sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(name))
            with cursor.copy(statement) as rows:
                found += [bytes(row) for row in rows]
    return b"".join(found)


def _in_redis(url: str) -> tuple[list[bytes], list[bytes]]:
    """The names of all keys, and all their values."""
    readers: dict[bytes, Callable[[redis.Redis, bytes], Any]] = {
        b"string": lambda client, name: client.get(name),
        b"hash": lambda client, name: client.hgetall(name),
        b"zset": lambda client, name: client.zrange(name, 0, -1),
        b"set": lambda client, name: client.smembers(name),
        b"list": lambda client, name: client.lrange(name, 0, -1),
        b"none": lambda client, name: b"",  # just ended
    }
    with redis.Redis.from_url(url) as client:
        names = list(client.scan_iter(count=1000))
        values = [readers[client.type(name)](client, name) for name in names]
    return names, [v if isinstance(v, bytes) else repr(v).encode() for v in values]


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
