from __future__ import annotations

from pathlib import Path

import pytest

from meters.intensity.file import File
from meters.intensity.hours import parse_hour
from meters.intensity.types import SourceUnavailable

ONE_DAY = (parse_hour("2026-01-01T00:00:00Z"), parse_hour("2026-01-02T00:00:00Z"))


def write(tmp_path: Path, text: str) -> File:
    path = tmp_path / "grid.csv"
    path.write_text(text)
    return File(str(path))


def test_gives_the_hours_of_the_zone_asked_for(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        "zone,hour,value,estimated\n"
        "DE,2026-01-01T00:00:00Z,300.5,\n"
        "DE,2026-01-01T02:00:00+01:00,310,true\n"
        "FR,2026-01-01T00:00:00Z,40,\n"
        "DE,2026-01-01T05:00:00Z,,\n"
        "DE,2026-01-02T00:00:00Z,9,\n",
    )
    found = source.fetch("DE", *ONE_DAY)
    assert [(f.hour_s - ONE_DAY[0], f.g_per_kwh, f.estimated) for f in found] == [
        (0, 300.5, False),
        (3600, 310.0, True),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("zone,time,value\n", "no column 'hour'"),
        ("zone,hour,value\nDE,2026-01-01T00:00:00,3\n", "line 2: .*no UTC offset"),
        ("zone,hour,value\nDE,2026-01-01T00:00:00Z,-1\n", "line 2: '-1' is no intensity"),
        ("zone,hour,value\nDE,2026-01-01T00:00:00Z,nan\n", "line 2"),
        ("zone,hour,value\nDE,yesterday,3\n", "line 2"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SourceUnavailable, match=says):
        write(tmp_path, text).fetch("DE", *ONE_DAY)


def test_a_missing_file_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="cannot be read"):
        File(str(tmp_path / "none.csv")).fetch("DE", *ONE_DAY)


def test_the_value_may_be_called_by_its_unit(tmp_path: Path) -> None:
    source = write(tmp_path, "zone,hour,intensity_g_per_kwh\nDE,2026-01-01T00:00:00Z,300\n")
    assert [f.g_per_kwh for f in source.fetch("DE", *ONE_DAY)] == [300.0]
