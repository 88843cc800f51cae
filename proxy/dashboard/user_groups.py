"""What groups of users take, never what one does. Pure.

Users are ordered by their grams and cut into quarters (thirds, halves, one) of at least five users
each, none of whom is more than half of a group; where that cannot be, nothing is shown. Periods
are whole months that are over, so that nobody can take yesterday's figures from today's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from meters.exact import apportion
from proxy.dashboard.account import Account
from proxy.dashboard.lines import IDLE_LINE, SUMMED, Line, add, by_dim
from proxy.dashboard.periods import Period
from proxy.dashboard.queries import UserUse

LEAST_USERS = 5
MOST_GROUPS = 4
LARGEST_PART = 0.5  # of a group's grams, for one user
NO_USER = "(no user given)"
_COUNTED = SUMMED[:5]

RULES = (
    f"Groups of at least {LEAST_USERS} users, ordered by their grams; no user is more than half of "
    "a group. The energy and grams of each model, key and set of tags are divided among its users "
    "by the estimates of their requests. Whole months that are over."
)


def shown_for(period: Period, now_s: float) -> bool:
    """Whether a period's users may be grouped: a month or a year that is over."""
    return bool(re.fullmatch(r"\d{4}(-\d{2})?", period.name)) and period.end_s <= now_s


def grouped(
    account: Account, dim_ids: Sequence[int], uses: Sequence[UserUse]
) -> tuple[Line, ...] | None:
    """Lines of groups that sum to the account's total; None where no groups are large enough.

    ``dim_ids`` are the numbers of the account's combinations in the ledger.
    """
    by_combination: dict[int, list[UserUse]] = defaultdict(list)
    for use in uses:
        by_combination[use.dim_id].append(use)
    *lines, idle = by_dim(account)
    of_user: dict[str, list[Line]] = defaultdict(list)
    for dim_id, line in zip(dim_ids, lines, strict=True):
        if any(getattr(line, field) for field in SUMMED):
            for user, part in _divided(line, by_combination.get(dim_id, [])):
                of_user[user].append(part)
    nobody = of_user.pop("", [])
    users = sorted((add(user, parts) for user, parts in of_user.items()), key=_order)
    for count in range(min(MOST_GROUPS, len(users) // LEAST_USERS), 0, -1):
        edges = [len(users) * n // count for n in range(count + 1)]
        groups = [users[a:b] for a, b in pairwise(edges)]
        if not any(_dominated(group) for group in groups):
            found = [add(_name(n, count, len(g)), g) for n, g in enumerate(groups, 1)]
            rest = [add(NO_USER, nobody)] if nobody else []
            if any(getattr(idle, field) for field in SUMMED):
                rest.append(add(IDLE_LINE, [idle]))
            return (*reversed(found), *rest)
    return None


def _order(line: Line) -> tuple[int, int, str]:
    return line.operational_ug, line.requests, line.key


def _name(number: int, count: int, users: int) -> str:
    return f"group {number} of {count}, {users} users"


def _dominated(group: Sequence[Line]) -> bool:
    whole = sum(line.operational_ug for line in group)
    return whole > 0 and max(line.operational_ug for line in group) > LARGEST_PART * whole


def _divided(line: Line, uses: Sequence[UserUse]) -> list[tuple[str, Line]]:
    """A line in parts for its users: counts by requests, energy and grams by estimates."""
    if not uses:
        return [("", line)]
    requests = [float(use.requests) for use in uses]
    energy = [float(use.energy_uj) for use in uses]
    values: list[dict[str, int]] = [{} for _ in uses]
    for field in SUMMED:
        weights = requests if field in _COUNTED or not sum(energy) else energy
        amount = getattr(line, field)
        parts = apportion(amount, [amount * w / sum(weights) for w in weights])
        for value, part in zip(values, parts, strict=True):
            value[field] = part
    return [
        (use.user, Line(key=use.user, **value)) for use, value in zip(uses, values, strict=True)
    ]
