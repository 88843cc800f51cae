"""The estimators of energy by name, each imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

from estimators.types import Estimator

ESTIMATORS: dict[str, str] = {
    "energy": "estimators.energy:EnergyEstimator",
    "r-ice": "estimators.rice_estimator:RiceEstimator",
}


class UnknownEstimator(ValueError):
    """No estimator of that name; the message says which there are."""


def estimator_named(kind: str) -> Callable[..., Estimator]:
    """What makes the estimator of that kind: a name of ESTIMATORS, or "module:Class" of yours.

    It is called with ``lengths``, ``quality`` and ``learnt``, as EnergyEstimator is. Raises
    UnknownEstimator.
    """
    module_name, _, class_name = ESTIMATORS.get(kind, kind).partition(":")
    if not class_name:
        raise UnknownEstimator(
            f"no estimator is called {kind!r}; known: {', '.join(ESTIMATORS)}, or 'module:Class'."
        )
    try:
        made: Any = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UnknownEstimator(f"estimator {kind!r} cannot be imported: {error}.") from None
    return cast(Callable[..., Estimator], made)
