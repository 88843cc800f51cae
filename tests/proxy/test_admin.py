"""Keys and teams over HTTP: made, used, rotated and revoked, each role within its bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from proxy.__main__ import main
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import ADMIN, KEY, Joulegate, Reply, Start, config_of
from tests.waiting import until

LEAD = "sk-lead-0123456789abcdef"
TEAMS = {
    "physics": {"keys": [KEY, {"key": LEAD, "role": "lead"}]},
    "operators": {"keys": [{"key": ADMIN, "role": "admin"}]},
}


@pytest.fixture
def running(joulegate: Start) -> Joulegate:
    return joulegate(config_of("http://127.0.0.1:9/v1", teams=TEAMS))


def post(running: Joulegate, path: str, body: dict[str, Any], key: str = ADMIN) -> Reply:
    return running.post(body, path=path, headers={"x-api-key": key})


def status_with(running: Joulegate, key: str) -> int:
    return running.get("/v1/models", x_api_key=key).status


def test_a_key_is_made_used_and_revoked(running: Joulegate) -> None:
    made = post(running, "/admin/keys", {"team": "physics", "name": "ci"})
    assert made.status == 201
    key, key_id = made.json()["key"], made.json()["key_id"]
    assert status_with(running, key) == 200  # at once, where it was made
    listed = running.get("/admin/keys?team=physics", x_api_key=ADMIN).body
    assert key_id.encode() in listed
    assert key.encode() not in listed  # shown once
    reply = running.get(f"/admin/keys/{key_id}", method="DELETE", x_api_key=ADMIN)
    assert reply.status == 200
    assert status_with(running, key) == 401
    actions = [e["action"] for e in running.get("/admin/audit", x_api_key=ADMIN).json()["data"]]
    assert actions == ["key.revoke", "key.create"]


def test_a_rotated_key_overlaps_with_its_successor(running: Joulegate) -> None:
    old = post(running, "/admin/keys", {"team": "physics"}).json()
    path = f"/admin/keys/{old['key_id']}/rotate"
    new = post(running, path, {"overlap_s": 600}).json()
    until(lambda: status_with(running, new["key"]) == 200)
    assert status_with(running, old["key"]) == 200
    last = post(running, f"/admin/keys/{new['key_id']}/rotate", {"overlap_s": 0}).json()
    until(lambda: status_with(running, new["key"]) == 401)
    assert status_with(running, last["key"]) == 200


def test_a_team_is_made_and_its_key_belongs_to_it(running: Joulegate) -> None:
    assert post(running, "/admin/teams", {"team": "biology"}).status == 201
    assert post(running, "/admin/teams", {"team": "biology"}).status == 400
    key = post(running, "/admin/keys", {"team": "biology", "role": "lead"}).json()["key"]
    until(lambda: status_with(running, key) == 200)
    teams = running.get("/admin/teams", x_api_key=key).json()["data"]
    assert [team["team"] for team in teams] == ["biology"]


def test_a_team_is_changed_given_a_project_and_archived(running: Joulegate) -> None:
    def put(path: str, body: dict[str, Any]) -> int:
        connection = running.connect()
        connection.request("PUT", path, json.dumps(body), {"x-api-key": ADMIN})
        status = connection.getresponse().status
        connection.close()
        return status

    assert post(running, "/admin/teams", {"team": "biology"}).status == 201
    key = post(running, "/admin/keys", {"team": "biology"}).json()["key"]
    until(lambda: status_with(running, key) == 200)
    assert put("/admin/teams/biology", {"policy": "least_energy", "policies": []}) == 200
    assert put("/admin/teams/biology", {"polcy": "least_energy"}) == 400
    assert put("/admin/teams/biology", {"keys": ["sk-a-key-in-the-open"]}) == 400
    assert put("/admin/teams/physics", {}) == 400  # the config file's
    path = "/admin/teams/biology/projects"
    assert post(running, path, {"project": "genomes"}).status == 201
    assert post(running, path, {"project": "genomes"}).status == 400
    (team,) = [
        t
        for t in running.get("/admin/teams", x_api_key=ADMIN).json()["data"]
        if t["team"] == "biology"
    ]
    assert (team["settings"]["policy"], team["projects"]) == ("least_energy", ["genomes"])
    assert running.get("/admin/teams/biology", method="DELETE", x_api_key=ADMIN).status == 200
    until(lambda: status_with(running, key) == 401)
    actions = [e["action"] for e in running.get("/admin/audit", x_api_key=ADMIN).json()["data"]]
    assert actions == [
        "team.archive",
        "project.create",
        "team.change",
        "key.create",
        "team.create",
    ]


def test_a_lead_keeps_to_its_team_and_a_member_does_nothing(running: Joulegate) -> None:
    assert post(running, "/admin/keys", {"team": "physics"}, LEAD).status == 201
    assert post(running, "/admin/keys", {"team": "operators"}, LEAD).status == 403
    assert post(running, "/admin/keys", {"team": "physics", "role": "admin"}, LEAD).status == 403
    assert post(running, "/admin/teams", {"team": "x"}, LEAD).status == 403
    assert running.get("/admin/audit", x_api_key=LEAD).status == 403
    keys = running.get("/admin/keys", x_api_key=LEAD).json()["data"]
    assert {key["team"] for key in keys} == {"physics"}
    (admins,) = [
        k
        for k in running.get("/admin/keys", x_api_key=ADMIN).json()["data"]
        if k["role"] == "admin"
    ]
    path = f"/admin/keys/{admins['key_id']}"
    assert running.get(path, method="DELETE", x_api_key=LEAD).status == 404
    assert post(running, "/admin/keys", {"team": "physics"}, KEY).code == "forbidden"
    assert running.get("/admin/keys").status == 401


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"team": "nobody"}, "invalid_value"),
        ({"team": "physics", "role": "king"}, "invalid_value"),
        ({"teem": "physics"}, "invalid_type"),
        ({}, "invalid_type"),
        ({"team": "physics", "days": 1e300}, "invalid_type"),
        ({"team": "physics", "days": -1}, "invalid_type"),
        ({"team": "physics", "project": "p" * 201}, "invalid_value"),
        ({"team": "physics", "project": "a\x00b"}, "invalid_value"),
        ({"team": "physics", "name": "n" * 100_000}, "invalid_value"),
    ],
)
def test_bad_input_is_said(running: Joulegate, body: dict[str, Any], code: str) -> None:
    reply = post(running, "/admin/keys", body)
    assert (reply.status, reply.code) == (400, code)


@pytest.mark.parametrize(
    "name", ["a\r\nx-evil: 1", "a\x1b[31m", "a\u202eb", "a\u2028b", "\t=1", ""]
)
def test_a_name_that_would_break_a_line_or_turn_it_round_is_none(
    running: Joulegate, name: str
) -> None:
    teams, keys = {"team": name}, {"team": "physics", "project": name}
    for path, body in (("teams", teams), ("teams/physics/projects", {"project": name})):
        assert post(running, f"/admin/{path}", body).code == "invalid_value"
    assert post(running, "/admin/keys", keys).code == "invalid_value"
    if name:
        assert post(running, "/admin/keys", {"team": "physics", "name": name}).status == 400
        path = f"/admin/organisations/{quote(name)}"
        assert running.get(path, method="PUT", x_api_key=ADMIN).status == 400
    fine = post(running, "/admin/teams", {"team": "日本 Straße (Ä) 🦉" + str(ord(name[:1] or "x"))})
    assert fine.status == 201


def test_what_a_team_of_the_config_is_called_breaks_no_answer(joulegate: Start) -> None:
    budget = {"per": "day", "requests": 100, "soft": 0.001}
    team = {"keys": [KEY], "budgets": [budget]}
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    with Upstream(answers.like_an_engine()) as upstream:
        running = joulegate(config_of(upstream.base_url, teams={"a\r\nx-evil: 1": team}))
        said = [post(running, "/v1/chat/completions", ask, KEY) for _ in range(2)]
    assert [each.status for each in said] == [200, 200]
    assert said[1].header("x-evil") is None
    assert (said[1].header("x-joulegate-warning") or "").startswith("team:a??x-evil: 1 requests")


@pytest.mark.parametrize(
    "settings",
    [
        {"timezone": "Atlantis/Capital"},
        {"policy": "no_such_policy"},
        {"policies": ["least_energy", "no_such_policy"]},
        {"budgets": [{"per": "day", "requests": 1, "fallback_policy": "no_such_policy"}]},
        {"judging": {"share": 0.5}},
    ],
)
def test_what_stops_the_start_in_the_config_is_refused_here_too(
    running: Joulegate, settings: dict[str, Any]
) -> None:
    reply = post(running, "/admin/teams", {"team": "biology", "settings": settings})
    assert (reply.status, reply.code) == (400, "invalid_value")
    assert "biology" in str(reply.json()["error"]["message"])  # says where
    assert [t["team"] for t in running.get("/admin/teams", x_api_key=ADMIN).json()["data"]] == [
        "operators",
        "physics",
    ]


def test_config_file_admin_api_and_command_line_show_and_change_one_state(
    running: Joulegate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(tmp_path / "joulegate-0" / "config.yaml")

    def run(command: str, *words: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main([command, "--config", config, *words]) == 0
        told = capsys.readouterr().out
        return list(json.loads(told)) if "--json" in words else []

    def agree() -> dict[str, str]:
        """The state of every key, which both say alike; so are teams."""
        told = {k["key_id"]: (k["team"], k["state"]) for k in run("keys", "list", "--json")}
        shown = running.get("/admin/keys", x_api_key=ADMIN).json()["data"]
        assert told == {k["key_id"]: (k["team"], k["state"]) for k in shown}
        teams = {t["team"]: t["source"] for t in run("teams", "list", "--json")}
        shown = running.get("/admin/teams", x_api_key=ADMIN).json()["data"]
        assert teams == {t["team"]: t["source"] for t in shown}
        assert (teams["physics"], teams.get("botany", "ledger")) == ("config", "ledger")
        return {key_id: state for key_id, (_, state) in told.items()}

    assert list(agree().values()) == ["active"] * 3
    run("teams", "create", "botany")
    (ours,) = run("keys", "create", "--team", "botany", "--json")
    theirs = post(running, "/admin/keys", {"team": "botany"}).json()
    until(lambda: status_with(running, ours["key"]) == status_with(running, theirs["key"]) == 200)
    run("keys", "revoke", theirs["key_id"])
    until(lambda: status_with(running, theirs["key"]) == 401)
    (configured,) = [
        k["key_id"]
        for k in run("keys", "list", "--team", "physics", "--json")
        if k["role"] == "member"
    ]
    path = f"/admin/keys/{configured}"
    assert running.get(path, method="DELETE", x_api_key=ADMIN).status == 200
    until(lambda: status_with(running, KEY) == 401)
    states = agree()
    assert (states[ours["key_id"]], states[theirs["key_id"]]) == ("active", "revoked")
    assert states[configured] == "revoked"
    rules = tmp_path / "rules.yaml"
    rules.write_text("limits: {max_energy_j: 5}\nbudgets: [{per: day, tokens: 9}]\n")
    run("keys", "change", ours["key_id"], "--settings", str(rules))
    shared = tmp_path / "shared.yaml"
    shared.write_text("budgets: [{per: month, money_usd: 5}]\n")
    run("organisations", "set", "acme", "--settings", str(shared), "--timezone", "Asia/Kolkata")
    data = running.get("/admin/keys", x_api_key=ADMIN).json()["data"]
    (changed,) = [k["rules"] for k in data if k["key_id"] == ours["key_id"]]
    assert (changed["limits"]["max_energy_j"], changed["budgets"][0]["tokens"]) == (5, 9)
    (told,) = [k for k in run("keys", "list", "--json") if k["key_id"] == ours["key_id"]]
    assert (told["limits"], told["budgets"]) == (["max_energy_j 5.0"], ["9 tokens a day"])
    (acme,) = running.get("/admin/organisations", x_api_key=ADMIN).json()["data"]
    assert (acme["settings"]["timezone"], acme["source"]) == ("Asia/Kolkata", "ledger")
    assert [o["budgets"] for o in run("organisations", "list", "--json")] == [1]
    run("organisations", "remove", "acme")
    assert running.get("/admin/organisations", x_api_key=ADMIN).json()["data"] == []
    run("teams", "archive", "botany")
    until(lambda: status_with(running, ours["key"]) == 401)
    assert agree()[ours["key_id"]] == "archived"


def test_pages_know_a_team_of_the_ledger_as_one_of_the_config(running: Joulegate) -> None:
    settings = {
        "timezone": "Asia/Kolkata",
        "limits": {"max_energy_j": 7},
        "budgets": [{"per": "month", "carbon_g": 2500}, {"per": "month", "carbon_g": 3000}],
    }
    assert post(running, "/admin/teams", {"team": "law", "settings": settings}).status == 201
    proxy = running.proxy
    assert proxy is not None
    assert proxy.snapshots is not None
    shown = proxy.snapshots
    until(lambda: shown._budgets == {"law": 2500.0})
    assert proxy.sign_in.time_zone("law") == "Asia/Kolkata"
    page = running.get("/dashboard/law/overview", authorization=f"Bearer {ADMIN}")
    assert page.status == 200
    assert running.get("/admin/teams/law", method="DELETE", x_api_key=ADMIN).status == 200
    until(lambda: shown._budgets == {})


@pytest.mark.parametrize("name", ["a/b", "/", "50%", "a%2Fb", "my team", "x?y#z", "😀", "c\\d"])
def test_a_team_may_be_called_what_links_have_to_escape(running: Joulegate, name: str) -> None:
    escaped = quote(name, safe="")
    headers = {"x-api-key": ADMIN}
    assert running.post({"team": name}, path="/admin/teams", headers=headers).status == 201
    connection = running.connect()
    connection.request("PUT", f"/admin/teams/{escaped}", "{}", headers)
    assert connection.getresponse().status == 200
    connection.close()
    page = running.get(f"/dashboard/{escaped}/overview", x_api_key=ADMIN)
    assert page.status == 200
    assert f'href="/dashboard/{escaped}/savings?' in page.body.decode()
    # whoever has to sign in comes back to that very page
    sent = running.get(f"/dashboard/{escaped}/overview").header("location") or ""
    assert parse_qs(urlsplit(sent).query)["next"] == [f"/dashboard/{escaped}/overview"]
    assert running.get(f"/admin/teams/{escaped}", method="DELETE", x_api_key=ADMIN).status == 200


@pytest.mark.parametrize("path", ["/admin/teams/", "/dashboard/physics/overview/", "/v1/models/"])
def test_a_slash_at_the_end_sends_nobody_and_no_key_elsewhere(
    running: Joulegate, path: str
) -> None:
    assert running.get(path, x_api_key=ADMIN).status == 200
