"""A stream passes unchanged and is understood, however its bytes are cut."""

from __future__ import annotations

import itertools
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import sse
from proxy.sse import StreamWatcher


def event(value: object, start: bytes = b"data: ", end: bytes = b"\n\n") -> bytes:
    return start + orjson.dumps(value) + end


def chunk(text: str, finish: str | None = None, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **more}


USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
}


def stream(end: bytes = b"\n\n", start: bytes = b"data: ") -> bytes:
    return (
        event(chunk("Grüße 🌍"), start, end)
        + b": a comment"
        + end
        + event(chunk("", "stop"), start, end)
        + event(USAGE, start, end)
        + start
        + b"[DONE]"
        + end
    )


STREAMS = [
    stream(),
    stream(start=b"data:"),
    stream(end=b"\r\n\r\n"),
    stream(end=b"\r\r"),
    b"event: x\nid: 1\n" + stream(),
]


def feed(watcher: StreamWatcher, data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    out = b"".join(watcher.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    return out + watcher.end()


@pytest.mark.parametrize("named", [b"event: response.completed\n", b""], ids=["named", "typed"])
@pytest.mark.parametrize("size", [4_093, 65_536, 1_048_577, 10_000_000])
def test_the_last_event_is_known_however_long_it_is(named: bytes, size: int) -> None:
    usage = {"input_tokens": 5, "output_tokens": 4}
    response = {"output": "x" * 1_200_000, "usage": usage, "metadata": {}}
    last = {"type": "response.completed", "response": response}
    if named:  # as vLLM has it, whose types come last
        last = {"response": response, "type": "response.completed"}
    whole = named + event(last) + event({"type": "rest"})
    watcher = StreamWatcher()
    passed = b"".join(watcher.feed(whole[at : at + size]) for at in range(0, len(whole), size))
    assert passed + watcher.end() == whole
    assert watcher.finished
    assert watcher.usage is not None
    assert (watcher.usage.prompt_tokens, watcher.usage.completion_tokens) == (5, 4)


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 10_000), max_size=60))
def test_bytes_pass_unchanged_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    watcher = StreamWatcher()
    assert feed(watcher, data, cuts) == data
    assert watcher.done
    assert watcher.finished
    assert not watcher.failed
    assert watcher.usage is not None
    assert (watcher.usage.prompt_tokens, watcher.usage.completion_tokens) == (7, 3)
    assert watcher.usage.cached_tokens == 4


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 10_000), max_size=60))
def test_usage_that_was_not_asked_for_is_taken_out_and_nothing_else(
    data: bytes, cuts: list[int]
) -> None:
    watcher = StreamWatcher(hide_usage=True)
    out = feed(watcher, data, cuts)
    usage = orjson.dumps(USAGE)
    assert usage not in out
    kept = [line for line in data.splitlines() if line.strip() and usage not in line]
    assert [line for line in out.splitlines() if line.strip()] == kept
    assert watcher.usage is not None
    assert watcher.usage.completion_tokens == 3


def test_usage_on_every_chunk_is_cumulative_and_stays() -> None:
    data = b"".join(
        event(chunk(str(n), usage={"prompt_tokens": 5, "completion_tokens": n}))
        for n in range(1, 4)
    )
    watcher = StreamWatcher(hide_usage=True)
    assert watcher.feed(data) + watcher.end() == data
    assert watcher.usage is not None
    assert watcher.usage.completion_tokens == 3


def test_an_error_event_is_noticed() -> None:
    watcher = StreamWatcher()
    watcher.feed(event({"error": {"message": "no", "code": 500}}))
    assert watcher.failed
    assert not watcher.done


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    watcher = StreamWatcher(hide_usage=True)
    block = b"x" * 65536
    sent = b"data: "
    out = watcher.feed(sent)
    for _ in range(64):
        out += watcher.feed(block)
        sent += block
        assert len(watcher._event) <= sse.MAX_LINE_BYTES + len(block)
    end = b"\n\ndata: [DONE]\n\n"
    out += watcher.feed(end) + watcher.end()
    assert out == sent + end
    assert watcher.done


