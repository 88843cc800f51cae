"""The kinds of meter by name, each imported only when asked for."""

from __future__ import annotations

import importlib
from typing import Any, cast

from meters.types import Meter, MeterUnavailable

KINDS: dict[str, str] = {
    "nvml": "meters.nvml:NvmlMeter",
    "dcgm": "meters.dcgm:DcgmMeter",
    "prometheus": "meters.dcgm:PrometheusMeter",
    "rapl": "meters.rapl:RaplMeter",
    "zeus": "meters.zeus:ZeusMeter",
    "simulated": "meters.simulated_engine:SimulatedMeter.at",
    "replay": "meters.replay:ReplayMeter",
    "none": "meters.none:NoMeter",
}


def open_meter(kind: str, **options: Any) -> Meter:
    """The meter of that kind: a name of KINDS or an import string, "module:Class".

    Options are passed on. Raises MeterUnavailable, also for a kind or option that is not known.
    """
    where = KINDS.get(kind, kind)
    module_name, _, class_name = where.partition(":")
    if not class_name:
        raise MeterUnavailable(
            f"No meter is called {kind!r}; known: {', '.join(KINDS)}, or 'module:Class'."
        )
    try:
        make = importlib.import_module(module_name)
        for name in class_name.split("."):
            make = getattr(make, name)
    except (ImportError, AttributeError) as error:
        raise MeterUnavailable(f"Meter {kind!r} cannot be imported: {error}.") from None
    try:
        return cast(Meter, cast(Any, make)(**options))
    except TypeError as error:
        raise MeterUnavailable(f"Meter {kind!r} does not take these settings: {error}.") from None
