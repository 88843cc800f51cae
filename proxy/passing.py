"""How many first answers of each cascade passed their checks, in this replica's life."""

from __future__ import annotations

from policies.cascade import seen_pass_rate


class Passing:
    """Counts by policy. Used from the event loop only."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}  # policy -> (passed, checked)

    def checked(self, policy: str, passed: bool) -> None:
        """A first answer was checked."""
        before, checked = self._seen.get(policy, (0, 0))
        self._seen[policy] = (before + passed, checked + 1)

    def rate(self, policy: str, guess: float) -> float:
        """The share expected to pass: the config's guess, outweighed by what was seen."""
        return seen_pass_rate(guess, *self._seen.get(policy, (0, 0)))
