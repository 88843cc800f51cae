"""Why this one and why not each other: the same sentences wherever a decision is shown."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from policies.explanation import explained
from proxy.__main__ import main
from tests.fakes.upstream import Upstream
from tests.joulegate_server import Start
from tests.proxy.two_backends import ASK, both, decided, large, small
from tests.waiting import until

__all__ = ["large", "small"]  # fixtures


def test_route_explain_receipt_and_dashboard_say_the_same(
    joulegate: Start,
    small: Upstream,
    large: Upstream,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = both(small, large, default_policy="least_energy")
    worse = {**config["backends"][1], "name": "m@worse", "quality": 0.5, "precision": "bf16"}
    config["backends"].append({**worse, "params_b": 72.0})
    running = joulegate(config)
    told = running.post(ASK, path="/v1/route").json()
    reply = running.post(ASK)
    decision = decided(running, reply)
    sentences = explained(decision)
    assert len(sentences) == 3
    assert sentences[0].startswith("least_energy chose m@small: m@small would add ")
    assert sentences[1].startswith("Not m@")
    codes = {rejection.backend: rejection.code for rejection in decision.rejections}
    assert codes == {"m@large": "not_chosen", "m@worse": "dominated"}
    (named,) = (s for s in sentences if s.startswith("Not m@worse"))
    assert "better in nothing than m@" in named
    # Loads differ a little between two questions, so the figures may; the words do not.
    assert [s.split()[:3] for s in told["explained"]] == [s.split()[:3] for s in sentences]
    request_id = reply.header("x-request-id")
    receipt = running.get(f"/v1/usage/{request_id}").json()
    assert receipt["decision"]["explained"] == sentences
    path = f"/dashboard/default/requests/{request_id}"
    until(lambda: running.get(path).status == 200)  # the drain has written it
    text = html.unescape(running.get(path).body.decode())
    assert all(sentence in text for sentence in sentences)
    body = tmp_path / "request.json"
    body.write_text(json.dumps(ASK))
    path = tmp_path / "joulegate-0" / "config.yaml"
    assert main(["explain", str(body), "--config", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "not chosen: better in nothing than m@" in printed
    assert "m@small would add" in printed


def test_a_refusal_says_why_not_each(joulegate: Start, small: Upstream, large: Upstream) -> None:
    running = joulegate(both(small, large))
    wish = {"x-joulegate-max-energy-j": "0.001"}
    told = running.post(ASK, path="/v1/route", headers=wish)
    assert told.status == 422
    sentences = told.json()["explained"]
    assert sentences[0] == "Nothing was chosen: no backend fits the limits."
    assert [s.split(":")[0] for s in sentences[1:]] == ["Not m@large", "Not m@small"]
    assert running.post(ASK, headers=wish).code == "no_backend_within_limits"


def test_a_refusal_shows_everything_that_was_looked_at(
    joulegate: Start,
    small: Upstream,
    large: Upstream,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = both(
        small, large, policies={"none": {"among": "any", "limits": {"max_energy_j": 1e-6}}}
    )
    config["backends"][1]["model"] = "other"
    running = joulegate(config)
    told = running.post(ASK, path="/v1/route", headers={"x-joulegate-policy": "none"})
    body = tmp_path / "request.json"
    body.write_text(json.dumps(ASK))
    path = tmp_path / "joulegate-0" / "config.yaml"
    given = ["explain", str(body), "--config", str(path), "--policy", "none", "--json"]
    assert main(given) == 1
    for said in (told.json(), json.loads(capsys.readouterr().out)):
        why = {c["backend"]: c["rejected"]["code"] for c in said["candidates"]}
        assert why == {"m@small": "energy_over_limit", "m@large": "energy_over_limit"}


def test_asking_where_a_request_would_go_moves_nothing(
    joulegate: Start, small: Upstream, large: Upstream
) -> None:
    config = both(small, large, policies={"sticky": {"hysteresis": "99 %"}})
    running = joulegate(config)
    only_large = {"x-joulegate-policy": "sticky", "x-joulegate-min-quality": "0.8"}
    asked = running.post(ASK, path="/v1/route", headers=only_large).json()
    assert asked["chosen"] == "m@large"
    reply = running.post(ASK, headers={"x-joulegate-policy": "sticky"})
    assert reply.header("x-joulegate-backend") == "m@small"
    assert decided(running, reply).kept is None


@pytest.mark.parametrize("body", [{"model": "m"}, {"model": "m", "messages": "hi"}])
def test_a_decision_on_what_asks_nothing_is_refused_as_the_request_would_be(
    joulegate: Start, small: Upstream, large: Upstream, body: dict[str, str]
) -> None:
    running = joulegate(both(small, large))
    told, sent = running.post(body, path="/v1/route"), running.post(body)
    assert (told.status, told.json()["error"]) == (sent.status, sent.json()["error"])
    assert told.status == 400
