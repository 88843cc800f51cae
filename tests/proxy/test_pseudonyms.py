from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from meters.schema import requests
from proxy.features import peek
from proxy.pseudonyms import LONGEST, Pseudonyms
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Config, Joulegate, config_of
from tests.waiting import until

SECRET = b"a secret of this installation, 32 bytes or more"
USER = "canary-user-91c2b7@example.org"
ON, OFF = "sk-on-0123456789abcdef", "sk-off-0123456789abcdef"


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_a_user_has_one_pseudonym_in_a_team_however_the_body_writes_it(a: str, b: str) -> None:
    names = Pseudonyms(SECRET)
    found = names.of("t", raw(a))
    assert found == names.of("t", msgspec.Raw(json.dumps(a, ensure_ascii=False).encode()))
    assert found is not None
    assert len(found) == 18
    assert (found == names.of("t", raw(b))) is (a == b)
    assert found != names.of("other team", raw(a))
    assert found != Pseudonyms(SECRET[::-1]).of("t", raw(a))


@pytest.mark.parametrize("value", [None, "", 7, ["a"], {"a": 1}, "x" * LONGEST])
def test_what_is_no_name_has_none(value: object) -> None:
    assert Pseudonyms(SECRET).of("t", raw(value)) is None


def test_a_body_without_a_user_has_none() -> None:
    assert Pseudonyms(SECRET).of("t", peek(b'{"model":"m"}').user) is None


@pytest.fixture
def running(joulegate: Callable[[Config], Joulegate], tmp_path: Path) -> Iterator[Joulegate]:
    with Upstream(answers.like_an_engine(), pages=answers.engine_pages()) as upstream:
        config = config_of(upstream.base_url)
        config |= {
            "state_dir": str(tmp_path / "state"),
            "teams": {
                "on": {"keys": [ON], "user_groups": True},
                "off": {"keys": [OFF]},
            },
        }
        yield joulegate(config)


def test_only_where_a_team_wants_it_a_pseudonym_and_nowhere_a_name_is_kept(
    running: Joulegate, tmp_path: Path
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "user": USER}
    for key in (ON, ON, OFF):
        assert running.post(body, headers={"authorization": f"Bearer {key}"}).status == 200
    no_user = {name: value for name, value in body.items() if name != "user"}
    assert running.post(no_user, headers={"authorization": f"Bearer {ON}"}).status == 200

    assert running.proxy is not None
    proxy = running.proxy

    def rows() -> list[tuple[str, str | None]]:
        if proxy.ledger is None:
            return []
        with proxy.ledger.database.read() as connection:
            query = select(requests.c.team, requests.c.user_hash).order_by(requests.c.start_s)
            return [(team, user) for team, user in connection.execute(query)]

    until(lambda: len(rows()) == 4)
    (_, first), (_, second), off, nobody = rows()
    assert first is not None
    assert first == second
    assert off == ("off", None)
    assert nobody == ("on", None)
    kept = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        assert USER.encode() not in path.read_bytes(), path
    assert USER not in running.get("/metrics", authorization=f"Bearer {ON}").body.decode()


def test_no_receipt_says_who_it_was(running: Joulegate) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "user": USER}
    headers = {"authorization": f"Bearer {ON}"}
    request_id = running.post(body, headers=headers).header("x-request-id")
    record = running.record(request_id)
    assert record.user_hash is not None
    receipt = running.get(f"/v1/usage/{request_id}", authorization=f"Bearer {ON}")
    assert receipt.status == 200
    assert record.user_hash not in receipt.body.decode()
