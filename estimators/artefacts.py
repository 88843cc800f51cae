"""Fitted files: JSON with a layout, the fingerprint of their data, and how good they are."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from estimators.prior import Prior

LAYOUT = 1
BUILT_IN = Path(__file__).with_name("energy_prior.json")


class BadArtefact(Exception):
    """A fitted file that cannot be used; the message says which and what to do."""


def load_prior(path: Path | None = None) -> Prior:
    """The energy prior in ``path``, or the one that comes with us. Raises BadArtefact.

    Ours is read once a process: it is the same for all, and nobody changes it.
    """
    return _built_in() if path is None else _read(path)


@cache
def _built_in() -> Prior:
    return _read(BUILT_IN)


def _read(path: Path) -> Prior:
    try:
        values = json.loads(path.read_text())
        if values.get("layout") != LAYOUT:
            raise BadArtefact(
                f"{path} has layout {values.get('layout')!r}, this version reads {LAYOUT}: "
                "fit it again with `make fit-energy-prior`."
            )
        return Prior.load(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtefact(
            f"{path} cannot be read as an energy prior ({error}): "
            "fit it again with `make fit-energy-prior`."
        ) from error


def save_prior(prior: Prior, path: Path) -> None:
    """Write a prior so that ``load_prior`` reads it and a diff of it can be read."""
    values: dict[str, Any] = {"layout": LAYOUT, **prior.dump()}
    points = values.pop("points")
    head = json.dumps(values, indent=1)
    rows = ",\n".join(json.dumps(point, separators=(",", ":")) for point in points)
    path.write_text(head[:-2] + ',\n "points": [\n' + rows + "\n]\n}\n")
