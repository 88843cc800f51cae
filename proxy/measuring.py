"""Which backends' energy is read here, what their windows teach, and how windows are divided."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from estimators.types import Backend
from meters.types import Activity, Attribution, StepPhysics, Window
from proxy.accounts import undivided
from proxy.backends import Pool
from proxy.settings import Settings

log = logging.getLogger("joulegate.measuring")


class Learning:
    """Each engine's step physics: the prior until its own windows taught better."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.prior: Callable[[Backend], StepPhysics | None] = lambda _: None

    def physics(self, node: str) -> StepPhysics | None:
        """The physics of the engine on a node."""
        for engine in self.pool.engines:
            if engine.node == node:
                return self.learnt(engine.name) or self.prior(engine.facts)
        return None

    def learnt(self, backend: str) -> StepPhysics | None:
        """What a backend's windows taught; None before they did."""
        return None

    def observe(self, window: Window, activities: Sequence[Activity]) -> None:
        """Learn from a window."""


def divide(
    window: Window, activities: Sequence[Activity], physics: StepPhysics | None
) -> Attribution:
    """Divide a window among the requests in it."""
    return undivided(window)


class Measuring:
    """Starts and stops the meters of backends that run on this machine."""

    def __init__(self, settings: Settings, pool: Pool, on_window: Callable[[Window], None]) -> None:
        self.settings = settings
        self.pool = pool
        self.on_window = on_window

    def start(self) -> None:
        """Read what can be read; what cannot is said once and leaves figures estimated."""

    def stop(self) -> None:
        """End all meters."""
