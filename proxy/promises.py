"""The running account of each promise of an average quality: what is owed, by team and policy.

Policies are pure; what they owe comes with each request (policies/guarantee.py says how it is
reckoned). Each replica keeps its own account: where every one keeps the promise, all do.
"""

from __future__ import annotations

import json
from pathlib import Path

from meters.whole_file import write_whole
from policies.guarantee import FIRST_DEBT


class Promises:
    """What is owed. Used from the event loop only."""

    def __init__(self) -> None:
        self.debts: dict[tuple[str, str], float] = {}  # (team, policy) -> quality owed

    def debt(self, team: str, policy: str) -> float:
        """The quality that is owed; more than nothing at the start."""
        return self.debts.get((team, policy), FIRST_DEBT)

    def begin(self, team: str, policy: str, debt: float) -> None:
        """A promise begins, owing that, unless it has begun."""
        self.debts.setdefault((team, policy), debt)

    def gave(self, team: str, policy: str, promised: float, quality: float) -> None:
        """An answer of that expected quality was given."""
        owed = self.debt(team, policy) + promised - quality
        self.debts[team, policy] = max(0.0, owed)

    def corrected(self, team: str, policy: str, expected: float, score: float) -> None:
        """An answer that was booked with its expected quality has been scored."""
        if (team, policy) in self.debts:
            self.debts[team, policy] = max(0.0, self.debts[team, policy] + expected - score)

    def save(self, path: Path) -> None:
        """Keep what is owed. Raises OSError."""
        rows = [[team, policy, owed] for (team, policy), owed in self.debts.items()]
        write_whole(path, json.dumps(rows).encode())

    def load(self, path: Path) -> None:
        """Take what was kept. Raises OSError or ValueError."""
        if path.exists():
            for team, policy, owed in json.loads(path.read_text()):
                self.debts[str(team), str(policy)] = float(owed)
