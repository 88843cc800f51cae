"""What the proxy does with windows that agents send: refuse, repair or accept, by rule.

Each window is looked at on its own, in this order; the first rule that applies decides:

| what is wrong | what happens |
|---|---|
| the token is wrong or missing | 401 for the whole batch |
| the batch is no JSON of windows, or too large | 400, 413 |
| the node is not known, or not this token's | refused: unknown_node, foreign_node |
| not finite, negative, or it ends before it starts | refused: negative, interval |
| more power than a rack can draw | refused: implausible |
| evidence that a meter cannot give, or metered of a simulated engine | refused: evidence |
| the agent's clock is off by more than 5 s | repaired: the batch is moved by the difference |
| it comes late of an agent that has measured its clock | nothing is moved: it was on its way |
| it still lies in the future, or 45 days back | refused: future, too_old |
| seen before, by its id | duplicate: nothing happens |
| it overlaps an accepted one by a clock's error | repaired: it begins where that one ends |
| it overlaps an accepted one by more | refused: overlapping |
| more cached than prompt tokens | repaired: as many |
| it is older than accepted ones and overlaps none | accepted, counted as out_of_order |

A refused window never enters the books, so they balance without it; its joules are counted here.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from math import inf, isfinite

import msgspec

from meters.node_book import NodeBook, NodeStatus
from meters.types import EngineWork, Evidence, Window
from meters.unreadable import UNREADABLE
from meters.windows import MAX_POWER_W

MAX_BATCH_BYTES = 8_000_000
CLOCK_TOLERANCE_S = 5.0
OVERLAP_TOLERANCE_S = 0.05
MAX_AGE_S = 45 * 86_400.0
_GIVABLE = (Evidence.METERED, Evidence.SIMULATED, Evidence.MODELLED)


class Submission(msgspec.Struct, kw_only=True, frozen=True):
    """One POST of an agent."""

    windows: list[Window]
    sent_s: float | None = None  # when, by the agent's idea of the proxy's clock
    clock_error_s: float | None = None  # the most by which that idea can be wrong


class RefusedWindow(msgspec.Struct, frozen=True):
    window_id: str
    reason: str


class Verdict(msgspec.Struct, kw_only=True):
    """What became of a batch: the answer's body."""

    accepted: int = 0
    duplicates: int = 0
    repaired: dict[str, int] = {}
    refused: list[RefusedWindow] = []
    message: str | None = None


