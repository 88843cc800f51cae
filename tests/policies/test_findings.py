"""What `check` says of policies that are well-formed and cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest

from estimators.types import Backend
from policies.findings import Finding, TeamRules, check_figures, check_policies
from policies.language import read_policies
from policies.types import Limits
from tests.policies.candidates import candidate

BACKENDS = [
    Backend(name="big@bf16", group="big", region="eu", quality=0.8, context_tokens=8000),
    Backend(name="big@int4", group="big", region="us", quality=0.7, context_tokens=8000),
    Backend(name="api", group="api", provider="openai", quality=0.9),
]


def findings(
    written: dict[str, Any], teams: dict[str, TeamRules] | None = None, default: str = "pinned"
) -> list[Finding]:
    return check_policies(read_policies(written), BACKENDS, teams, default)


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def test_a_sound_config_gives_no_findings() -> None:
    written = {"p": {"limits": {"min_quality": "97 % of big", "regions": ["eu"]}}}
    assert findings(written) == []


def test_names_that_nothing_has_are_found_with_the_nearest() -> None:
    for keys, path, hint in (
        ({"among": ["bigg"]}, ("policies", "p", "among"), "big"),
        ({"limits": {"backends": ["ap"]}}, ("policies", "p", "limits", "backends"), "api"),
        ({"limits": {"regions": ["eeu", "eu"]}}, ("policies", "p", "limits", "regions"), "eu"),
        (
            {"limits": {"providers": ["openia", "local"]}},
            ("policies", "p", "limits", "providers"),
            "openai",
        ),
        (
            {"limits": {"min_quality": "97 % of bog"}},
            ("policies", "p", "limits", "min_quality"),
            "big",
        ),
    ):
        found = [f for f in findings({"p": keys}) if f.kind == "unknown_name"]
        assert only(found).path == path
        assert f"Did you mean {hint!r}?" in found[0].message
        assert found[0].error


def test_limits_that_no_backend_can_keep_are_found() -> None:
    found = only(findings({"p": {"limits": {"min_quality": 0.95}}}))
    assert (found.kind, found.error) == ("never_satisfiable", True)
    assert "min_quality: at most 0.9" in found.message
    assert "every request would be refused" in found.message
    resigned = only(findings({"p": {"limits": {"min_quality": 0.95}, "otherwise": "pinned"}}))
    assert not resigned.error
    assert "`otherwise`" in resigned.message


def test_limits_that_only_together_cannot_be_kept_are_found() -> None:
    keys = {"limits": {"regions": ["eu"], "providers": ["openai"]}}
    assert only(findings({"p": keys})).kind == "never_satisfiable"
    assert only(findings({"p": {"limits": {"min_context_tokens": 9000}}})).error


def test_a_rule_can_be_impossible_by_itself() -> None:
    keys = {"rules": [{"when": {"task": "code"}, "limits": {"min_quality": 0.99}}]}
    assert only(findings({"p": keys})).path == ("policies", "p", "rules", 0, "limits")


def test_a_team_and_its_policy_that_exclude_each_other_are_found() -> None:
    written = {"p": {"limits": {"regions": ["us"]}, "among": "any"}}
    teams = {"t": TeamRules("p", Limits(regions=("eu",))), "u": TeamRules("pinned")}
    found = only(findings(written, teams))
    assert found.path == ("teams", "t", "policy")
    assert found.message.startswith("together with policy 'p', no backend can keep")


def test_a_team_whose_policy_does_not_exist_is_found() -> None:
    found = findings({}, {"t": TeamRules("thirfty")})
    assert only([f for f in found if f.path == ("teams", "t", "policy")]).message == (
        "there is no policy 'thirfty'. Did you mean 'thrifty'?"
    )
    assert only(findings({}, default="pined")).path == ("default_policy",)


def test_a_rule_that_never_gets_its_turn_is_found() -> None:
    rules = [
        {"when": {"task": ["code", "math"]}, "use": "fastest"},
        {"when": {"task": "code", "hour": "9-17"}, "use": "pinned"},
        {"when": {"hour": "9-17"}, "use": "pinned"},
    ]
    found = only(findings({"p": {"rules": rules}}))
    assert (found.kind, found.path) == ("contradiction", ("policies", "p", "rules", 1))


def test_backends_that_no_team_can_reach_are_found() -> None:
    written = {
        "p": {"limits": {"backends": ["big"]}, "otherwise": "q"},
        "q": {"limits": {"regions": ["eu"]}},
        "s": {"split": {"p": 0.5, "q": 0.5}},
    }
    for policy in ("p", "s"):
        found = only(findings(written, {"t": TeamRules(policy)}))
        assert (found.kind, found.path) == ("unreachable", ("backends", 2))
        assert not found.error
    assert findings(written, {"t": TeamRules("p"), "u": TeamRules("pinned")}) == []
    local = {"t": TeamRules("pinned", Limits(providers=("local",)))}
    assert only(findings({}, local)).path == ("backends", 2)


def kinds(written: dict[str, object], **team: object) -> set[tuple[str, str]]:
    """What is found of a policy ``p``: kind and last key of its place."""
    fleet = [
        Backend(name="m@a", group="m", quality=0.6),
        Backend(name="m@b", group="m", quality=0.9),
    ]
    book = read_policies({"p": written})
    teams = {"t": TeamRules(policy="p", **team)}  # type: ignore[arg-type]
    return {(f.kind, str(f.path[-1])) for f in check_policies(book, fleet, teams)}


def test_names_in_experiments_and_checks_have_to_exist() -> None:
    assert kinds({"canary": {"backend": "m@c"}}) == {("unknown_name", "backend")}
    assert kinds({"compare_with": "m@c"}) == {("unknown_name", "compare_with")}
    judged = {"cascade": {"pass_rate": 0.5, "judge": "nobody"}}
    assert kinds(judged) == {("unknown_name", "judge")}
    assert kinds({"canary": {"backend": "m@b"}, "compare_with": "m@a"}) == set()


def test_a_cascade_reaches_what_its_limit_on_quality_rules_out() -> None:
    limits = {"min_quality": 0.8}
    assert kinds({"limits": limits}) == {("unreachable", "0")}
    assert kinds({"limits": limits, "cascade": {"pass_rate": 0.5}}) == set()


def test_a_promise_that_nobody_can_keep_is_found() -> None:
    assert kinds({"average_quality": 0.95}) == {("never_satisfiable", "average_quality")}
    assert kinds({"average_quality": 0.85}) == set()


def test_rules_for_models_and_teams_that_are_not_there_are_found() -> None:
    model = {"rules": [{"when": {"model": "n"}, "objective": "quality"}]}
    assert kinds(model) == {("contradiction", "model")}
    team = {"rules": [{"when": {"team": "u"}, "objective": "quality"}]}
    assert kinds(team) == {("unknown_name", "team")}
    fine = {"rules": [{"when": {"team": ["u", "t"], "model": "auto:p"}, "objective": "quality"}]}
    assert kinds(fine) == set()


def test_answer_budgets_that_the_team_does_not_allow_are_found() -> None:
    written: dict[str, object] = {"answer_budgets": [{"name": "brief", "max_tokens": 10}]}
    assert kinds(written, answer_budgets=False) == {("contradiction", "policy")}
    assert kinds(written, answer_budgets=True) == set()


def test_limits_below_what_one_token_takes_are_found_and_only_warned_of() -> None:
    shortest = [
        candidate("big@bf16", energy_j=10.0, region="eu", money_usd=None),
        candidate("big@int4", energy_j=4.0, region="us", money_usd=None),
    ]

    def found(limits: dict[str, Any], **teams: TeamRules) -> list[Finding]:
        return check_figures(read_policies({"p": {"limits": limits}}), shortest, teams)

    assert found({"max_energy_j": 4.5, "max_latency_s": 3.0}) == []  # 4 J and a tenth more
    tight = only(found({"max_energy_j": 4.2}))
    assert (tight.kind, tight.error) == ("never_satisfiable", False)
    assert tight.path == ("policies", "p", "limits", "max_energy_j")
    assert "4.4 J" in tight.message
    assert found({"max_energy_j": 4.2, "judge": "expected"}) == []
    assert "11 J" in only(found({"max_energy_j": 4.5, "regions": ["eu"]})).message
    assert "price is known" in only(found({"max_money_usd": 1.0})).message
    assert only(found({}, t=TeamRules(limits=Limits(max_ttft_s=0.1)))).path[:2] == ("teams", "t")


def test_what_is_looked_up_by_name_and_kind_has_to_be_one() -> None:
    for written, path in (
        ({"canary": {"backend": "big"}}, ("policies", "p", "canary", "backend")),
        ({"compare_with": "big"}, ("policies", "p", "compare_with")),
    ):
        assert [f.path for f in findings({"p": written}) if f.error] == [path]
    rules = [{"when": {"task": ["code", "cdoe"]}, "objective": "carbon"}]
    (finding,) = findings({"p": {"rules": rules}})
    assert (finding.error, finding.path[-1]) == (False, "task")
    assert "Did you mean 'code'?" in finding.message


@pytest.mark.parametrize(
    ("first", "second", "hidden"),
    [
        ("> 100", "> 4000", True),
        ("> 100", "> 100", True),
        (">= 100", "> 100", True),
        ("> 100", ">= 100", False),
        ("> 4000", "> 100", False),
        ("< 4000", "100-3000", True),
        ("100-3000", "100-3000", True),
        ("100-3000", "> 200", False),
    ],
)
def test_a_range_within_an_earlier_one_never_gets_its_turn(
    first: str, second: str, hidden: bool
) -> None:
    rules = [
        {"when": {"prompt_tokens": first}, "objective": "carbon"},
        {"when": {"prompt_tokens": second}, "objective": "money"},
    ]
    assert any("never applies" in f.message for f in findings({"p": {"rules": rules}})) is hidden


def test_a_team_s_lists_name_what_there_is() -> None:
    limits = Limits(backends=("m", "n0body"), regions=("eu", "euu"))
    fleet = [Backend(name="m@fp8", group="m", region="eu")]
    told = check_policies(read_policies({}), fleet, {"t": TeamRules(limits=limits)})
    assert {f.path[-1] for f in told if not f.error} == {"backends", "regions"}


@pytest.mark.parametrize(
    ("keys", "at", "words"),
    [
        ({"limits": {"max_ttft_s": 800}}, ("limits", "max_ttft_s"), "write 0.8"),
        (
            {"rules": [{"when": {"tag": "a"}, "limits": {"max_latency_s": 20000}}]},
            ("rules", 0, "limits", "max_latency_s"),
            "write 20 ",
        ),
        (
            {"rules": [{"when": {"budget_left": "> 100 %"}, "objective": "carbon"}]},
            ("rules", 0, "when", "budget_left"),
            "never more than 1",
        ),
        (
            {"rules": [{"when": {"prompt_tokens": "< 0"}, "objective": "carbon"}]},
            ("rules", 0, "when", "prompt_tokens"),
            "never less than 0",
        ),
        (
            {"rules": [{"when": {"hour": h}, "objective": "carbon"} for h in ("22-6", "23-2")]},
            ("rules", 1),
            "rule 1 above",
        ),
    ],
)
def test_ranges_that_cannot_be_meant_are_found(
    keys: dict[str, Any], at: tuple[str | int, ...], words: str
) -> None:
    found = only(findings({"p": keys}))
    assert found.path == ("policies", "p", *at)
    assert words in found.message
    assert not found.error


def test_ranges_that_can_be_meant_are_not() -> None:
    rules = [
        {"when": when, "limits": {"max_ttft_s": 5, "max_latency_s": 600}}
        for when in ({"hour": "22-6"}, {"hour": "5-7"}, {"budget_left": "<= 0 %"})
    ]
    assert findings({"p": {"limits": {"max_ttft_s": 30}, "rules": rules}}) == []


def test_a_team_that_waits_longer_for_the_first_token_than_for_the_last_is_told() -> None:
    limits = Limits(max_ttft_s=30, max_latency_s=20)
    found = only(findings({}, {"search": TeamRules(policy="pinned", limits=limits)}))
    assert found.path == ("teams", "search", "limits", "max_ttft_s")