@pytest.mark.parametrize("line", [b"data: x\n", b": x\n", b"data:\r\n"])
def test_lines_without_a_blank_one_fill_neither_memory_nor_time(
    line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 2_000_000)
    watcher = StreamWatcher(hide_usage=True)
    block = line * 60_000
    out, blocks = b"", 1 + sse.MAX_EVENT_BYTES // len(block)
    begun_s = time.process_time()
    for _ in range(blocks):
        out += watcher.feed(block)
    assert time.process_time() - begun_s < 4  # 0.3 s; 15 s where each line copies all before it
    assert len(watcher._event) + len(watcher._data) < len(block)
    end = b"\n\ndata: [DONE]\n\n"
    out += watcher.feed(end) + watcher.end()
    assert out == block * blocks + end
    assert watcher.done


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=20))
def test_garbage_passes_and_breaks_nothing(data: bytes, cuts: list[int]) -> None:
    assert feed(StreamWatcher(), data, cuts) == data


def test_null_usage_is_not_usage() -> None:
    watcher = StreamWatcher()
    watcher.feed(event(chunk("a", usage=None)))
    assert watcher.usage is None


def test_usage_of_a_whole_answer() -> None:
    body = b'{"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    usage = sse.usage_in(body)
    assert usage is not None
    assert usage.completion_tokens == 2
    assert usage.cached_tokens is None
    assert sse.usage_in(b"not json") is None


ODD: dict[str, tuple[object, tuple[int | None, int | None] | None]] = {
    "floats": ({"prompt_tokens": 12.0, "completion_tokens": 3.0}, (12, 3)),
    "one of them negative": ({"prompt_tokens": 12, "completion_tokens": -1}, (12, None)),
    "one beyond counting": ({"prompt_tokens": 2**60, "completion_tokens": 3}, (None, 3)),
    "text": ({"prompt_tokens": "many", "output_tokens": 3}, (None, 3)),
    "true": ({"prompt_tokens": True, "completion_tokens": 3}, (None, 3)),
    "details of another kind": (
        {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": []},
        (12, 3),
    ),
    "nothing of it": ({"prompt_tokens": -1}, None),
    "a list": ([12, 3], None),
}


@pytest.mark.parametrize(("usage", "expected"), ODD.values(), ids=ODD.keys())
def test_of_an_odd_usage_what_can_be_read_is(
    usage: object, expected: tuple[int | None, int | None] | None
) -> None:
    watcher = StreamWatcher()
    watcher.feed(event(chunk("a")) + event({"choices": [], "usage": usage}))
    last = {"type": "response.completed", "response": {"usage": usage}}
    typed = StreamWatcher()
    typed.feed(event({"type": "response.created", "response": {"usage": None}}) + event(last))
    assert typed.finished
    whole = sse.usage_in(orjson.dumps({"choices": None, "usage": usage}))
    for found in (whole, watcher.usage, typed.usage):
        told = None if found is None else (found.prompt_tokens, found.completion_tokens)
        assert told == expected
        assert found is None or found.cached_tokens is None


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (b'5}],"model":"m","usage": {"prompt_tokens":7,"x":{"y":1}}}', 7),
        (b'{"usage":{"total_tokens":9,"prompt_tokens":8},"data":[1', 8),
        (b'"usage":{"prompt_tokens":1},"usage" : {"prompt_tokens":2}', 2),
        (b'"usage":{"prompt_tok', None),
        (b'"usage":null,"data":[{', None),
        (b'"usage"', None),
        (b'\xff{"usage":{"prompt_tokens":3}}\xe2', 3),
        (b"", None),
    ],
)
def test_the_usage_is_found_in_a_part_of_an_answer(part: bytes, expected: int | None) -> None:
    found = sse.usage_in_part(part)
    assert (None if found is None else found.prompt_tokens) == expected


def test_the_details_of_an_odd_usage_are_read_too() -> None:
    usage = {
        "input_tokens": 12.0,
        "output_tokens": 3,
        "input_tokens_details": {"cached_tokens": 5.0},
        "output_tokens_details": {"reasoning_tokens": -2},
    }
    found = sse.usage_in(orjson.dumps({"usage": usage}))
    assert found is not None
    assert (found.prompt_tokens, found.cached_tokens, found.reasoning_tokens) == (12, 5, None)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_one_cut_anywhere_takes_out_the_same_event(end: bytes) -> None:
    """Also between the CR and the LF that end the event which is taken out."""
    hidden = event(USAGE, end=end)
    whole = stream(end)
    for first in range(1, len(whole)):
        for second in (first, first + 1, first + len(hidden)):
            watcher = StreamWatcher(hide_usage=True)
            pieces = (whole[:first], whole[first:second], whole[second:])
            out = b"".join(map(watcher.feed, pieces)) + watcher.end()
            assert out == whole.replace(hidden, b""), (first, second)
