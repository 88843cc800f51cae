"""Requests that schemathesis makes from our OpenAPI description, and what is wrong with answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode

from proxy.openapi import document
from tests.joulegate_server import ADMIN

MODELS = ("tiny", "tiny-0", "auto", "nobody")
PATIENCE_S = 20.0  # longer than any limit of the server under test: then it hangs


@dataclass
class Tally:
    """What became of the cases."""

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def run(base_url: str, cases: int, *, seed_of: int = 1) -> Tally:
    """Send ``cases`` requests or some more, good and bad ones alike, over all operations."""
    schema = schemathesis.openapi.from_dict(document(MODELS))
    operations = [found.ok() for found in schema.get_all_operations()]
    tally = Tally()
    each = max(1, round(cases / len(operations) / 2))
    with requests.Session() as session:
        session.headers["authorization"] = f"Bearer {ADMIN}"
        while tally.cases < cases:  # some operations have fewer than their part
            before = tally.cases
            for operation in operations:
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    _cases(
                        operation,
                        mode,
                        each,
                        seed_of,
                        lambda case: _try(case, base_url, session, tally),
                    )
            seed_of += 1
            each = max(1, (cases - tally.cases) // len(operations))
            if tally.cases == before:
                break
    return tally


def _cases(
    operation: Any, mode: GenerationMode, count: int, seed_of: int, send: Callable[[Any], None]
) -> None:
    try:
        strategy = operation.as_strategy(generation_mode=mode)
    except Exception:  # an operation that takes nothing cannot be asked wrongly
        return

    @seed(seed_of)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(case: Any) -> None:
        send(case)

    try:
        each()
    except Exception as error:
        if "Unsatisfiable" not in type(error).__name__ and "Skip" not in type(error).__name__:
            raise


def _try(case: Any, base_url: str, session: requests.Session, tally: Tally) -> None:
    tally.cases += 1
    label = f"{case.method} {case.path}"
    try:
        answer = case.call(base_url=base_url, session=session, timeout=PATIENCE_S)
    except requests.Timeout:
        tally.wrong.append(f"{label} hangs: {case.as_curl_command()[:500]}")
        return
    except requests.exceptions.InvalidHeader:
        return  # the client itself refuses to send it
    except requests.ConnectionError as error:
        tally.wrong.append(f"{label}: {error}: {case.as_curl_command()[:500]}")
        return
    tally.statuses[answer.status_code] += 1
    tally.slowest_s = max(tally.slowest_s, answer.elapsed)
    said = _wrong_with(answer.status_code, answer.content, case.method)
    if said is not None:
        tally.wrong.append(f"{label}: {said}: {case.as_curl_command()[:500]}")


def _wrong_with(status: int, body: bytes, method: str) -> str | None:
    if status >= 500:
        return f"status {status}: {body[:300]!r}"
    if status >= 400 and method != "HEAD":
        try:
            error = json.loads(body)["error"]
            if {"message", "type", "param", "code"} <= set(error) and error["message"]:
                return None
        except (ValueError, TypeError, KeyError):
            if status == 422 and body.startswith(b'{"object":"joulegate.decision"'):
                return None  # /v1/route: a decision that chose nobody, with the reasons
        return f"not an error of OpenAI's: {status} {body[:200]!r}"
    return None
