"""Who is calling: keys from the config (and the store) become callers, by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import msgspec

from policies.limits import tighten
from policies.types import Limits
from proxy.errors import ApiError, invalid_api_key, too_many_failed_keys
from proxy.failed_keys import FailedKeys
from proxy.settings import Budget, KeyRules, KeySettings, LimitSettings, Settings, Team

RawHeaders = Iterable[tuple[bytes, bytes]]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The holder of a key: one team, one role, within its limits."""

    team: str
    key_id: str | None = None  # the first hex digits of the key's hash; safe to show
    earlier: tuple[str, ...] = ()  # ids of the keys that this one replaced, the first one first
    role: str = "member"  # admin | lead | member
    project: str | None = None
    organisation: str | None = None
    policy: str | None = None
    policies: tuple[str, ...] | None = None  # those it may choose by itself; None: any
    limits: Limits = Limits()
    share_cache: bool = False
    similar_answers: float | None = None  # least likeness of prompts answered alike
    timezone: str = "UTC"
    budgets: tuple[Budget, ...] = ()  # of its team, in the team's time zone
    key_budgets: tuple[Budget, ...] = ()  # of the key itself, with those it replaced
    expires_s: float | None = None  # Unix time
    judged_share: float = 0.0  # of its chats, that are answered twice and judged
    answer_budgets: bool = False  # policies may change its requests to ask for less
    user_groups: bool = False  # whom its requests name is kept as a pseudonym
    judged_by: tuple[str, ...] = ()  # where its prompts may be sent to for that


UNRULED = KeyRules()
ANYONE = Caller(team="default", role="admin", answer_budgets=True)


def digest(key: str | bytes) -> str:
    """A key's SHA-256 in hexadecimal: what is stored and compared."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def hash_of(key: KeySettings) -> str:
    """The SHA-256 of a key of the config file."""
    return key.sha256.lower() if key.sha256 else digest(key.key or "")


def limits_of(settings: LimitSettings) -> Limits:
    """A team's configured limits as policies understand them."""
    return Limits(
        min_quality=settings.min_quality,
        max_energy_j=settings.max_energy_j,
        max_carbon_g=settings.max_carbon_g,
        max_money_usd=settings.max_money_usd,
        max_ttft_s=settings.max_ttft_s,
        max_latency_s=settings.max_latency_s,
        regions=None if settings.regions is None else tuple(settings.regions),
        backends=None if settings.backends is None else tuple(settings.backends),
    )


class KeyRing:
    """Looks a key up in O(1). With no keys at all, anyone may call (loopback only)."""

    def __init__(self, callers: Mapping[str, Caller], failed: FailedKeys | None = None) -> None:
        self._callers = dict(callers)
        self.failed = FailedKeys(0) if failed is None else failed
        self.open = not self._callers

    def replace(self, callers: Mapping[str, Caller]) -> None:
        """Use these keys from now on; an open ring stays open only while there are none."""
        self._callers = dict(callers)
        self.failed.look_again()
        # once there were keys, revoking the last one must not let everybody in
        self.open = self.open and not self._callers

    def callers(self) -> list[Caller]:
        """The holders of all keys."""
        return list(self._callers.values())

    def lookup(self, key: str | bytes, now_s: float) -> Caller | None:
        """The holder of that key at that Unix time, or None. Looks up by hash, so that the time
        it takes says nothing about any key."""
        hashed = digest(key)
        caller = self._callers.get(hashed)
        if caller is None:
            return None
        if caller.expires_s is not None and now_s >= caller.expires_s:
            return None
        return caller

    def lookup_from(self, address: str, key: bytes, now_s: float) -> Caller | None:
        """Likewise for a key that came from that address. Raises ApiError 429, without looking,
        after too many wrong ones."""
        wait_s = self.failed.wait_s(address, key)
        if wait_s is not None:
            raise too_many_failed_keys(wait_s)
        caller = self.lookup(key, now_s)
        if caller is None:
            self.failed.note(address, key)
        return caller

    def by_id(self, key_id: str, now_s: float) -> Caller | None:
        """The holder of the key with that public prefix, while it is good."""
        for caller in self._callers.values():
            if caller.key_id == key_id:
                expired = caller.expires_s is not None and now_s >= caller.expires_s
                return None if expired else caller
        return None

    def caller(self, headers: RawHeaders, now_s: float, address: str = "") -> Caller:
        """The caller of a request from that address. Raises ApiError 401, 429."""
        if self.open:
            return ANYONE
        key = key_in(headers)
        if key is None:
            raise missing_key()
        caller = self.lookup_from(address, key, now_s)
        if caller is None:
            raise invalid_api_key(
                "Incorrect API key provided. Ask whoever runs Joulegate for a key of your team."
            )
        return caller


def missing_key() -> ApiError:
    return invalid_api_key(
        "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY', "
        "'x-api-key' or 'api-key'."
    )


def key_in(headers: RawHeaders) -> bytes | None:
    """The key in a request's raw ASGI headers, from any of the three places clients use."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer" and key.strip():
                return key.strip()
        elif name in (b"x-api-key", b"api-key") and value:
            return value
    return None


def from_settings(settings: Settings) -> KeyRing:
    """The key ring of a config file."""
    failed = FailedKeys(settings.server.failed_keys_per_minute)
    return KeyRing(callers_in(settings), failed)


def callers_in(settings: Settings) -> dict[str, Caller]:
    """The keys of a config file, by hash."""
    callers: dict[str, Caller] = {}
    for name, team in settings.teams.items():
        callers |= callers_of_team(name, team)
    return callers


def callers_of_team(name: str, team: Team) -> dict[str, Caller]:
    """The keys that the config file gives a team, by hash."""
    callers: dict[str, Caller] = {}
    for entry in team.keys:
        key = entry if isinstance(entry, KeySettings) else KeySettings(key=entry)
        hashed = hash_of(key)
        callers[hashed] = caller_of(
            name,
            team,
            key_id=hashed[:12],
            role=key.role,
            project=key.project,
            expires_s=None if key.expires is None else unix_time(key.expires),
            rules=key.rules,
        )
    return callers


def caller_of(
    name: str,
    team: Team,
    *,
    key_id: str,
    role: str,
    project: str | None,
    expires_s: float | None,
    rules: KeyRules = UNRULED,
    earlier: tuple[str, ...] = (),
) -> Caller:
    """The holder of one key of a team; ``rules`` can only tighten what the team may do."""
    return Caller(
        team=name,
        key_id=key_id,
        earlier=earlier,
        role=role,
        project=project,
        organisation=team.organisation,
        policy=team.policy,
        policies=None if team.policies is None else tuple(team.policies),
        limits=tighten(limits_of(team.limits), limits_of(rules.limits)),
        share_cache=team.share_cache,
        similar_answers=team.similar_answers,
        timezone=team.timezone,
        budgets=tuple(team.budgets),
        key_budgets=tuple(rules.budgets),
        expires_s=expires_s,
        judged_share=team.judging.share,
        answer_budgets=team.answer_budgets,
        user_groups=team.user_groups,
        judged_by=tuple(team.judging.backends),
    )


def unix_time(text: str) -> float:
    """The Unix time of an ISO 8601 time; UTC where it names no zone. Raises ValueError."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
