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


def identity_of(backend: Backend, prior: str) -> str:
    """The same for the same engine, model and cards judged by the same prior; prices and grids may
    differ."""
    told = msgspec.json.encode([prior, *(getattr(backend, name) for name in _SAME)])
    return hashlib.sha256(told).hexdigest()[:16]


def write(path: str | Path, kept: Mapping[str, Kept]) -> None:
    """Keep them, by backend and identity. Raises OSError."""
    backends = {
        name: {
            "of_prior": one.of_prior.as_list(),
            "of_windows": None if one.of_windows is None else one.of_windows.as_list(),
        }
        for name, one in kept.items()
    }
    Path(path).write_text(json.dumps({"format": FORMAT, "backends": backends}), encoding="utf-8")


def read(path: str | Path) -> dict[str, Kept]:
    """What ``write`` wrote. Raises ValueError, KeyError or TypeError for anything else, OSError."""
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ValueError(f"{path} holds no corrections of this version")
    return {
        name: Kept(
            Correction.from_list(one["of_prior"]),
            None if one["of_windows"] is None else Correction.from_list(one["of_windows"]),
        )
        for name, one in told["backends"].items()
    }
