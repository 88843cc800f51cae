"""What backends' own requests taught, in a file: so that a restart does not forget it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from estimators.correction import Correction
from estimators.types import Backend

FORMAT = 1
_SAME = ("precision", "engine", "engine_version", "gpu", "num_gpus", "model", "simulated")


class Kept(NamedTuple):
    """Of one backend: what its requests said of the prior, and of what its windows taught."""

    of_prior: Correction
    of_windows: Correction | None


class AllKept(NamedTuple):
    """Of all backends, by name and identity; and by node until when, Unix time, its requests were
    learnt from."""

    backends: dict[str, Kept]
    until_s: dict[str, float]


def identity_of(backend: Backend, prior: str) -> str:
    """The same for the same engine, model and cards judged by the same prior; prices and grids may
    differ."""
    told = msgspec.json.encode([prior, *(getattr(backend, name) for name in _SAME)])
    return hashlib.sha256(told).hexdigest()[:16]


def write(path: str | Path, kept: Mapping[str, Kept], until_s: Mapping[str, float]) -> None:
    """Keep them. Raises OSError."""
    backends = {
        name: {
            "of_prior": one.of_prior.as_list(),
            "of_windows": None if one.of_windows is None else one.of_windows.as_list(),
        }
        for name, one in kept.items()
    }
    state = {"format": FORMAT, "backends": backends, "until_s": dict(until_s)}
    Path(path).write_text(json.dumps(state), encoding="utf-8")


def read(path: str | Path) -> AllKept:
    """What ``write`` wrote. Raises ValueError, KeyError or TypeError for anything else, OSError."""
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ValueError(f"{path} holds no corrections of this version")
    backends = {
        name: Kept(
            Correction.from_list(one["of_prior"]),
            None if one["of_windows"] is None else Correction.from_list(one["of_windows"]),
        )
        for name, one in told["backends"].items()
    }
    until_s = {node: float(at_s) for node, at_s in told.get("until_s", {}).items()}
    return AllKept(backends, until_s)
