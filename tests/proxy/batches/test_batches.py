"""Files of requests with the real OpenAI client: sent, kept, ended early, taken over."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import openai
import psycopg
import pytest
from openai.types import Batch

from proxy.batches.runner import HELD_BYTES
from tests.fakes import answers
from tests.fakes.upstream import Gate, Received, Script, Upstream
from tests.joulegate_server import KEY, TEAMS, Start, config_of
from tests.servers import new_database, start_postgres
from tests.waiting import until

OTHER = "sk-other-0123456789abcdef"
KEYS = {**TEAMS, "biology": {"keys": [OTHER]}}
CHAT = "/v1/chat/completions"


def line(custom_id: str, word: str = "hi", **more: object) -> dict[str, object]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": word}], **more}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def written(lines: Iterable[object]) -> bytes:
    return b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines)


def made(client: openai.OpenAI, lines: Iterable[object], **more: Any) -> Batch:
    file = client.files.create(file=("in.jsonl", written(lines)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch_id: str) -> Batch:
    over = ("completed", "failed", "expired", "cancelled")
    until(lambda: client.batches.retrieve(batch_id).status in over)
    return client.batches.retrieve(batch_id)


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(one) for one in client.files.content(file_id).text.splitlines()]


def echo(received: Received) -> Script:
    """Says what it was told; refuses what is bad; pretty-printed, as some engines do."""
    body: Any = received.json()
    said = body["messages"][-1]["content"]
    if said == "bad":
        return answers.failure(400, "bad_thing", "no")
    answer = json.loads(json.dumps(answers.CHAT))
    answer["choices"][0]["message"]["content"] = said
    return answers.answer(json.dumps(answer, indent=1).encode())


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(echo) as running:
        yield running


def test_a_batch_is_answered_line_by_line(joulegate: Start, upstream: Upstream) -> None:
    running = joulegate(config_of(upstream.base_url, teams=KEYS))
    client = running.client(KEY)
    lines = [line(f"one-{n}", f"word {n}") for n in range(40)] + [b"", line("broken", "bad")]
    batch = made(
        client,
        lines,
        metadata={"night": "shift"},
        extra_headers={"x-joulegate-policy": "thrifty", "x-joulegate-tags": "nightly"},
    )
    assert batch.object == "batch"
    assert batch.expires_at == batch.created_at + 86_400
    batch = ended(client, batch.id)
    assert (batch.status, batch.errors, batch.metadata) == ("completed", None, {"night": "shift"})
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (41, 40, 1)

    output = lines_of(client, batch.output_file_id)
    assert sorted(one["custom_id"] for one in output) == sorted(f"one-{n}" for n in range(40))
    for one in output:
        said = one["response"]["body"]["choices"][0]["message"]["content"]
        assert said == "word " + one["custom_id"].removeprefix("one-")
        assert (one["response"]["status_code"], one["error"]) == (200, None)
    (refused,) = lines_of(client, batch.error_file_id)
    assert refused["custom_id"] == "broken"
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["code"] == "bad_thing"

    # each is a request like any other, on the books of the key that made the batch
    records = [running.record(one["response"]["request_id"]) for one in [*output, refused]]
    assert len({record.request_id for record in records}) == 41
    assert {(record.team, record.policy) for record in records} == {("physics", "thrifty")}
    assert {record.tags for record in records} == {("nightly", "batch")}
    assert batch.model_extra is not None
    assert batch.model_extra["joulegate"]["answers_without_energy"] == 40  # nothing is known


def test_what_its_answers_are_estimated_at_is_told(joulegate: Start, upstream: Upstream) -> None:
    known = {
        "url": upstream.base_url, "gpu": "H100-SXM", "params_b": 8, "precision": "bf16",
        "zone": "DE",
    }  # fmt: skip
    running = joulegate(config_of(known, teams=KEYS))
    client = running.client(KEY)
    batch = ended(client, made(client, [line("a"), line("b"), line("c", "bad")]).id)
    told = (batch.model_extra or {})["joulegate"]
    output = lines_of(client, batch.output_file_id)
    records = [running.record(one["response"]["request_id"]) for one in output]
    energies = [record.energy_j for record in records]
    assert len(energies) == 2
    assert told["answers_without_energy"] == 0
    assert told["energy_j"] == pytest.approx(sum(e for e in energies if e is not None), rel=1e-3)
    assert told["carbon_g"] > 0
    assert told["evidence"] == sorted({record.evidence for record in records})


def test_files_come_back_as_they_were(joulegate: Start, upstream: Upstream) -> None:
    client = joulegate(config_of(upstream.base_url, teams=KEYS)).client(KEY)
    data = bytes(range(256)) * 9_000  # more than two parts
    file = client.files.create(file=("Grüße.jsonl", data), purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == ("Grüße.jsonl", len(data), "batch")
    assert client.files.content(file.id).read() == data
    assert client.files.retrieve(file.id).id == file.id
    more = [client.files.create(file=(f"{n}.jsonl", b"x"), purpose="batch") for n in range(3)]
    assert [one.id for one in client.files.list(limit=2)] == [one.id for one in more[::-1]] + [
        file.id
    ]  # page by page
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def test_no_other_team_sees_them(joulegate: Start, upstream: Upstream) -> None:
    running = joulegate(config_of(upstream.base_url, teams=KEYS))
    ours, others = running.client(KEY), running.client(OTHER)
    batch = ended(ours, made(ours, [line("a")]).id)
    for look in (
        lambda: others.batches.retrieve(batch.id),
        lambda: others.batches.cancel(batch.id),
        lambda: others.files.retrieve(batch.input_file_id),
        lambda: others.files.content(batch.output_file_id or ""),
        lambda: others.files.delete(batch.input_file_id),
    ):
        with pytest.raises(openai.NotFoundError):
            look()
    with pytest.raises(openai.BadRequestError):
        others.batches.create(
            input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
        )
    assert not list(others.files.list())
    assert not list(others.batches.list())
    assert [one.id for one in ours.batches.list()] == [batch.id]


def test_what_is_wrong_with_a_file_is_told_line_by_line(
    joulegate: Start, upstream: Upstream
) -> None:
    client = joulegate(config_of(upstream.base_url, teams=KEYS)).client(KEY)
    wrong: list[object] = [
        line("a"),
        b"{not json",
        line("a"),
        {**line("b"), "url": "/v1/embeddings"},
        {**line("c"), "method": "GET"},
        {**line("d"), "body": [1]},
        line("e", stream=True),
        b'{"custom_id": "f"}',
    ]
    batch = ended(client, made(client, wrong).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    told = {one.line: one.code for one in batch.errors.data or []}
    assert told == {
        2: "invalid_json_line",
        3: "duplicate_custom_id",
        4: "mismatched_url",
        5: "invalid_method",
        6: "invalid_body",
        7: "invalid_body",
        8: "invalid_json_line",
    }
    assert not upstream.received
    empty = ended(client, made(client, [b"", b" "]).id)
    assert empty.errors is not None
    assert [one.code for one in empty.errors.data or []] == ["empty_file"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"endpoint": "/v1/audio/speech"}, "invalid_value", "endpoint"),
        ({"completion_window": "1h"}, "invalid_value", "completion_window"),
        ({"input_file_id": "file-none"}, "invalid_value", "input_file_id"),
        ({"metadata": {"k" * 65: "v"}}, "invalid_value", "metadata"),
        ({"endpoint": 7}, "invalid_json", None),
    ],
)
def test_a_batch_that_cannot_be_made_says_why(
    joulegate: Start, upstream: Upstream, fields: dict[str, Any], code: str, param: str | None
) -> None:
    running = joulegate(config_of(upstream.base_url))
    file = running.client(KEY).files.create(file=("in.jsonl", b"{}"), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **fields}
    reply = running.post(body, path="/v1/batches")
    assert (reply.status, reply.code, reply.json()["error"]["param"]) == (400, code, param)


def test_a_file_that_is_none_says_why(joulegate: Start, upstream: Upstream) -> None:
    limits = {"max_file_bytes": 2_000, "max_team_bytes": 3_000}
    running = joulegate(config_of(upstream.base_url, batches=limits))
    client = running.client(KEY)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a", b"x"), purpose="assistants")
    with pytest.raises(openai.APIStatusError, match="max_file_bytes"):
        client.files.create(file=("a", b"x" * 2_001), purpose="batch")
    client.files.create(file=("a", b"x" * 2_000), purpose="batch")
    with pytest.raises(openai.APIStatusError, match="max_team_bytes"):
        client.files.create(file=("a", b"x" * 1_001), purpose="batch")
    assert [one.bytes for one in client.files.list()] == [2_000]
    assert running.post(b"{}", path="/v1/files").code == "invalid_form"


@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_form_may_be_cut_anywhere_on_its_way(
    joulegate: Start, upstream: Upstream, size: int
) -> None:
    running = joulegate(config_of(upstream.base_url))
    parts = [
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n',
        written([line("0")]),
        b'\r\n--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--B--\r\n',
    ]
    whole = b"".join(parts)
    connection = running.connect()
    connection.putrequest("POST", "/v1/files")
    connection.putheader("content-type", "multipart/form-data; boundary=B")
    connection.putheader("content-length", str(len(whole)))
    connection.endheaders()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for begin in range(0, len(whole), size):
        connection.send(whole[begin : begin + size])
        time.sleep(0.001)  # so that it is read before the next
    told = json.loads(connection.getresponse().read())
    connection.close()
    assert (told["filename"], told["bytes"]) == ("in.jsonl", len(parts[1]))


@pytest.mark.parametrize(
    ("headers", "field", "status"),
    [({"content-encoding": "gzip"}, "3600", 415), ({}, "\u00b2", 400), ({}, "3600", 200)],
)
def test_a_form_that_cannot_be_meant_is_no_failure_of_ours(
    joulegate: Start, upstream: Upstream, headers: dict[str, str], field: str, status: int
) -> None:
    running = joulegate(config_of(upstream.base_url))
    form = "".join(
        f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in (("purpose", "batch"), ("expires_after[seconds]", field), ("file", "{}"))
    )
    sent = {"content-type": "multipart/form-data; boundary=B", **headers}
    body = f"{form}--B--\r\n".encode()
    assert running.post(body, path="/v1/files", headers=sent).status == status


def test_without_v1_and_with_any_key_where_there_are_none(
    joulegate: Start, upstream: Upstream
) -> None:
    running = joulegate(config_of(upstream.base_url))
    client = running.client("whatever")
    batch = ended(client, made(client, [line("a")]).id)
    assert batch.status == "completed"
    assert running.get(f"/batches/{batch.id}").json() == batch.to_dict()


def test_limits_only_delay_a_batch(joulegate: Start) -> None:
    """A provider that is at its limit, then away, then there."""
    seen: dict[str, int] = {}
    lock = threading.Lock()

    def hard_pressed(received: Received) -> Script:
        body: Any = received.json()
        said = body["messages"][-1]["content"]
        with lock:
            seen[said] = seen.get(said, 0) + 1
            count = seen[said]
        if count == 1:
            return answers.failure(429, "rate_limit_exceeded", "wait", {"retry-after": "0"})
        if count == 2:
            return answers.failure(503, "overloaded", "later", {"retry-after": "0"})
        return echo(received)

    with Upstream(hard_pressed) as pressed:
        patient = {"health_check_s": 0, "attempts": 1, "cooldown_s": 0.1}
        client = joulegate(config_of(pressed.base_url, retries=patient)).client(KEY)
        batch = ended(client, made(client, [line(f"{n}", f"{n}") for n in range(3)]).id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 3


def quick_or(gate: Gate) -> Callable[[Received], Script]:
    """Answers "quick" at once, and everything else when the gate opens."""

    def answer(received: Received) -> Script:
        body: Any = received.json()
        whole = echo(received)
        return whole if body["messages"][-1]["content"] == "quick" else [gate, *whole]

    return answer


def test_a_cancelled_batch_keeps_what_was_answered(joulegate: Start) -> None:
    gate = Gate()
    with Upstream(quick_or(gate)) as upstream:
        few = {"in_flight": 2}
        client = joulegate(config_of(upstream.base_url, batches=few)).client(KEY)
        lines = [line("0", "quick"), *(line(f"{n}", "slow") for n in range(1, 30))]
        batch = made(client, lines)
        assert gate.reached.wait(10)
        cancelled = client.batches.cancel(batch.id)
        assert cancelled.status == "cancelling"
        with pytest.raises(openai.ConflictError):
            client.files.delete(batch.input_file_id)  # it is still read
        gate.open()
        batch = ended(client, batch.id)
        assert batch.status == "cancelled"
        assert batch.cancelled_at is not None
        kept = lines_of(client, batch.output_file_id)
        assert kept[0]["custom_id"] == "0"
        assert len(upstream.received) < 30
        assert len(kept) == len(upstream.received)
        done = ended(client, made(client, [line("0", "quick")]).id)
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(done.id)


def test_no_team_waits_for_another_teams_batches_to_end(joulegate: Start) -> None:
    gate = Gate()
    with Upstream(quick_or(gate)) as upstream:
        running = joulegate(config_of(upstream.base_url, teams=KEYS))
        many, other = running.client(KEY), running.client(OTHER)
        waiting = [made(many, [line("0", "slow")]) for _ in range(10)]
        assert gate.reached.wait(10)
        assert ended(other, made(other, [line("0", "quick")]).id).status == "completed"
        gate.open()
        assert {ended(many, batch.id).status for batch in waiting} == {"completed"}


def test_few_long_lines_are_in_memory_at_once(joulegate: Start) -> None:
    gate = Gate()
    with Upstream(lambda received: [gate, *echo(received)]) as upstream:
        client = joulegate(config_of(upstream.base_url)).client(KEY)
        long = 3_000_000  # characters
        batch = made(client, [line(f"{n}", "word " * (long // 5)) for n in range(5)])
        upstream.wait_for(HELD_BYTES // long)
        with pytest.raises(AssertionError):
            upstream.wait_for(HELD_BYTES // long + 1, within_s=0.5)
        gate.open()
        batch = ended(client, batch.id)
        assert batch.request_counts is not None
        assert batch.request_counts.completed == 5


def test_what_was_not_sent_in_its_day_is_said(joulegate: Start, upstream: Upstream) -> None:
    dirty = {"max_intensity_g_per_kwh": 1.0}
    running = joulegate(config_of(upstream.base_url, batches=dirty))
    client = running.client(KEY)
    batch = made(client, [line("a"), line("b")])
    assert running.proxy is not None
    until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    assert not upstream.received  # it waits for a cleaner grid
    with running.proxy.kept.write() as connection:
        connection.exec_driver_sql("UPDATE batches SET expires_s = 1, owner = NULL")
    batch = ended(client, batch.id)
    assert (batch.status, batch.output_file_id) == ("expired", None)
    told = lines_of(client, batch.error_file_id)
    assert [(one["custom_id"], one["response"]) for one in told] == [("a", None), ("b", None)]
    assert {one["error"]["code"] for one in told} == {"batch_expired"}


def test_it_waits_for_a_cleaner_grid_only_so_long(joulegate: Start, upstream: Upstream) -> None:
    dirty = {"max_intensity_g_per_kwh": 1.0, "wait_s": 0.5}
    client = joulegate(config_of(upstream.base_url, batches=dirty)).client(KEY)
    began_s = time.monotonic()
    assert ended(client, made(client, [line("a")]).id).status == "completed"
    assert time.monotonic() - began_s >= 0.5


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_another_process_goes_on_where_one_died(
    joulegate_process: Start, request: pytest.FixtureRequest, kind: str, tmp_path: Any
) -> None:
    gate = Gate()
    count, lock = [0], threading.Lock()

    def sometimes(received: Received) -> Script:
        with lock:
            count[0] += 1
            wait = count[0] > 10
        return [gate, *echo(received)] if wait else echo(received)

    shared: dict[str, Any] = {"state_dir": str(tmp_path / "shared")}
    if kind == "postgresql":
        url = new_database(request.getfixturevalue("postgres_url"), "batches")
        shared = {"ledger": {"url": url}}
    with Upstream(sometimes) as upstream:
        config = config_of(upstream.base_url, teams=KEYS, batches={"in_flight": 4}, **shared)
        first = joulegate_process(config)
        lines = [line(f"{n}", f"word {n}") for n in range(30)]
        batch = made(first.client(KEY), lines)
        assert gate.reached.wait(20)

        def completed() -> int:
            counts = first.client(KEY).batches.retrieve(batch.id).request_counts
            return counts.completed if counts else 0

        until(lambda: completed() >= 5)  # some are kept
        assert first.process is not None
        first.process.send_signal(signal.SIGTERM if kind == "sqlite" else signal.SIGKILL)
        first.process.wait(30)
        if kind == "postgresql":  # a killed process owns it until its time is up
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("UPDATE batches SET owned_until_s = 0")
        gate.open()
        second = joulegate_process(config)
        client = second.client(KEY)
        batch = ended(client, batch.id)
        assert batch.status == "completed"
        output = lines_of(client, batch.output_file_id)
    assert sorted(int(one["custom_id"]) for one in output) == list(range(30))
    assert len(upstream.received) < 50  # what was kept was not sent again


def test_a_database_that_dies_loses_no_answer(joulegate: Start) -> None:
    gate = Gate()
    with Upstream(lambda received: [gate, *echo(received)]) as upstream:
        postgres = start_postgres()
        try:
            shared = {"ledger": {"url": postgres.url}, "batches": {"in_flight": 12}}
            client = joulegate(config_of(upstream.base_url, **shared)).client(KEY)
            batch = made(client, [line(f"{n}", f"word {n}") for n in range(12)])
            upstream.wait_for(12)
            postgres.kill()
            gate.open()  # all are answered while nobody can keep it
            with pytest.raises(openai.APIStatusError, match="does not answer") as refused:
                client.batches.retrieve(batch.id)
            assert refused.value.status_code == 503
            postgres.start()
            batch = ended(client, batch.id)
            output = lines_of(client, batch.output_file_id)
        finally:
            postgres.close()
    assert batch.status == "completed"
    assert sorted(int(one["custom_id"]) for one in output) == list(range(12))
    assert len(upstream.received) == 12


def test_the_requests_of_a_revoked_key_are_not_sent(joulegate: Start) -> None:
    gate = Gate()

    def slow(received: Received) -> Script:
        return [gate, *echo(received)]

    with Upstream(quick_or(gate)) as upstream:
        running = joulegate(config_of(upstream.base_url, teams=KEYS, batches={"in_flight": 1}))
        client = running.client(KEY)
        batch = made(client, [line(f"{n}") for n in range(5)])
        assert gate.reached.wait(10)
        assert running.proxy is not None
        kept = {h: c for h, c in running.proxy.keys._callers.items() if c.team != "physics"}
        running.proxy.keys.replace(kept)
        gate.open()
        kept_in = running.proxy.batches.batches

        def row() -> Any:
            return kept_in.get("physics", batch.id)

        until(lambda: row()["status"] == "failed")
        assert len(upstream.received) == 1
        assert row()["completed"] == 1
        assert row()["error_file_id"] is not None
        (told,) = json.loads(row()["errors"])["data"]
        assert told["code"] == "invalid_api_key"
        assert "no longer good" in told["message"]
