"""Local accounts: made at the command line, signed in with on a page, gone within a second."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest

from proxy import passwords
from proxy.__main__ import main
from proxy.sign_in import WRONG_PASSWORDS
from tests.joulegate_server import TEAMS, Joulegate, Reply, Start, config_of
from tests.waiting import until

PASSWORD = "a long enough pass phrase"
FORM = {"content-type": "application/x-www-form-urlencoded"}
PAGE = "/dashboard/physics/overview"


def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, password: str = PASSWORD
) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(password + "\n"))
    config = str(tmp_path / "joulegate-0" / "config.yaml")
    return main(["accounts", "--config", config, *arguments])


def enter(running: Joulegate, name: str, password: str = PASSWORD) -> Reply:
    form = urlencode({"name": name, "password": password, "next": PAGE}).encode()
    return running.post(form, path="/dashboard/sign-in", headers=FORM)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that say themselves that they took less work."""
    monkeypatch.setattr(passwords, "_N", 2**10)
    monkeypatch.setattr(passwords, "_P", 1)


def cookie_of(reply: Reply) -> str:
    return (reply.header("set-cookie") or "").split(";")[0]


@pytest.mark.usefixtures("quick")
def test_an_account_is_made_signed_in_with_and_removed(
    joulegate: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running = joulegate(config_of("http://127.0.0.1:9/v1", teams=TEAMS))
    made = ("create", "ada", "--role", "lead", "--team", "physics")
    assert command(tmp_path, monkeypatch, *made) == 0
    assert command(tmp_path, monkeypatch, *made) == 1  # there is one already
    until(lambda: b'name="password"' in running.get("/dashboard/sign-in").body)
    assert enter(running, "ada", "a long enough pass phrasf").status == 401
    assert enter(running, "bob").status == 401
    entered = enter(running, "ada")
    assert (entered.status, entered.header("location")) == (303, PAGE)
    cookie = cookie_of(entered)
    assert running.get(PAGE, cookie=cookie).status == 200
    assert running.get("/dashboard/operators/overview", cookie=cookie).status == 404
    # a new password ends the sessions of the old one
    assert command(tmp_path, monkeypatch, "password", "ada", password="another pass phrase") == 0
    until(lambda: running.get(PAGE, cookie=cookie).status == 303)
    until(lambda: enter(running, "ada", "another pass phrase").status == 303)
    cookie = cookie_of(enter(running, "ada", "another pass phrase"))
    assert command(tmp_path, monkeypatch, "remove", "ada") == 0
    until(lambda: running.get(PAGE, cookie=cookie).status == 303, within_s=5.0)
    capsys.readouterr()
    config = str(tmp_path / "joulegate-0" / "config.yaml")
    assert main(["teams", "--config", config, "audit", "--json"]) == 0
    audit = capsys.readouterr().out
    for action in ("account.create", "account.password", "account.remove", "sign_in"):
        assert f'"{action}"' in audit
    assert "pass phrase" not in audit
    assert "scrypt" not in audit


@pytest.mark.usefixtures("quick")
def test_one_account_is_not_guessed_at_for_long(
    joulegate: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = joulegate(config_of("http://127.0.0.1:9/v1", teams=TEAMS))
    command(tmp_path, monkeypatch, "create", "ada", "--team", "physics")
    until(lambda: b'name="password"' in running.get("/dashboard/sign-in").body)
    for number in range(WRONG_PASSWORDS):
        assert enter(running, "ada", f"guess number {number}").status == 401
    assert enter(running, "ada", "one guess more").status == 429
    assert enter(running, "ada").status == 429  # nor is the right one looked at


@pytest.mark.parametrize(
    ("arguments", "password"),
    [
        (("create", "ada", "--team", "physics"), "too short"),
        (("create", "ada", "--role", "lead"), PASSWORD),
        (("create", "", "--team", "physics"), PASSWORD),
        (("password", "nobody"), PASSWORD),
        (("remove", "nobody"), PASSWORD),
    ],
)
def test_what_cannot_be_is_said(
    joulegate: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    password: str,
) -> None:
    joulegate(config_of("http://127.0.0.1:9/v1", teams=TEAMS))
    assert command(tmp_path, monkeypatch, *arguments, password=password) == 1


@pytest.mark.alone
def test_a_password_is_kept_as_a_salted_hash_that_takes_its_time() -> None:
    kept = passwords.hashed(PASSWORD)
    assert passwords.hashed(PASSWORD) != kept
    assert PASSWORD not in kept
    assert passwords.matches(PASSWORD, kept)
    assert not passwords.matches(PASSWORD + " ", kept)
    assert not passwords.matches(PASSWORD, None)

    def took_s(hashed: str | None) -> float:
        begun_s = time.perf_counter()
        passwords.matches(PASSWORD, hashed)
        return time.perf_counter() - begun_s

    known_s, nobodys_s = (min(took_s(hashed) for _ in range(2)) for hashed in (kept, None))
    assert 0.3 < nobodys_s / known_s < 3.0
