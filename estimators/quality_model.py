"""A learnt model of quality and length: one small file, every backend at once, numpy only.

Made by kinds_fit.py from scored outcomes (``joulegate learn-quality``); it holds hashed words and
figures, no prompt. A quality band is the 80 % interval of the *mean* score on prompts of this
kind, not of one answer's score, which is mostly 0 or 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from estimators.kinds import Gate, Head, Judge, Kinds, Sight, System, deviation, standard_error
from estimators.text import BUCKETS, DENSE, TextFeatures
from estimators.traffic import Traffic
from estimators.types import Z_80

Array = NDArray[np.float32]
FORMAT = 5
# 3 knew no system that does not tell a strange prompt; 4's was told by words alone, which names
# a prompt's task no better than the first system does.
_READ = (3, 4, 5)
_STRANGE = 0.02  # stranger than 49 in 50 of its kind: the kind is not named
_LONGEST = 12.0  # exp(12) = 160,000 tokens; no estimate goes beyond


class UnreadableModel(Exception):
    """The file is no model of ours, or of a version this program does not read."""


class LengthBands(NamedTuple):
    """How answers scatter about the predicted logarithm of their length."""

    scale: Array  # (M,) per backend
    kind_scale: Array  # (K,) factor per kind; each system's say is averaged
    widen: Gate  # factor by familiarity; not a trust, but the same shape
    quantiles: Array  # (M, 3) of what is left, in units of the scale
    mean: Array  # (M,) mean length over the length at the predicted logarithm


class Prediction(NamedTuple):
    """For every backend of the model, in its order. None where that was not learnt."""

    task: str
    quality: Array | None  # (M, 3) low, mid, high on 0..1
    lengths: Array | None  # (M, 4) q10, q50, q90, mean in tokens
    familiarity: float  # 0..1, how far it is trusted to be of a kind learnt from


class QualityModel(NamedTuple):
    """What scored outcomes taught."""

    backends: tuple[str, ...]
    kinds: Kinds
    quality: Head | None
    length: Head | None
    bands: LengthBands | None
    facts: dict[str, Any]  # how it was made and how good it was on prompts left out

    def predict(self, text: TextFeatures, traffic: Traffic | None = None) -> Prediction:
        """Quality and length on every backend. Tens of microseconds for ten backends.

        ``traffic`` says how much of what came lately was new; without it, the usual share is.
        """
        return self.say(text, self.kinds.see(text, traffic))

    def predict_all(self, texts: Sequence[TextFeatures]) -> list[Prediction]:
        """The same for a batch, taken as one stretch of traffic: how much of it is of kinds never
        learnt from is told by all of it together, which one prompt cannot tell."""
        sights = [self.kinds.see(text) for text in texts]
        traffic = self.kinds.traffic()
        traffic.look([(sight.kind, sight.rank) for sight in sights])
        return [
            self.say(
                text,
                sight._replace(
                    familiarity=traffic.known(sight.kind, sight.rank),
                    likely=traffic.likely(sight.kind, sight.rank),
                ),
            )
            for text, sight in zip(texts, sights, strict=True)
        ]

    def say(self, text: TextFeatures, sight: Sight) -> Prediction:
        """What the model says of a prompt that was seen."""
        return Prediction(
            self._task(sight, text),
            None if self.quality is None else quality_bands(self.quality, sight),
            None
            if self.length is None or self.bands is None
            else length_quantiles(self.length, self.bands, self.kinds, sight),
            sight.familiarity,
        )

    def _task(self, sight: Sight, text: TextFeatures) -> str:
        """The labelled task it most likely is, else the coarse class; by the last system that
        knows names, which tells them best."""
        start = 0
        odds: Array = sight.kinds
        names: tuple[str, ...] = ()
        for system in self.kinds.systems:
            stop = start + system.stop - system.start
            if system.names:
                odds, names = sight.kinds[start:stop], system.names
            start = stop
        if not names:
            return text.task
        best = int(odds.argmax())
        sure = odds[best] > 0.5 and sight.rank > _STRANGE
        return names[best] if sure else text.task

    def save(self, path: str | Path) -> None:
        """Write one compressed npz file without any pickled object."""
        arrays: dict[str, NDArray[Any]] = {}
        seen = np.flatnonzero(self.kinds.row_of)
        arrays["buckets"] = seen.astype(np.uint16 if BUCKETS <= 1 << 16 else np.uint32)
        arrays["rows"] = self.kinds.row_of[seen].astype(np.uint32)
        arrays["idf"] = self.kinds.idf
        arrays["words"] = self.kinds.words[1:].astype(np.float16)
        for name in ("dense_mean", "dense_scale", "dense", "bias"):
            arrays[name] = getattr(self.kinds, name)
        judge = self.kinds.judge
        arrays["judge"] = np.stack([judge.mean, judge.weights])
        arrays["judge_levels"] = judge.levels
        meta: dict[str, Any] = {
            "format": FORMAT,
            "buckets": BUCKETS,
            "dense": list(DENSE),
            "backends": list(self.backends),
            "systems": [list(system) for system in self.kinds.systems],
            "judge": [judge.crowding, judge.usual],
            "facts": self.facts,
            "heads": {},
        }
        for title, head in (("quality", self.quality), ("length", self.length)):
            if head is not None:
                meta["heads"][title] = _put(arrays, title, head)
        if self.bands is not None:
            meta["heads"]["bands"] = _put(arrays, "bands", self.bands)
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        with Path(path).open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: str | Path) -> QualityModel:
        """Read what save wrote. Raises UnreadableModel, or OSError."""
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            meta = json.loads(arrays["meta"].tobytes())
        except (ValueError, KeyError, EOFError):
            raise UnreadableModel(f"{path} is no model made by learn-quality.") from None
        except OSError:
            raise
        except Exception as error:  # zipfile's and zlib's own, for a damaged file
            raise UnreadableModel(
                f"{path} is damaged ({error}); make it again with learn-quality."
            ) from None
        known = meta.get("buckets"), meta.get("dense")
        if meta.get("format") not in _READ or known != (BUCKETS, list(DENSE)):
            raise UnreadableModel(
                f"{path} was made by another version; make it again with learn-quality."
            )
        row_of = np.zeros(BUCKETS, np.int32)
        row_of[arrays["buckets"]] = arrays["rows"]
        words = arrays["words"].astype(np.float32)
        kinds = Kinds(
            row_of=row_of,
            idf=arrays["idf"],
            words=np.vstack([np.zeros((1, words.shape[1]), np.float32), words]),
            dense_mean=arrays["dense_mean"],
            dense_scale=arrays["dense_scale"],
            dense=arrays["dense"],
            bias=arrays["bias"],
            systems=tuple(_system(meta["format"], *system) for system in meta["systems"]),
            judge=Judge(
                arrays["judge"][0], arrays["judge"][1], arrays["judge_levels"], *meta["judge"]
            ),
        )
        heads = {
            title: Head(**_get(arrays, title, fields))
            for title, fields in meta["heads"].items()
            if title != "bands"
        }
        bands = meta["heads"].get("bands")
        return QualityModel(
            tuple(meta["backends"]),
            kinds,
            heads.get("quality"),
            heads.get("length"),
            None if bands is None else LengthBands(**_get(arrays, "bands", bands)),
            meta["facts"],
        )


def quality_bands(head: Head, sight: Sight) -> Array:
    """(M, 3): low, mid, high on 0..1."""
    mid = head.mean + deviation(head, sight)
    reach = Z_80 * standard_error(head, sight)
    bands = np.stack([mid - reach, mid, mid + reach], 1)
    return np.asarray(np.minimum(np.maximum(bands, 0.0), 1.0), dtype=np.float32)


def length_quantiles(head: Head, bands: LengthBands, kinds: Kinds, sight: Sight) -> Array:
    """(M, 4): q10, q50, q90 and mean, in tokens.

    Lengths go by the chance that the kind is known: no promise about the hull hangs on them.
    """
    sight = sight._replace(familiarity=sight.likely)
    middle = head.mean + deviation(head, sight)
    factor = float(sight.kinds @ bands.kind_scale) / len(kinds.systems) if kinds.systems else 1.0
    scale = bands.scale * (factor * bands.widen(sight.familiarity))
    found = np.empty((len(middle), 4), np.float32)
    found[:, :3] = middle[:, None] + scale[:, None] * bands.quantiles
    found[:, 3] = middle
    found = np.exp(np.minimum(np.maximum(found, 0.0), _LONGEST))
    found[:, 3] *= bands.mean
    found -= 1.0
    return np.asarray(np.maximum(found, 0.0), dtype=np.float32)


def _system(
    made: int, start: int, stop: int, sharpness: float, names: list[str], tells: bool = True
) -> System:
    """A system of kinds as the file of that format has it."""
    return System(start, stop, sharpness, tuple(names) if tells or made >= 5 else (), tells)


def _put(arrays: dict[str, NDArray[Any]], title: str, value: NamedTuple) -> dict[str, Any]:
    """Arrays and gates go to the archive, numbers to the returned dictionary."""
    plain: dict[str, Any] = {}
    for name, field in value._asdict().items():
        if isinstance(field, Gate):
            arrays[f"{title}.{name}"] = np.stack([field.familiarity, field.trust])
            plain[name] = "gate"
        elif isinstance(field, np.ndarray):
            arrays[f"{title}.{name}"] = field
            plain[name] = "array"
        else:
            plain[name] = field
    return plain


def _get(arrays: dict[str, NDArray[Any]], title: str, plain: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind in plain.items():
        if kind == "gate":
            found[name] = Gate(*arrays[f"{title}.{name}"])
        elif kind == "array":
            found[name] = arrays[f"{title}.{name}"]
        else:
            found[name] = kind
    return found
