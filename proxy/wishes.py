"""What a request's headers ask of Joulegate: policy, limits, tags, cache. They only tighten."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec

from estimators.text import TASKS
from policies.types import Limits
from proxy.errors import invalid_header

MAX_TAGS = 16
MAX_TAG_LENGTH = 64
MAX_SESSION_LENGTH = 256
MAX_QUALITIES = 32
_SHARE = re.compile(r"[0-9]*\.?[0-9]{1,17}")


class Wishes(msgspec.Struct, frozen=True):
    """A caller's wishes for one request."""

    policy: str | None = None
    ours: bool = False  # the policy is what a budget falls back to, not what the caller chose
    limits: Limits | None = None
    tags: tuple[str, ...] = ()
    session: str | None = None
    no_cache: bool = False  # do not answer from the cache
    no_store: bool = False  # do not keep the answer
    max_age_s: float | None = None  # answer from the cache only with what is younger
    task: str | None = None  # the kind of task, instead of what its words look like
    usage: bool = False  # our figures in the body too
    qualities: tuple[tuple[str, float], ...] = ()  # of backends or groups, instead of predictions


NOTHING = Wishes()
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age\s*=\s*\"?(\d{1,10})\b")
_NAMES = frozenset(
    {
        b"x-joulegate-policy",
        b"x-joulegate-min-quality",
        b"x-joulegate-max-energy-j",
        b"x-joulegate-max-ttft-ms",
        b"x-joulegate-quality",
        b"x-joulegate-tags",
        b"x-joulegate-task",
        b"x-joulegate-usage",
        b"x-session-id",
        b"cache-control",
    }
)


def wishes_in(headers: Mapping[bytes, bytes]) -> Wishes:
    """The wishes in a request's headers. Raises ApiError 400 for one that cannot be read."""
    given = _NAMES.intersection(headers)
    if not given:
        return NOTHING
    text = {name: headers[name].decode("latin-1").strip() for name in given}
    control = text.get(b"cache-control", "").lower()
    energy = _number(text, b"x-joulegate-max-energy-j")
    quality = _number(text, b"x-joulegate-min-quality")
    ttft_ms = _number(text, b"x-joulegate-max-ttft-ms")
    if quality is not None and quality > 1:
        raise invalid_header("x-joulegate-min-quality", "should be between 0 and 1.")
    limits = None
    if energy is not None or quality is not None or ttft_ms is not None:
        limits = Limits(
            min_quality=quality,
            max_energy_j=energy,
            max_ttft_s=None if ttft_ms is None else ttft_ms / 1000,
        )
    return Wishes(
        policy=text.get(b"x-joulegate-policy") or None,
        limits=limits,
        tags=_tags(text.get(b"x-joulegate-tags", "")),
        session=_session(text.get(b"x-session-id", "")),
        no_cache="no-cache" in control or "no-store" in control,
        no_store="no-store" in control,
        max_age_s=_max_age_s(control),
        task=_task(text.get(b"x-joulegate-task", "")),
        usage=_yes(text.get(b"x-joulegate-usage", "")),
        qualities=_qualities(text.get(b"x-joulegate-quality", "")),
    )


def _yes(text: str) -> bool:
    if text.lower() not in ("", "true", "false"):
        raise invalid_header("x-joulegate-usage", "should be true or false.")
    return text.lower() == "true"


def _task(text: str) -> str | None:
    if text and text not in TASKS:
        raise invalid_header("x-joulegate-task", f"should be one of {', '.join(TASKS)}.")
    return text or None


def _qualities(text: str) -> tuple[tuple[str, float], ...]:
    found: list[tuple[str, float]] = []
    for part in text.split(",") if text else ():
        name, _, value = part.strip().rpartition("=")
        quality = float(value) if _SHARE.fullmatch(value) else math.nan
        if not name or not 0.0 <= quality <= 1.0 or len(found) >= MAX_QUALITIES:
            raise invalid_header(
                "x-joulegate-quality",
                f"should be at most {MAX_QUALITIES} like backend=0.7, separated by commas.",
            )
        found.append((name, quality))
    return tuple(found)


def _max_age_s(control: str) -> float | None:
    """What ``max-age`` says; None where it is absent or no number."""
    found = _MAX_AGE.search(control)
    return float(found[1]) if found else None


def _number(text: Mapping[bytes, str], name: bytes) -> float | None:
    given = text.get(name)
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise invalid_header(name.decode(), f"should be a number of at least 0, not {given!r}.")
    return value


def _session(text: str) -> str | None:
    if len(text) > MAX_SESSION_LENGTH:
        raise invalid_header("x-session-id", f"takes at most {MAX_SESSION_LENGTH} characters.")
    return text or None


def _tags(text: str) -> tuple[str, ...]:
    tags = tuple(dict.fromkeys(tag.strip() for tag in text.split(",") if tag.strip()))
    if len(tags) > MAX_TAGS or any(len(tag) > MAX_TAG_LENGTH for tag in tags):
        raise invalid_header(
            "x-joulegate-tags",
            f"takes at most {MAX_TAGS} tags of at most {MAX_TAG_LENGTH} characters.",
        )
    return tags
