"""Grid intensity: grams of CO2e per kWh, by zone and hour, with where each figure comes from.

    types.py             the values: Observation (what a source said), Intensity (an answer)
    book.py              IntensityBook: in memory, looked up on the request path; the ladder
    table.py             annual figures by zone, country and world; cloud region -> zone
    file.py, electricity_maps.py, watttime.py, gb.py     sources of hourly figures
    http.py              the one way a source talks to the network: 5 s, no redirects
    refresh.py           the background thread that keeps the book filled, and its breaker
    keep.py              what was fetched, kept on disk across restarts
    hours.py             local days of 23, 24 or 25 hours as UTC hours

Energy is kept for ever; its carbon is a view that follows from the book. Nothing here is
fetched while a request waits.
"""

from meters.intensity.book import IntensityBook
from meters.intensity.types import Intensity, Observation, Source, SourceUnavailable, Tier

__all__ = ["Intensity", "IntensityBook", "Observation", "Source", "SourceUnavailable", "Tier"]
