"""What the randomised hold-out says of the savings. Pure.

A share of requests, drawn at random, is served as if we were not there (policies/experiment).
Both arms' energy per answered request are compared, of those that have a figure: an unknown one is
no 0. Days are the blocks of a jackknife, since requests of a day are alike and sums of days are
what the ledger keeps.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from policies.experiment import t_80
from proxy.dashboard.account import Account
from proxy.dashboard.lines import unknown_requests
from proxy.dashboard.queries import ASKED, DAY_S

HELD_OUT, TREATED = "hold_out", "treated"


class HoldOut(msgspec.Struct, frozen=True, kw_only=True):
    """The experiment of a period. ``saved`` is 1 - treated / held out, of energy a request; None
    where days are too few to say."""

    requests: int  # held out, whatever became of them
    treated: int
    saved: float | None = None
    saved_low: float | None = None
    saved_high: float | None = None

    @property
    def share(self) -> float:
        """The part of the experiment's requests that was held out."""
        both = self.requests + self.treated
        return self.requests / both if both else 0.0

    @property
    def validates(self) -> bool:
        """Whether the range excludes zero: the saving is measured, not only estimated."""
        return self.saved_low is not None and self.saved_low > 0.0

    @property
    def refutes(self) -> bool:
        """Whether all of the range is below zero: the others took more."""
        return self.saved_high is not None and self.saved_high < 0.0

    @property
    def difference(self) -> tuple[float, float, float, str] | None:
        """By what part the others took less or more, its range, and "less" or "more"."""
        if self.saved is None or self.saved_low is None or self.saved_high is None:
            return None
        if self.saved < 0.0:
            return -self.saved, -self.saved_high, -self.saved_low, "more"
        return self.saved, self.saved_low, self.saved_high, "less"


def hold_out(account: Account) -> HoldOut | None:
    """The experiment of an account's requests; None when none were in either arm."""
    asked = account.asked
    if not len(asked):
        return None
    arm = np.array([d.arm for d in account.dims] or [""])[asked[:, 1]]
    if not np.isin(arm, (HELD_OUT, TREATED)).any():
        return None
    days = asked[:, 0] // DAY_S
    blocks = np.unique(days)
    answered = np.array([d.outcome == "ok" and bool(d.backend) for d in account.dims])[asked[:, 1]]
    figured = asked[:, ASKED["requests"]] - unknown_requests(account)
    drawn = [int(asked[arm == name, ASKED["requests"]].sum()) for name in (HELD_OUT, TREATED)]
    counts = np.zeros((2, len(blocks)))
    joules = np.zeros((2, len(blocks)))
    rest = asked[:, ASKED["energy_uj"]] - asked[:, ASKED["metered_estimate_uj"]]
    energy = asked[:, ASKED["metered_uj"]] + np.maximum(rest, 0)
    for place, name in enumerate((TREATED, HELD_OUT)):
        mine = (arm == name) & answered
        at = np.searchsorted(blocks, days[mine])
        np.add.at(counts[place], at, figured[mine])
        np.add.at(joules[place], at, energy[mine])
    found = HoldOut(requests=drawn[0], treated=drawn[1])
    return _with_saving(found, counts, joules)


def _with_saving(
    found: HoldOut, counts: NDArray[np.float64], joules: NDArray[np.float64]
) -> HoldOut:
    """The saving by the jackknife over days: each is left out once."""
    n, e = counts.sum(axis=1), joules.sum(axis=1)
    left_n, left_e = n[:, None] - counts, e[:, None] - joules
    blocks = counts.shape[1]
    if blocks < 3 or not (left_n > 0).all() or not (left_e[1] > 0).all():
        return found
    saved = 1.0 - (e[0] / n[0]) / (e[1] / n[1])
    each = 1.0 - (left_e[0] / left_n[0]) / (left_e[1] / left_n[1])
    half = t_80(blocks) * math.sqrt(
        (blocks - 1) / blocks * float(((each - each.mean()) ** 2).sum())
    )
    return msgspec.structs.replace(
        found, saved=float(saved), saved_low=float(saved - half), saved_high=float(saved + half)
    )
