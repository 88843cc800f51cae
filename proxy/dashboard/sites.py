"""What the account must know of engines and contracts that no meter says."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from meters.carbon import R_ICE_PUE, Range, default_embodied


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """One metered node: its place, its hardware, and who may use it."""

    node: str
    zone: str | None = None  # grid zone or cloud region; None: not known, the world's figure
    g_per_kwh: float | None = None  # a fixed intensity, set by the organisation
    pue: float | None = None
    pue_source: str = ""
    gpus: int | None = None  # None: embodied is not known
    embodied_g_per_gpu_hour: Range | None = None  # None: published range for H100 servers
    owner: str | None = None  # the team an engine is dedicated to; None: shared
    entitled: tuple[str, ...] | None = None  # teams that may use it; None: all

    @property
    def embodied(self) -> Range:
        return self.embodied_g_per_gpu_hour or default_embodied()


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """A contract that sets the market-based intensity of a zone."""

    g_per_kwh: float
    what: str  # "power purchase agreement, wind, 2026"


class Sites(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. Everything has a default, each of which is named on the method page."""

    nodes: Mapping[str, Site] = {}
    hosted: frozenset[str] | None = None  # backends that are others' APIs; None: by evidence
    own: frozenset[str] = frozenset()  # backends that are engines of ours
    instruments: Mapping[str, Instrument] = {}  # by zone
    default_pue: float = R_ICE_PUE
    default_pue_source: str = "assumed (R-ICE); set pue for each backend"

    def site(self, node: str) -> Site:
        return self.nodes.get(node) or Site(node=node)

    def is_hosted(self, backend: str | None, modelled: bool) -> bool:
        """Whether that backend is another's API. Of one that the config does not name (any more)
        the evidence of its figures tells: others' APIs can only be modelled."""
        if backend in self.own:
            return False
        return modelled or (self.hosted is not None and backend in self.hosted)
