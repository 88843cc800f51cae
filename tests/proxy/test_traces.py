"""Traces from CSV: our own columns, Azure's, and what is wrong with a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meters.ledger import Ledger
from meters.transfer import exported
from meters.types import UsageRecord
from policies.replay import Arrival
from proxy.traces import BadTrace, read_trace, seconds


def written(folder: Path, text: str) -> str:
    path = folder / "trace.csv"
    path.write_text(text)
    return str(path)


def test_our_own_columns_in_any_order_and_time(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "team,timestamp,prompt_tokens,output_tokens,task\na,7205.5,10,20,code\nb,7200,30,40,\n",
    )
    assert read_trace(path) == [
        Arrival(0.0, 30, 40, "b", None, "auto", 2),
        Arrival(5.5, 10, 20, "a", "code", "auto", 2),
    ]


def test_azures_columns_and_time_stamps(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
    )
    first, second = read_trace(path, asked="llama")
    assert (first.prompt_tokens, first.output_tokens, first.hour) == (374, 44, 18)
    assert second.at_s == pytest.approx(4.314579, abs=1e-5)
    assert second.asked == "llama"


def test_an_export_of_the_ledger_is_a_trace_of_what_backends_answered(tmp_path: Path) -> None:
    def done(request_id: str, start_s: float, **fields: Any) -> UsageRecord:
        return UsageRecord(
            request_id=request_id,
            start_s=start_s,
            end_s=start_s + 1,
            team="a",
            model_asked="m",
            task="code",
            **fields,
        )

    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.write(
        [
            done("2", 1_700_000_010.5, prompt_tokens=30, output_tokens=40, backend="m@fp8"),
            done("1", 1_700_000_000.0, prompt_tokens=10, output_tokens=20, backend="m@fp8"),
            done("3", 1_700_000_020.0, prompt_tokens=10, output_tokens=20, cache="hit"),
            done("4", 1_700_000_030.0, status=422, outcome="refused"),
        ],
    )
    path = tmp_path / "export.jsonl"
    path.write_bytes(b"".join(exported(ledger)))
    ledger.close()
    assert read_trace(str(path)) == [
        Arrival(0.0, 10, 20, "a", "code", "m", 22),
        Arrival(10.5, 30, 40, "a", "code", "m", 22),
    ]
    assert len(read_trace(str(path), most=1, asked="auto")) == 1


def test_time_stamps_with_and_without_a_zone() -> None:
    assert seconds("1700158546.68") == 1700158546.68
    for text in (
        "2023-11-16T18:15:46.68Z",
        "2023-11-16 18:15:46.6800000",
        "2023-11-16T19:15:46.68+01:00",
    ):
        assert seconds(text) == pytest.approx(1700158546.68)
    with pytest.raises(ValueError, match=r"no time stamp|Invalid"):
        seconds("noon")


def test_only_as_many_as_asked_for_and_none_that_were_never_counted(tmp_path: Path) -> None:
    rows = "".join(f"{n},1,{n or ''}\n" for n in range(5))
    path = written(tmp_path, f"timestamp,prompt_tokens,output_tokens\n{rows}")
    assert [a.output_tokens for a in read_trace(path, most=2)] == [1, 2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "line 1: there is no column timestamp or TIMESTAMP"),
        ("timestamp,prompt_tokens,output_tokens\n1,2,x\n", "line 2"),
        ("timestamp,prompt_tokens,output_tokens\n1,2,3\n1,-2,3\n", "line 3"),
        (
            "timestamp,prompt_tokens,output_tokens\n1,2,inf\n",
            "line 2: 'inf' tokens; should be from",
        ),
        ("timestamp,prompt_tokens,output_tokens\ninf,2,3\n", "line 2: 'inf' is no time stamp"),
        ("timestamp,prompt_tokens,output_tokens\n1,2\n", "line 2: 2 columns; the header has 3"),
        ("timestamp,prompt_tokens,output_tokens\n1,2,3,,\n1,2,3,a\n", "line 3: 4 columns"),
        (f"timestamp,prompt_tokens,output_tokens\n1,2,{'9' * 200_000}\n", "field larger than"),
        ("timestamp,prompt_tokens,output_tokens\n", "no requests"),
    ],
)
def test_a_bad_trace_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadTrace, match=says):
        read_trace(written(tmp_path, text))


def test_a_mark_of_the_encoding_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufefftimestamp,prompt_tokens,output_tokens\n1,2,3\n")
    assert len(read_trace(path)) == 1


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match=r"Name a readable CSV file"):
        read_trace(str(tmp_path / "none.csv"))


def test_hours_are_of_the_teams_day_and_tags_are_read(tmp_path: Path) -> None:
    """Berlin has one o'clock twice when summer time ends, and New York is a day behind."""
    rows = (
        ("2026-10-25T00:30:00Z", "berlin", 2),
        ("2026-10-25T01:30:00Z", "berlin", 2),
        ("2026-10-25T02:30:00Z", "berlin", 3),
        ("2026-10-25T02:45:00Z", "new-york", 22),
    )
    text = "".join(f'{at},1,1,{team},"night, batch"\n' for at, team, _ in rows)
    path = written(tmp_path, "timestamp,prompt_tokens,output_tokens,team,tags\n" + text)
    zones = {"berlin": "Europe/Berlin", "new-york": "America/New_York"}
    trace = read_trace(path, zones=zones.__getitem__)
    assert [each.hour for each in trace] == [hour for *_, hour in rows]
    assert {each.tags for each in trace} == {("night", "batch")}
