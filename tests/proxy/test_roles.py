"""Who may do what, route by route: a route that is not in the table fails the test.

Each row says what a stranger, a wrong key, a member, a lead and an administrator get. Where a
request is let in and then found wanting (400, 404, 422, 503), it was let in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute

from proxy.front import ENDPOINTS
from tests.fakes import answers
from tests.fakes.upstream import Upstream
from tests.joulegate_server import ADMIN, KEY, Joulegate, Reply, Start, config_of, reply
from tests.servers import new_database
from tests.waiting import until

LEAD = "sk-lead-0123456789abcdef"
TEAMS = {
    "physics": {"keys": [KEY, {"key": LEAD, "role": "lead"}]},
    "operators": {"keys": [{"key": ADMIN, "role": "admin"}]},
}
WHO = {"nobody": None, "wrong": "sk-wrong", "member": KEY, "lead": LEAD, "admin": ADMIN}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}

IN = (200, 201, 303, 400, 404, 422, 502, 503)  # let in, whatever came of it
ANYONE = dict.fromkeys(WHO, IN)
KEYS = {"nobody": (401,), "wrong": (401,), "member": IN, "lead": IN, "admin": IN}
LEADS = {**KEYS, "member": (403,)}
ADMINS = {**LEADS, "lead": (403,)}
# Pages lead people without a key to the sign-in; another team's do not exist for them.
PAGES = {**KEYS, "nobody": (303,)}
OTHERS = {**PAGES, "member": (404,), "lead": (404,), "admin": (200,)}
AGENTS = dict.fromkeys(WHO, (401, 403))  # agents have tokens of their own

# (method, route) -> [(path, body, who gets what)]
TABLE: dict[tuple[str, str], list[tuple[str, Any, dict[str, tuple[int, ...]]]]] = {
    ("GET", "/v1/models"): [("/v1/models", None, KEYS)],
    ("GET", "/v1/models/{model:path}"): [("/v1/models/tiny", None, KEYS)],
    ("POST", "/v1/files"): [("/v1/files", {}, KEYS)],
    ("GET", "/v1/files"): [("/v1/files", None, KEYS)],
    ("GET", "/v1/files/{file_id}"): [("/v1/files/file-1", None, KEYS)],
    ("DELETE", "/v1/files/{file_id}"): [("/v1/files/file-1", None, KEYS)],
    ("GET", "/v1/files/{file_id}/content"): [("/v1/files/file-1/content", None, KEYS)],
    ("POST", "/v1/batches"): [("/v1/batches", {}, KEYS)],
    ("GET", "/v1/batches"): [("/v1/batches", None, KEYS)],
    ("GET", "/v1/batches/{batch_id}"): [("/v1/batches/batch_1", None, KEYS)],
    ("POST", "/v1/batches/{batch_id}/cancel"): [("/v1/batches/batch_1/cancel", {}, KEYS)],
    ("GET", "/v1/responses/{response_id}"): [("/v1/responses/resp_1", None, KEYS)],
    ("DELETE", "/v1/responses/{response_id}"): [("/v1/responses/resp_1", None, KEYS)],
    ("POST", "/v1/responses/{response_id}/cancel"): [("/v1/responses/resp_1/cancel", {}, KEYS)],
    ("GET", "/v1/responses/{response_id}/input_items"): [
        ("/v1/responses/resp_1/input_items", None, KEYS)
    ],
    ("POST", "/v1/route"): [("/v1/route", CHAT, KEYS)],
    ("GET", "/v1/usage/{request_id}"): [("/v1/usage/req_1", None, KEYS)],
    ("POST", "/v1/feedback"): [("/v1/feedback", {"request_id": "r", "score": 1}, KEYS)],
    ("GET", "/v1/judging"): [("/v1/judging", None, ADMINS)],
    ("GET", "/v1/savings"): [("/v1/savings", None, KEYS)],
    ("POST", "/meters/windows"): [("/meters/windows", {}, AGENTS)],
    ("GET", "/meters/clock"): [("/meters/clock", None, AGENTS)],
    ("GET", "/health"): [("/health", None, ANYONE)],
    ("GET", "/health/live"): [("/health/live", None, ANYONE)],
    ("GET", "/health/ready"): [("/health/ready", None, ANYONE)],
    ("GET", "/metrics"): [("/metrics", None, ADMINS)],
    ("GET", "/admin/teams"): [("/admin/teams", None, LEADS)],
    ("POST", "/admin/teams"): [("/admin/teams", {"team": "new"}, ADMINS)],
    ("PUT", "/admin/teams/{team:name}"): [("/admin/teams/physics", {}, ADMINS)],
    ("DELETE", "/admin/teams/{team:name}"): [("/admin/teams/physics", None, ADMINS)],
    ("POST", "/admin/teams/{team:name}/projects"): [
        ("/admin/teams/physics/projects", {"project": "p"}, LEADS),
        ("/admin/teams/operators/projects", {"project": "p"}, ADMINS),
    ],
    ("GET", "/admin/keys"): [("/admin/keys", None, LEADS)],
    ("POST", "/admin/keys"): [
        ("/admin/keys", {"team": "physics"}, LEADS),
        ("/admin/keys", {"team": "physics", "role": "admin"}, ADMINS),
        ("/admin/keys", {"team": "operators"}, ADMINS),
    ],
    ("POST", "/admin/keys/{key_id}/rotate"): [
        ("/admin/keys/{LEADS}/rotate", {}, LEADS),
        ("/admin/keys/{ADMINS}/rotate", {}, {**ADMINS, "lead": (404,)}),
    ],
    ("GET", "/admin/organisations"): [("/admin/organisations", None, ADMINS)],
    ("PUT", "/admin/organisations/{organisation:name}"): [
        ("/admin/organisations/acme", None, ADMINS)
    ],
    ("DELETE", "/admin/organisations/{organisation:name}"): [
        ("/admin/organisations/acme", None, ADMINS)
    ],
    ("PUT", "/admin/keys/{key_id}"): [
        ("/admin/keys/{LEADS}", None, LEADS),
        ("/admin/keys/{ADMINS}", None, {**ADMINS, "lead": (404,)}),
    ],
    ("DELETE", "/admin/keys/{key_id}"): [
        ("/admin/keys/nosuchkey", None, LEADS),
        ("/admin/keys/{ADMINS}", None, {**ADMINS, "lead": (404,)}),
    ],
    ("GET", "/admin/audit"): [("/admin/audit", None, ADMINS)],
    ("GET", "/dashboard/sign-in"): [("/dashboard/sign-in", None, ANYONE)],
    ("POST", "/dashboard/sign-in"): [],  # test_sign_in.py
    ("GET", "/dashboard/sign-in/provider"): [("/dashboard/sign-in/provider", None, ANYONE)],
    ("GET", "/dashboard/sign-in/callback"): [("/dashboard/sign-in/callback", None, ANYONE)],
    ("POST", "/dashboard/sign-out"): [("/dashboard/sign-out", {}, ANYONE)],
    ("GET", "/dashboard/style.css"): [("/dashboard/style.css", None, ANYONE)],
    ("GET", "/dashboard"): [("/dashboard", None, PAGES)],
    ("GET", "/dashboard/{team:name}"): [
        ("/dashboard/physics", None, PAGES),
        ("/dashboard/operators", None, {**OTHERS, "admin": (303,)}),
    ],
    ("GET", "/dashboard/{team:name}/{page}"): [
        ("/dashboard/physics/overview", None, PAGES),
        ("/dashboard/operators/overview", None, OTHERS),
    ],
    ("GET", "/dashboard/{team:name}/export.{ending}"): [
        ("/dashboard/physics/export.csv", None, PAGES),
        ("/dashboard/operators/export.csv", None, OTHERS),
    ],
    ("GET", "/dashboard/{team:name}/requests/{request_id:path}"): [
        ("/dashboard/physics/requests/req_1", None, {**PAGES, "member": (403,)}),
        ("/dashboard/operators/requests/req_1", None, {**OTHERS, "admin": (404,)}),
    ],
    ("GET", "/dashboard/{team:name}/frozen/{name}"): [
        ("/dashboard/physics/frozen/abc", None, PAGES),
        ("/dashboard/operators/frozen/abc", None, {**OTHERS, "admin": (404,)}),
    ],
    ("POST", "/dashboard/{team:name}/freeze"): [
        # without the form's own token nobody may
        ("/dashboard/physics/freeze", {}, {**PAGES, **dict.fromkeys(WHO, (303, 401, 403))}),
        ("/dashboard/operators/freeze", {}, {**OTHERS, "admin": (403,)}),
    ],
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream(answers.like_an_engine(), pages=answers.engine_pages()) as running:
        yield running


def routes_of(running: Joulegate) -> set[tuple[str, str]]:
    """Every route that FastAPI serves."""
    assert running.proxy is not None
    found: set[tuple[str, str]] = set()

    def walk(routes: Any) -> None:
        for route in routes:
            if isinstance(route, APIRoute):
                found.update((method, route.path) for method in route.methods)
            inner = getattr(route, "original_router", None)
            if inner is not None:
                walk(inner.routes)

    walk(running.proxy.api.routes)
    return found


def ask(running: Joulegate, method: str, path: str, body: Any, key: str | None) -> Reply:
    headers = {} if key is None else {"x-api-key": key}
    if method == "POST":
        return running.post({} if body is None else body, path=path, headers=headers)
    if method == "PUT":
        connection = running.connect()
        connection.request("PUT", path, json.dumps(body or {}), headers)
        return reply(connection.getresponse())
    return running.get(path, method=method, **headers)


def test_every_route_lets_in_whom_it_should_and_nobody_else(
    joulegate: Start, upstream: Upstream
) -> None:
    running = joulegate(
        config_of(upstream.base_url, teams=TEAMS, server={"failed_keys_per_minute": 0})
    )
    assert routes_of(running) == set(TABLE)
    listed = running.get("/admin/keys", x_api_key=ADMIN).json()["data"]
    ids = {key["role"]: key["key_id"] for key in listed}
    wrong = []
    for (method, _), rows in TABLE.items():
        for path, body, expected in rows:
            path = path.replace("{LEADS}", ids["lead"]).replace("{ADMINS}", ids["admin"])
            for who, key in WHO.items():
                if who == "admin" and method == "DELETE" and ids["admin"] in path:
                    continue  # it would lock this test out
                status = ask(running, method, path, body, key).status
                if status not in expected[who]:
                    wrong.append(f"{method} {path} as {who}: {status}, not {expected[who]}")
    assert not wrong, "\n".join(wrong)


def test_every_way_to_spend_needs_a_key(joulegate: Start, upstream: Upstream) -> None:
    running = joulegate(config_of(upstream.base_url, teams=TEAMS))
    for path in [*ENDPOINTS, "/v1/something/else"]:
        assert running.post(CHAT, path=path).status == 401, path
        assert running.post(CHAT, path=path, headers={"x-api-key": "sk-no"}).status == 401, path
    assert not [r for r in upstream.received if r.path.endswith("/chat/completions")]


def test_strangers_cannot_fill_the_books(joulegate: Start, upstream: Upstream) -> None:
    server = {"failed_keys_per_minute": 3, "stop_deadline_s": 1}
    running = joulegate(config_of(upstream.base_url, teams=TEAMS, server=server))
    refused = [running.post(CHAT, headers={"x-api-key": f"sk-{n}"}) for n in range(6)]
    assert [reply.status for reply in refused] == [401, 401, 401, 429, 429, 429]
    names = [str(reply.header("x-request-id")) for reply in refused]
    assert running.proxy is not None
    until(lambda: running.proxy.ledger.receipt(names[2]) is not None)  # type: ignore[union-attr]
    recent = running.proxy.accounts.recent
    assert [name in recent for name in names] == [True, True, True, False, False, False]
    assert running.record(names[0]).error_code == "invalid_api_key"


def seconds_until(what: Callable[[], object]) -> float:
    begun_s = time.monotonic()
    until(what)
    return time.monotonic() - begun_s


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_one_replica_revokes_all_refuse_within_a_second(
    joulegate: Start, upstream: Upstream, kind: str, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        url = new_database(request.getfixturevalue("postgres_url"), f"roles_{time.time_ns()}")
    config = config_of(upstream.base_url, teams=TEAMS, ledger={"url": url})
    one, two = joulegate(config), joulegate(config)
    made = ask(one, "POST", "/admin/keys", {"team": "physics"}, ADMIN).json()

    def status(running: Joulegate, key: str) -> int:
        return running.post(CHAT, headers={"x-api-key": key}).status

    until(lambda: status(one, made["key"]) == status(two, made["key"]) == 200)
    path = f"/admin/keys/{made['key_id']}/rotate"
    rotated_s = time.monotonic()
    new = ask(two, "POST", path, {"overlap_s": 4}, ADMIN).json()
    until(lambda: status(one, new["key"]) == status(two, new["key"]) == 200)
    assert {status(one, made["key"]), status(two, made["key"])} == {200}  # both for a while
    assert time.monotonic() - rotated_s < 4, "too slow a machine to see the overlap"
    until(lambda: status(one, made["key"]) == status(two, made["key"]) == 401)
    assert time.monotonic() - rotated_s >= 3.9
    took_s: list[float] = []
    for revoked in (new, {"key": KEY, "key_id": _id_of(one, "member")}):
        path = f"/admin/keys/{revoked['key_id']}"
        assert ask(one, "DELETE", path, None, ADMIN).status == 200
        took_s.append(seconds_until(lambda k=revoked["key"]: status(two, k) == 401))  # type: ignore[misc]
        until(lambda k=revoked["key"]: status(one, k) == 401)  # type: ignore[misc]
    assert min(took_s) < 1.0, took_s  # a busy machine may take longer once


def _id_of(running: Joulegate, role: str) -> str:
    listed = running.get("/admin/keys", x_api_key=ADMIN).json()["data"]
    return str(next(k["key_id"] for k in listed if k["role"] == role and k["source"] == "config"))


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_one_replica_is_told_of_keys_teams_and_organisations_holds_on_all_within_a_second(
    joulegate: Start, upstream: Upstream, kind: str, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        url = new_database(request.getfixturevalue("postgres_url"), f"rules_{time.time_ns()}")
    config = config_of(upstream.base_url, teams=TEAMS, ledger={"url": url})
    one, two = joulegate(config), joulegate(config)

    def put(path: str, body: Any) -> Reply:
        return ask(one, "PUT", path, body, ADMIN)

    team = {"organisation": "acme"}
    assert ask(one, "POST", "/admin/teams", {"team": "law", "settings": team}, ADMIN).status == 201
    none = [{"per": "day", "requests": 0}]
    made = ask(one, "POST", "/admin/keys", {"team": "law", "budgets": none}, ADMIN)
    assert made.status == 201, made.body
    path, key = f"/admin/keys/{made.json()['key_id']}", made.json()["key"]

    def answered(scope: str | None) -> bool:
        reply = two.post(CHAT, headers={"x-api-key": key})
        if scope is None:
            return reply.status == 200
        said = reply.status == 429 and reply.json()["error"]["joulegate"]["scope"]
        return bool(said == scope)

    took_s = [seconds_until(lambda: answered(f"key:{made.json()['key_id']}"))]  # made with a budget
    assert put(path, {}).status == 200
    took_s.append(seconds_until(lambda: answered(None)))
    tight = {"limits": {"max_energy_j": 1e-12}}
    assert put(path, tight).status == 200
    took_s.append(seconds_until(lambda: two.post(CHAT, headers={"x-api-key": key}).status == 422))
    assert put(path, {}).status == 200
    assert put("/admin/teams/law", {**team, "budgets": none}).status == 200
    took_s.append(seconds_until(lambda: answered("team:law")))
    assert put("/admin/teams/law", team).status == 200
    assert put("/admin/organisations/acme", {"budgets": none}).status == 200
    took_s.append(seconds_until(lambda: answered("organisation:acme")))
    assert ask(one, "DELETE", "/admin/organisations/acme", None, ADMIN).status == 200
    took_s.append(seconds_until(lambda: answered(None)))
    assert sorted(took_s)[-2] < 1.0, took_s  # a busy machine may take longer once
    refused = {
        path: {"budgets": [{"per": "day"}]},
        "/admin/organisations/acme": {"timezone": "Mars"},
        f"{path}?": {"budgets": [{"per": "day", "requests": -1}]},
    }
    for where, body in refused.items():
        assert put(where, body).status == 400
