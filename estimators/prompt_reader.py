"""Reads each request's text once, however many predictors ask."""

from __future__ import annotations

from zlib import crc32

from estimators.quality_model import Prediction, QualityModel
from estimators.text import TextFeatures, read
from estimators.types import Backend, Features

_TEMPLATE_CHARS = 256


class PromptReader:
    """Shared by the quality and the length estimator of one proxy.

    Keeps the last request only, and how much of late was of kinds the model never learnt from.
    """

    def __init__(self, model: QualityModel | None = None) -> None:
        self.model = model
        self._traffic = None if model is None else model.kinds.traffic()
        self._index = {} if model is None else {name: i for i, name in enumerate(model.backends)}
        self._last: tuple[str, TextFeatures, Prediction | None] | None = None

    def prediction(self, features: Features) -> Prediction | None:
        """What the learnt model says; None without a model."""
        return self._read(features.text)[1] if self.model is not None else None

    def task(self, features: Features) -> str:
        """The kind of task: as the request says, else as its text looks."""
        return features.task or self._read(features.text)[0].task

    def row(self, backend: Backend) -> int | None:
        """The backend's row in a prediction, by its name, else its group's; None if unknown."""
        found = self._index.get(backend.name)
        return self._index.get(backend.group) if found is None else found

    def template(self, features: Features) -> int:
        """A hash of how the prompt begins: requests of one application begin alike."""
        return crc32(features.text[:_TEMPLATE_CHARS].encode("utf-8", "surrogatepass"))

    def _read(self, text: str) -> tuple[TextFeatures, Prediction | None]:
        last = self._last
        if last is None or last[0] is not text:
            seen = read(text)
            said = None
            if self.model is not None and self._traffic is not None:
                sight = self.model.kinds.see(seen, self._traffic)
                self._traffic.learn(sight.kind, sight.rank)
                said = self.model.say(seen, sight)
            self._last = last = (text, seen, said)
        return last[1], last[2]
