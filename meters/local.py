"""The meter of a single-node set-up: what the proxy itself starts, from the same settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meters.engine_reader import EngineReader, EngineReaders
from meters.kinds import open_meter
from meters.rapl import RaplMeter
from meters.sampler import Sampler, SamplerStatus
from meters.settings import MeterSettings
from meters.types import Meter, MeterUnavailable, Window


class LocalMeter:
    """A sampler made from settings. ``start`` returns at once, whatever the hardware does.

    Raises EngineUnavailable when made with an engine URL or dialect that cannot be right.
    """

    def __init__(
        self,
        settings: MeterSettings,
        *,
        unix_offset_s: float | None = None,
        meter: Callable[[], Meter] | None = None,
    ) -> None:
        """``meter`` replaces what the settings name (a simulated engine's, for one)."""
        engine: EngineReader | EngineReaders | None = None
        if settings.engines:
            readers = {
                name: EngineReader(url, settings.engine_dialect)
                for name, url in settings.engines.items()
            }
            engine = EngineReaders(readers)
        elif settings.engine_url:
            engine = EngineReader(settings.engine_url, settings.engine_dialect)
        self.node = settings.node_name
        self._sampler = Sampler(
            meter or (lambda: source(settings)),
            node=self.node,
            engine=engine,
            open_host=lambda: host(settings),
            window_s=settings.window_s,
            poll_s=settings.poll_s,
            idle_power_w=settings.idle_power_w,
            unix_offset_s=unix_offset_s,
        )

    def start(self, callback: Callable[[Window], None]) -> None:
        """Begin; the callback gets each closed window, in a thread of the meter's own."""
        self._sampler.start(callback)

    def stop(self) -> None:
        self._sampler.stop()

    def status(self) -> SamplerStatus:
        return self._sampler.status()


def source(settings: MeterSettings) -> Meter:
    """The meter that settings name. Raises MeterUnavailable."""
    options: dict[str, Any] = {}
    kind = settings.meter
    if kind in ("nvml", "zeus", "dcgm", "prometheus") and settings.devices is not None:
        options["devices"] = settings.devices
    if kind == "simulated" and not settings.source_url:
        raise MeterUnavailable("meter simulated needs source_url, the simulated engine's URL.")
    if kind in ("dcgm", "prometheus", "simulated") and settings.source_url:
        options["url"] = settings.source_url
    if kind == "prometheus":
        if not settings.source_url or not settings.source_series:
            raise MeterUnavailable("meter prometheus needs source_url and source_series.")
        options["series"] = settings.source_series
        options["unit"] = settings.source_unit
        options["label"] = settings.source_label
    if kind == "rapl":
        options["root"] = settings.rapl_root
    if kind == "replay":
        if not settings.recording:
            raise MeterUnavailable("meter replay needs recording, a file.")
        options["path"] = settings.recording
    return open_meter(kind, **options)


def host(settings: MeterSettings) -> Meter | None:
    """The meter of CPU and DRAM, or None. Raises MeterUnavailable only when it was asked for."""
    if settings.host == "none" or settings.meter == "rapl":
        return None
    return RaplMeter(settings.rapl_root)
