"""The grammar of links: every view is a GET that can be shared.

``/dashboard/TEAM/PAGE?period=2026-10&tz=Europe/Berlin&lang=de&book=simulated`` and, on the
requests page, filters: ``model backend node key tag project task policy zone evidence outcome cache
figure saving arm hour``, and ``by`` for the grouping that is open. ``why`` takes ``cause`` and
``by``, ``books`` takes ``term`` and ``node``, ``where`` takes ``zone`` and ``hour`` for the figures
of one hour of the day. ``hour`` is 0 to 23 of the link's time zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlencode

import msgspec

from proxy.dashboard.periods import Period

ROOT = "/dashboard"
PAGES: Mapping[str, str] = {
    "overview": "Overview",
    "why": "Why",
    "where": "Where and when",
    "savings": "Savings",
    "requests": "Requests",
    "plan": "Plan",
    "policies": "Policies",
    "report": "Report",
    "users": "User groups",
    "books": "Books",
    "method": "Method and data health",
}


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What a link says, the page's own parameters aside."""

    team: str
    period: Period
    language: str
    language_asked: bool = False  # in the link, so that it stays there
    time_zone_asked: bool = False
    simulated: bool | None = None
    root: str = ROOT

    def link(self, page: str = "overview", period: str | None = None, **more: str) -> str:
        """The link to a page of the same view; ``more`` are the page's own parameters."""
        query = {"period": period or self.period.name}
        if self.time_zone_asked:
            query["tz"] = self.period.time_zone
        if self.language_asked:
            query["lang"] = self.language
        if self.simulated is not None:
            query["book"] = "simulated" if self.simulated else "real"
        query |= more
        return f"{self.team_root}/{page}?{urlencode(query)}"

    @property
    def team_root(self) -> str:
        return f"{self.root}/{quote(self.team, safe='')}"
