"""The language of policies: what the documentation shows is read, and mistakes are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.language import KEYS, LIMIT_KEYS, RULE_KEYS, built_in, mistakes, read_policies
from policies.presets import STRATEGIES
from policies.types import Decision, Limits, NoBackendWithinLimits, Request
from policies.wording import PolicyError
from tests.policies.candidates import candidate, request

DOCS = Path(__file__).parents[2] / "docs" / "policies.md"
EXAMPLES = [
    yaml.safe_load(block)["policies"]
    for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
]
FLEET = [
    candidate("big@bf16", energy_j=60, quality=0.80, spread=0.01, carbon_g=9, latency_s=1),
    candidate("big@fp8", energy_j=40, quality=0.79, spread=0.01, carbon_g=5, latency_s=3),
    candidate("big@int4", energy_j=30, quality=0.70, spread=0.01, carbon_g=7, latency_s=5),
    candidate("small", energy_j=10, quality=0.60, spread=0.01, carbon_g=4, latency_s=2),
]


def decide(written: dict[str, Any], asked: Request | None = None, name: str = "p") -> Decision:
    book = read_policies(written)
    return book.policies[name].choose(asked or request("big"), FLEET, Limits())


def chosen(keys: dict[str, Any], asked: Request | None = None) -> str:
    return decide({"p": keys}, asked).chosen


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: "+".join(e))
def test_every_example_of_the_documentation_is_read_and_decides(example: dict[str, Any]) -> None:
    book = read_policies(example)
    for name in example:
        decision = book.policies[name].choose(request("auto"), _with_qwen(), Limits())
        assert decision.policy == name
        assert decision.version.startswith(book.specs[name].version)


def _with_qwen() -> list[Any]:
    return [*FLEET, candidate("qwen-7b", quality=0.85, spread=0.01)]


def test_every_key_is_described() -> None:
    text = DOCS.read_text()
    for key in {*KEYS, *LIMIT_KEYS, *RULE_KEYS}:
        assert f"`{key}`" in text or f"{key}:" in text, f"{key} is not described"


def test_a_policy_stays_with_the_model_asked_for_unless_it_says_otherwise() -> None:
    assert chosen({}) == "big@int4"
    assert chosen({"among": "any"}) == "small"
    assert chosen({"among": ["small", "big@fp8"]}) == "small"
    assert chosen({"among": "any"}, request("big@bf16")) == "big@bf16"


def test_a_list_of_backends_to_choose_among_is_within_the_list_of_those_allowed() -> None:
    allowed = {"limits": {"backends": ["small", "big"]}}
    assert chosen({**allowed, "among": ["big@fp8"]}) == "big@fp8"
    rule = {"when": {"tag": "x"}, "among": ["big@bf16"]}
    assert chosen({**allowed, "among": "any", "rules": [rule]}) == "small"
    tagged = request("big", tags=("x",))
    assert chosen({**allowed, "among": "any", "rules": [rule]}, tagged) == "big@bf16"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({"min_quality": 0.75}, "big@fp8"),
        ({"min_quality": "75 %"}, "big@fp8"),
        ({"min_quality": "97 % of asked"}, "big@fp8"),
        ({"min_quality": "100% of asked"}, "big@bf16"),
        ({"min_quality": "97 % of big@int4"}, "big@int4"),
        ({"max_carbon_g": 6}, "big@fp8"),
        ({"max_latency_s": 2}, "big@bf16"),
        ({"min_quality": 0.79, "judge": "expected"}, "big@fp8"),
        ({"min_quality": 0.79}, "big@bf16"),
    ],
)
def test_limits_mean_what_they_say(limit: dict[str, Any], expected: str) -> None:
    assert chosen({"limits": limit}) == expected


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("energy", "big@int4"),
        ("carbon", "big@fp8"),
        ("latency", "big@bf16"),
        ("quality", "big@bf16"),
        ("pinned", "big@bf16"),
        ({"latency": 1}, "big@bf16"),
    ],
)
def test_objectives_mean_what_they_say(objective: Any, expected: str) -> None:
    assert chosen({"objective": objective}) == expected


def test_what_happens_when_nothing_fits_is_chosen_by_the_policy() -> None:
    refuses = {"limits": {"min_quality": 0.99}}
    with pytest.raises(NoBackendWithinLimits):
        chosen(refuses)
    decision = decide({"p": {**refuses, "otherwise": "fastest"}})
    assert decision.chosen == "big@bf16"
    assert decision.reason.startswith("nothing fits the limits of p, so fastest: ")
    codes = {r.backend: r.code for r in decision.rejections}
    assert codes["big@int4"] == "quality_below_limit"


@pytest.mark.parametrize(
    ("when", "applies", "does_not"),
    [
        ({"team": "a"}, {"team": "a"}, {"team": "b"}),
        ({"tag": ["x", "y"]}, {"tags": ("y", "z")}, {"tags": ("z",)}),
        ({"task": "code"}, {"task": "code"}, {}),
        ({"prompt_tokens": "> 4000"}, {"prompt_tokens": 4001}, {"prompt_tokens": 4000}),
        ({"prompt_tokens": "<= 40"}, {"prompt_tokens": 40}, {"prompt_tokens": 41}),
        ({"prompt_tokens": "10-40"}, {"prompt_tokens": 10}, {"prompt_tokens": 9}),
        ({"hour": "22-6"}, {"hour": 5}, {"hour": 6}),
        ({"hour": "9-17"}, {"hour": 9}, {"hour": 17}),
        ({"hour": 7}, {"hour": 7}, {}),
        ({"intensity": "> 300"}, {"intensity_g_per_kwh": 301.0}, {}),
        ({"budget_left": "< 20 %"}, {"budget_left": 0.1}, {"budget_left": 0.2}),
        ({"task": "code", "team": "a"}, {"task": "code", "team": "a"}, {"task": "code"}),
    ],
)
def test_a_rule_applies_when_its_condition_holds(
    when: dict[str, Any], applies: dict[str, Any], does_not: dict[str, Any]
) -> None:
    keys = {"rules": [{"when": when, "objective": "quality"}]}
    assert chosen(keys, request("big", **applies)) == "big@bf16"
    assert chosen(keys, request("big", **does_not)) == "big@int4"


def test_intensity_is_the_cleanest_candidates_where_the_team_has_none() -> None:
    keys = {"rules": [{"when": {"intensity": "> 300"}, "objective": "quality"}]}
    policy = read_policies({"p": keys}).policies["p"]
    for cleanest, expected in ((310.0, "a"), (290.0, "b")):
        fleet = [
            candidate("a", energy_j=20, quality=0.9, intensity_g_per_kwh=500.0),
            candidate("b", energy_j=10, quality=0.5, intensity_g_per_kwh=cleanest),
        ]
        assert policy.choose(request("auto"), fleet, Limits()).chosen == expected


def test_a_rule_adds_to_the_policys_limits_or_hands_over() -> None:
    keys = {
        "limits": {"max_latency_s": 4},
        "rules": [
            {"when": {"task": "code"}, "limits": {"min_quality": 0.79}},
            {"when": {"team": "x"}, "use": "quality-first"},
        ],
    }
    assert chosen(keys) == "big@fp8"
    assert chosen(keys, request("big", task="code")) == "big@bf16"
    decision = decide({"p": keys}, request("big", team="x"))
    assert decision.chosen == "big@bf16"
    assert decision.policy == "p"
    assert decision.reason.startswith("by the rule that uses quality-first: ")


def test_the_other_parts_are_built_as_written() -> None:
    keys = {"exploration": {"share": "100 %", "extra_energy": "100 %"}}
    assert decide({"p": keys}, request("big", draw=0.4)).explored
    held = decide({"p": {"hold_out": 0.5}}, request("big", draw=0.4))
    assert held.arm in ("hold_out", "treated")
    canary = decide({"p": {"canary": {"backend": "big@int4", "share": 0}}})
    assert canary.chosen == "big@fp8"
    assert decide({"p": {"compare_with": "small"}}).counterfactual == "small"
    cascade = {"limits": {"min_quality": 0.75}, "cascade": {"pass_rate": 0.9}, "among": "any"}
    assert decide({"p": cascade}).escalate_to == "big@fp8"
    kept = decide({"p": {"hysteresis": "30 %"}}, request("big", previous_backend="big@fp8"))
    assert kept.chosen == "big@fp8"
    average = decide({"p": {"average_quality": 0.8}}, request("big", quality_debt=50))
    assert average.chosen == "big@bf16"
    split = {"p": {"split": {"cheapest": "50 %", "fastest": "50 %"}}}
    assert decide(split).arm in ("cheapest", "fastest")
    budgets = read_policies({"p": {"answer_budgets": [{"name": "b", "max_tokens": 9}]}})
    assert budgets.specs["p"].answer_budgets[0].max_tokens == 9


MISTAKES: list[tuple[dict[str, Any], tuple[str | int, ...], str, str | None]] = [
    ({"p": {"objektive": "energy"}}, ("p", "objektive"), "there is no 'objektive'", "objective"),
    ({"p": {"objective": "enrgy"}}, ("p", "objective"), "is none of", "energy"),
    ({"p": {"objective": {"enrgy": 1}}}, ("p", "objective", "enrgy"), "there is no", "energy"),
    ({"p": {"objective": {"energy": 0}}}, ("p", "objective", "energy"), "more than 0", None),
    ({"p": {"limits": {"max_energy": 1}}}, ("p", "limits", "max_energy"), "no", "max_energy_j"),
    ({"p": {"limits": {"max_energy_j": "4 J"}}}, ("p", "limits", "max_energy_j"), "number", None),
    ({"p": {"limits": {"max_energy_j": -1}}}, ("p", "limits", "max_energy_j"), "more than", None),
    ({"p": {"limits": {"min_quality": 97}}}, ("p", "limits", "min_quality"), "Write 97 %", None),
    ({"p": {"limits": {"regions": []}}}, ("p", "limits", "regions"), "allows nothing", None),
    (
        {"p": {"limits": {"max_ttft_s": 3, "max_latency_s": 2}}},
        ("p", "limits", "max_ttft_s"),
        "allows 3 s to the first token, yet the whole answer only 2 s",
        None,
    ),
    ({"p": {"otherwise": "pined"}}, ("p", "otherwise"), "there is no policy", "pinned"),
    ({"p": {"rules": [{"use": "pinned"}]}}, ("p", "rules", 0), "no 'when'", None),
    ({"p": {"rules": [{"when": {"task": "a"}}]}}, ("p", "rules", 0), "changes nothing", None),
    ({"p": {"rules": [{"when": {}, "use": "pinned"}]}}, ("p", "rules", 0, "when"), "nothing", None),
    (
        {"p": {"rules": [{"when": {"hours": 3}, "use": "pinned"}]}},
        ("p", "rules", 0, "when", "hours"),
        "there is no",
        "hour",
    ),
    (
        {"p": {"rules": [{"when": {"hour": "25"}, "use": "pinned"}]}},
        ("p", "rules", 0, "when", "hour"),
        "0 to 24",
        None,
    ),
    (
        {"p": {"rules": [{"when": {"budget_left": "< 10"}, "use": "pinned"}]}},
        ("p", "rules", 0, "when", "budget_left"),
        "write < 10 %",
        None,
    ),
    (
        {"p": {"answer_budgets": [{"name": "x", "max_tokens": 0}]}},
        ("p", "answer_budgets", 0),
        "max_tokens",
        None,
    ),
    (
        {"p": {"rules": [{"when": {"prompt_tokens": "many"}, "use": "pinned"}]}},
        ("p", "rules", 0, "when", "prompt_tokens"),
        "a range such as",
        None,
    ),
    (
        {"p": {"average_quality": 0.8, "objective": "money"}},
        ("p", "objective"),
        "the objective is energy",
        None,
    ),
    ({"p": {"split": {"pinned": 0.5}}}, ("p", "split"), "add up to 1", None),
    ({"p": {"split": {"pinned": 1}, "limits": {}}}, ("p", "limits"), "only divides", None),
    ({"p": {"cascade": {}}}, ("p", "cascade"), "pass_rate", None),
    (
        {"p": {"cascade": {"pass_rate": 0.5, "check_j": -1}}},
        ("p", "cascade", "check_j"),
        "should be 0 or more",
        None,
    ),
    ({"p": {"canary": {}}}, ("p", "canary"), "which backend is new", None),
    ({"p": {"answer_budgets": [{"name": "x"}]}}, ("p", "answer_budgets", 0), "needs", None),
    ({"p": []}, ("p",), "should be a mapping", None),
    ({"p": {"objective": "ENERGY"}}, ("p", "objective"), "is none of", "energy"),
    ({"p": {"among": []}}, ("p", "among"), "an empty list", None),
    ({"p": {"limits": {"regions": [False]}}}, ("p", "limits", "regions"), "in quotes", None),
    (
        {"p": {"answer_budgets": [{"name": "x", "reasoning_effort": "lo"}]}},
        ("p", "answer_budgets", 0, "reasoning_effort"),
        "is none of",
        "low",
    ),
    (
        {"p": {"answer_budgets": [{"name": "x", "max_tokens": 9, "output_factor": 60}]}},
        ("p", "answer_budgets", 0),
        "output_factor",
        None,
    ),
    *(
        (
            {"p": {"rules": [{"when": {key: given}, "use": "pinned"}]}},
            ("p", "rules", 0, "when", key),
            says,
            None,
        )
        for key, given, says in (
            ("prompt_tokens", "> 50 %", "no share of anything"),
            ("intensity", "10-40 %", "no share of anything"),
            ("tag", [], "an empty list"),
            ("tag", 2026, "in quotes"),
        )
    ),
]


@pytest.mark.parametrize(("written", "path", "says", "nearest"), MISTAKES)
def test_a_mistake_is_named_with_its_path_and_the_nearest_word(
    written: dict[str, Any], path: tuple[str | int, ...], says: str, nearest: str | None
) -> None:
    with pytest.raises(PolicyError) as error:
        read_policies(written)
    assert error.value.path == path
    assert says in str(error.value)
    assert error.value.nearest == nearest


def test_policies_that_hand_over_in_a_circle_are_refused() -> None:
    circle = {"a": {"otherwise": "b"}, "b": {"rules": [{"when": {"task": "x"}, "use": "a"}]}}
    with pytest.raises(PolicyError, match="a -> b -> a"):
        read_policies(circle)


def test_all_mistakes_can_be_shown_at_once() -> None:
    written = {"a": {"objectiv": 1}, "b": {}, "c": {"limits": {"min_quality": 7}}}
    assert [e.path[0] for e in mistakes(written)] == ["a", "c"]
    assert mistakes({"a": {}}) == []
    assert mistakes(None) == []


def test_a_version_is_that_of_the_text_and_of_what_it_hands_over_to() -> None:
    def version(written: dict[str, Any], name: str = "p") -> str:
        return read_policies(written).specs[name].version

    assert version({"p": {"objective": "energy"}}) == version({"p": {"objective": "energy"}})
    assert version({"p": {"objective": "energy"}}) != version({"p": {"objective": "carbon"}})
    one = {"p": {"otherwise": "q"}, "q": {"objective": "money"}}
    two = {"p": {"otherwise": "q"}, "q": {"objective": "carbon"}}
    assert version(one) != version(two)
    assert len(version(one)) == 8


def test_texts_of_older_versions_are_kept_over_a_reload() -> None:
    old, new = read_policies({"p": {}}), read_policies({"p": {"objective": "carbon"}})
    kept = new.keeping(old)
    assert set(kept.texts) == {old.specs["p"].version, new.specs["p"].version}
    assert kept.policies is new.policies


@pytest.mark.parametrize("name", sorted(built_in()))
def test_no_built_in_policy_goes_beyond_the_model_asked_for(name: str) -> None:
    decision = built_in()[name].choose(request("big"), FLEET, Limits())
    assert set(decision.order) <= {"big@bf16", "big@fp8", "big@int4"}
    if name in STRATEGIES:
        assert "small" in built_in()[name].choose(request("auto"), FLEET, Limits()).order


def test_it_is_known_which_policies_must_see_every_backend() -> None:
    book = read_policies(
        {
            "plain": {"limits": {"min_quality": "97 % of asked"}},
            "any": {"among": "any"},
            "measured": {"limits": {"min_quality": "97 % of small"}},
            "ruled": {"rules": [{"when": {"task": "code"}, "among": "any"}]},
            "handing over": {"otherwise": "any"},
        }
    )
    beyond = {name for name in book.policies if book.looks_beyond(name)}
    assert beyond == {"any", "measured", "ruled", "handing over"}


def test_a_configured_policy_takes_the_place_of_a_preset() -> None:
    book = read_policies({"thrifty": {"objective": "latency"}})
    assert book.policies["thrifty"].choose(request("big"), FLEET, Limits()).chosen == "big@bf16"
    assert "balanced" in book.policies
    assert "least_energy" in book.policies


@pytest.mark.parametrize(("written", "share"), [(True, 0.01), (False, 0.0), ("5 %", 0.05)])
def test_a_hold_out_that_is_only_switched_on_is_of_one_percent(
    written: object, share: float
) -> None:
    keys = {"p": {"hold_out": written}}
    assert read_policies(keys).specs["p"].hold_out == pytest.approx(share)
    policy, count = read_policies(keys).policies["p"], 10_000
    draws = [(n + 0.5) / count for n in range(count)]
    arms = [policy.choose(request("big", draw=draw), FLEET, Limits()).arm for draw in draws]
    # drawn by a hash: within three standard errors
    off = 3 * (count * share * (1 - share)) ** 0.5
    assert abs(arms.count("hold_out") - count * share) <= off


def test_numbers_with_an_exponent_are_numbers() -> None:
    written = yaml.safe_load("p: {limits: {max_money_usd: 2e-4, max_energy_j: 1.5e3}}")
    assert written["p"]["limits"]["max_money_usd"] == "2e-4"  # as YAML 1.1 has it
    limits = read_policies(written).specs["p"].limits
    assert (limits.max_money_usd, limits.max_energy_j) == (0.0002, 1500.0)