class WindowIntake:
    """Takes agents' windows in. Safe for several threads.

    ``tokens`` maps each agent token to the nodes it may speak for, or to None for all.
    ``known_nodes`` are the nodes some backend names. ``clock`` gives Unix time. ``on_window`` gets
    each accepted window once, in order of arrival; when it raises, the batch is answered 503, is
    sent again, and what was handed over is then a duplicate.
    """

    def __init__(
        self,
        tokens: Mapping[str, Collection[str] | None],
        known_nodes: Collection[str],
        clock: Callable[[], float],
        on_window: Callable[[Window], None],
        simulated_nodes: Collection[str] = (),
    ) -> None:
        """``simulated_nodes``: those of simulated engines, where nothing can be metered."""
        self._tokens = [(_digest(t), None if n is None else set(n)) for t, n in tokens.items()]
        self.known_nodes, self.simulated_nodes = known_nodes, simulated_nodes
        self._clock, self._on_window = clock, on_window
        self._decoder, self._encoder = msgspec.json.Decoder(Submission), msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._books: dict[str, NodeBook] = {}
        self.counts: Counter[tuple[str, str]] = Counter()  # (outcome, reason) -> windows
        self.refused_j: Counter[str] = Counter()  # reason -> joules that entered no book

    def accept(self, token: str | None, payload: bytes) -> tuple[int, bytes]:
        """One POST to /meters/windows: its status and JSON body."""
        allowed = self._who(token)
        if allowed is None:
            self.counts["refused", "wrong_token"] += 1
            return self._say(401, "The meter's token is wrong. Set the one the proxy's config has.")
        if len(payload) > MAX_BATCH_BYTES:
            self.counts["refused", "too_large"] += 1
            return self._say(413, f"A batch has at most {MAX_BATCH_BYTES} bytes.")
        try:
            submission = self._decoder.decode(payload)
        except UNREADABLE as error:
            self.counts["refused", "malformed"] += 1
            return self._say(400, f"Not a batch of windows: {error}.")
        verdict = Verdict()
        with self._lock:
            now_s = self._clock()
            off_s = None if submission.sent_s is None else submission.sent_s - now_s
            if off_s is not None and _was_under_way(off_s, submission.clock_error_s):
                off_s = None
            move_s = -off_s if off_s and CLOCK_TOLERANCE_S < abs(off_s) < inf else 0.0
            for window in submission.windows:
                error_s = submission.clock_error_s or 0.0
                handed = self._take(window, allowed, now_s, move_s, error_s, verdict)
                if not handed:
                    return self._say(503, "The windows cannot be kept just now. Send them again.")
                self._heard(window, now_s, off_s)
        return 200, self._encoder.encode(verdict)

    def time(self, token: str | None) -> tuple[int, bytes]:
        """One GET of /meters/clock: the proxy's Unix time, for agents to measure theirs by."""
        if self._who(token) is None:
            return self._say(401, "The meter's token is wrong. Set the one the proxy's config has.")
        return 200, self._encoder.encode({"unix_s": self._clock()})

    def remember(self, window: Window) -> None:
        """Know a window of the ledger again after a restart, without handing it over."""
        with self._lock:
            self._book(window.node).keep(window)

    def nodes(self) -> dict[str, NodeStatus]:
        """The nodes heard of since the start."""
        with self._lock:
            return {n: b.status for n, b in self._books.items() if b.status.last_heard_s}

    def silent(self) -> dict[str, float | None]:
        """The nodes of agents that have not been heard of since the start, with the end of their
        newest window where that is remembered."""
        with self._lock:
            named = {node for _, nodes in self._tokens for node in nodes or ()}
            expected = {node: self._books.get(node) for node in named & set(self.known_nodes)}
            return {
                node: None if book is None else book.status.last_end_s
                for node, book in expected.items()
                if book is None or not book.status.last_heard_s
            }

    # --- the rules

    def _take(
        self,
        window: Window,
        allowed: set[str],
        now_s: float,
        move_s: float,
        clock_error_s: float,
        verdict: Verdict,
    ) -> bool:
        """Decide on one window; False when it could not be handed over."""
        reason = self._why_not(window, allowed)
        if reason is None and move_s:
            window = _moved(window, move_s)
        if reason is None and window.end_s > now_s + CLOCK_TOLERANCE_S:
            reason = "future"
        if reason is None and window.end_s < now_s - MAX_AGE_S:
            reason = "too_old"
        if reason in ("unknown_node", "foreign_node"):
            self._refuse(window, reason, verdict)
            return True
        book = self._book(window.node)
        if reason is not None:
            book.came(window, refused=True)
            self._refuse(window, reason, verdict)
            return True
        if book.has(window.window_id):
            verdict.duplicates += 1
            self.counts["duplicate", ""] += 1
            return True
        overlap_s = book.overlap_s(window)
        if overlap_s > 0:
            tolerance_s = max(OVERLAP_TOLERANCE_S, 2 * clock_error_s)
            tolerance_s = min(tolerance_s, (window.end_s - window.start_s) / 2)
            trimmed = book.trimmed(window)
            if overlap_s > tolerance_s or trimmed is None:
                book.came(window, refused=True)
                self._refuse(window, "overlapping", verdict)
                return True
            window = trimmed
            self._repair("trimmed", verdict)
        if move_s:
            self._repair("clock", verdict)
        cached, prompt = window.cached_prompt_tokens, window.prompt_tokens
        if cached is not None and prompt is not None and cached > prompt:
            window = msgspec.structs.replace(window, cached_prompt_tokens=prompt)
            self._repair("cached_tokens", verdict)
        try:
            self._on_window(window)
        except Exception:
            # whatever keeps it from being kept: the agent has it, and sends it again
            self.counts["failed", "not_kept"] += 1
            return False
        if book.is_older(window):
            self.counts["accepted", "out_of_order"] += 1
        else:
            self.counts["accepted", ""] += 1
        book.keep(window)
        verdict.accepted += 1
        return True

    def _why_not(self, window: Window, allowed: set[str]) -> str | None:
        if window.node not in self.known_nodes:
            return "unknown_node"
        if allowed is not _ALL and window.node not in allowed:
            return "foreign_node"
        numbers = [
            window.energy_j,
            window.idle_power_w,
            window.prompt_tokens,
            window.cached_prompt_tokens,
            window.generated_tokens,
            window.steps,
            window.running,
            window.waiting,
            window.flops,
            window.read_bytes,
            window.resolution_j,
            window.host_energy_j,
            *(n for did in window.engines for n in _figures(did)),
        ]
        if any(n is not None and (not isfinite(n) or n < 0) for n in numbers):
            return "negative"
        if not (isfinite(window.start_s) and isfinite(window.end_s)):
            return "interval"
        seconds = window.end_s - window.start_s
        if seconds <= 0 or not window.window_id:
            return "interval"
        if window.energy_j > MAX_POWER_W * seconds:
            return "implausible"
        if window.node in self.simulated_nodes and window.evidence is not Evidence.SIMULATED:
            return "evidence"
        return None if window.evidence in _GIVABLE else "evidence"

    def _who(self, token: str | None) -> set[str] | None:
        """The nodes a token may speak for; _ALL for any, None for a wrong token."""
        given = _digest(token or "")
        found: set[str] | None = None
        # every token is compared, each in constant time: how long it takes says nothing
        for digest, nodes in self._tokens:
            if hmac.compare_digest(digest, given):
                found = _ALL if nodes is None else nodes
        return found if token else None

    # --- the books

    def _book(self, node: str) -> NodeBook:
        return self._books.setdefault(node, NodeBook())

    def _heard(self, window: Window, now_s: float, off_s: float | None) -> None:
        if window.node not in self.known_nodes:
            return
        status = self._book(window.node).status
        status.last_heard_s, status.clock_off_s, status.meter = now_s, off_s, window.meter

    def _refuse(self, window: Window, reason: str, verdict: Verdict) -> None:
        verdict.refused.append(RefusedWindow(window.window_id, reason))
        self.counts["refused", reason] += 1
        if isfinite(window.energy_j) and window.energy_j > 0:
            self.refused_j[reason] += window.energy_j  # type: ignore[assignment]

    def _repair(self, what: str, verdict: Verdict) -> None:
        verdict.repaired[what] = verdict.repaired.get(what, 0) + 1
        self.counts["repaired", what] += 1

    def _say(self, status: int, message: str) -> tuple[int, bytes]:
        return status, self._encoder.encode(Verdict(message=message))


# a token that may speak for every node
_ALL: set[str] = {"*"}


def _was_under_way(off_s: float, clock_error_s: float | None) -> bool:
    """Whether a batch that seems to come from the past waited, in the queue of a proxy that is
    just starting, say. An agent that has measured its clock against ours knows what time it is."""
    return (
        off_s < -CLOCK_TOLERANCE_S
        and clock_error_s is not None
        and clock_error_s <= CLOCK_TOLERANCE_S
    )


def _figures(did: EngineWork) -> tuple[float | None, ...]:
    return (
        did.prompt_tokens,
        did.cached_prompt_tokens,
        did.generated_tokens,
        did.steps,
        did.flops,
        did.read_bytes,
    )


def _moved(window: Window, by_s: float) -> Window:
    return msgspec.structs.replace(window, start_s=window.start_s + by_s, end_s=window.end_s + by_s)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
