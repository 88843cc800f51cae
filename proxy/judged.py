"""What judging knows: the games so far by kind of task, what was expected of each backend, and the
day's energy. No prompt, answer or request id is in it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from estimators.pairwise import Game, Judged, judged
from meters.whole_file import write_whole

FORMAT = 1
MOST_GAMES = 2_000  # of one kind of task; the oldest are forgotten
_SLOW = 0.05  # how fast what was expected of a backend follows
DAY_S = 86_400.0


class JudgedBook:
    """Games, expectations and energy. Raises ValueError when loaded from something else."""

    def __init__(self) -> None:
        self.games: dict[str, deque[Game]] = {}
        self.expected: dict[str, dict[str, float]] = {}  # by task and backend, 0..1
        self.kinds: dict[str, str] = {}  # what each backend was when it was last judged
        self.day = 0
        self.spent_j = 0.0
        self.prompts = 0

    def notice(self, backend: str, kind: str) -> None:
        """Forget a backend's games when something else answers behind its name."""
        if self.kinds.setdefault(backend, kind) == kind:
            return
        self.kinds[backend] = kind
        for task, games in self.games.items():
            kept = [game for game in games if backend not in game[:2]]
            self.games[task] = deque(kept, maxlen=MOST_GAMES)
            self.expected[task].pop(backend, None)

    def expect(self, task: str, backend: str, quality: float) -> None:
        """Note what was predicted of a backend without judging."""
        known = self.expected.setdefault(task, {})
        before = known.get(backend, quality)
        known[backend] = before + _SLOW * (quality - before)

    def enter(self, task: str, games: Sequence[Game]) -> None:
        """Take the games of one more prompt in."""
        self.prompts += 1
        kept = self.games.setdefault(task, deque(maxlen=MOST_GAMES))
        kept.extend(game._replace(prompt=self.prompts) for game in games)

    def standing(self, task: str) -> list[Judged]:
        """What the games of a kind of task say of each backend in them, best first."""
        return judged(list(self.games.get(task, ())), dict(self.expected.get(task, {})))

    def left_j(self, limit_j: float, unix_s: float) -> float:
        """What may still be spent on this UTC day."""
        day = int(unix_s // DAY_S)
        if day != self.day:
            self.day, self.spent_j = day, 0.0
        return limit_j - self.spent_j

    def save(self, path: Path) -> None:
        """Write everything, whole or not at all. Raises OSError."""
        state = {
            "format": FORMAT,
            "games": {task: list(games) for task, games in self.games.items()},
            "expected": self.expected,
            "kinds": self.kinds,
            "day": self.day,
            "spent_j": self.spent_j,
            "prompts": self.prompts,
        }
        write_whole(path, json.dumps(state).encode())

    @classmethod
    def load(cls, path: Path) -> JudgedBook:
        """Read what save wrote. Raises OSError, or ValueError for anything else."""
        state: Any = json.loads(path.read_text(encoding="utf-8"))
        book = cls()
        try:
            if state["format"] != FORMAT:
                raise ValueError(f"{path} is of another version")
            for task, games in state["games"].items():
                book.games[task] = deque((Game(*game) for game in games), maxlen=MOST_GAMES)
            book.expected = {task: dict(known) for task, known in state["expected"].items()}
            book.kinds = dict(state["kinds"])
            book.day, book.spent_j = int(state["day"]), float(state["spent_j"])
            book.prompts = int(state["prompts"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no record of judging ({error!r})") from None
        return book
