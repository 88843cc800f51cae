from __future__ import annotations

import time

import pytest

from meters.intensity import http
from meters.intensity.http import get_json
from meters.intensity.types import SourceUnavailable
from tests.fakes.grid_server import grid_server


def test_redirects_are_not_followed_so_that_tokens_stay_here() -> None:
    with grid_server(lambda asked: (302, {})) as server:
        with pytest.raises(SourceUnavailable, match="status 302"):
            get_json(f"{server.url}/a", headers={"auth-token": "secret"})
        assert [a.path for a in server.asked] == ["/a"]


def test_a_server_that_drips_is_given_up_in_time() -> None:
    with grid_server(lambda asked: (200, b" " * 5000)) as server:
        server.drip.set()
        started_s = time.monotonic()
        with pytest.raises(SourceUnavailable, match="too slowly"):
            get_json(f"{server.url}/a", timeout_s=0.3)
        assert time.monotonic() - started_s < 5


def test_too_much_is_not_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BYTES", 1000)
    with (
        grid_server(lambda asked: (200, b"1" * 5000)) as server,
        pytest.raises(SourceUnavailable, match="more than 1000 bytes"),
    ):
        get_json(f"{server.url}/a")


def test_garbage_and_absence_are_unavailable() -> None:
    with grid_server(lambda asked: (200, b"<html>")) as server:
        with pytest.raises(SourceUnavailable, match="did not answer with JSON"):
            get_json(f"{server.url}/a")
        gone = server.url
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        get_json(f"{gone}/a")
