"""Hourly intensity from a CSV file: ``zone,hour,value`` with ``hour`` in ISO 8601 with offset.

The third column may also be called ``intensity_g_per_kwh``.

For figures of one's own: a utility's, a research series, or a private grid's.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from meters.intensity.hours import hour_of, parse_hour
from meters.intensity.types import Observation, SourceUnavailable

COLUMNS = ("zone", "hour", "value")
ALSO_VALUE = "intensity_g_per_kwh"  # another name for the third


class File:
    """Reads the file anew at every fetch, so that it may be replaced while serving.

    Optional further columns: ``estimated`` (true/false) and ``factor_type``.
    """

    name = "file"
    attribution = "a file supplied by this organisation"

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def fetch(self, zone: str, start_s: int, end_s: int) -> list[Observation]:
        """See Source. Raises SourceUnavailable with the line number of the first bad row."""
        try:
            with self._path.open(newline="", encoding="utf-8-sig") as file:
                rows = csv.DictReader(file)
                names = [("value" if n == ALSO_VALUE else n) for n in rows.fieldnames or ()]
                rows.fieldnames = names
                missing = [c for c in COLUMNS if c not in names]
                if missing:
                    raise SourceUnavailable(
                        f"{self._path} has no column {missing[0]!r}; it needs zone,hour,value."
                    )
                fetched_s = self._path.stat().st_mtime
                found = [
                    self._row(row, line, fetched_s)
                    for line, row in enumerate(rows, 2)
                    if row["zone"] == zone and (row["value"] or "").strip()
                ]
        except (OSError, UnicodeDecodeError) as error:
            raise SourceUnavailable(f"{self._path} cannot be read: {error}.") from None
        return [seen for seen in found if start_s <= seen.hour_s < end_s]

    def _row(self, row: dict[str, str], line: int, fetched_s: float) -> Observation:
        try:
            value = float(row["value"])
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{row['value']!r} is no intensity in g/kWh")
            return Observation(
                zone=row["zone"],
                hour_s=hour_of(parse_hour(row["hour"])),
                g_per_kwh=value,
                source=self.name,
                factor_type=row.get("factor_type") or "lifecycle",
                estimated=(row.get("estimated") or "").strip().lower() in ("1", "true", "yes"),
                fetched_s=fetched_s,
            )
        except ValueError as error:
            raise SourceUnavailable(f"{self._path}, line {line}: {error}.") from None
