"""What a meter is told: a small YAML file with strict keys, or the same values from the proxy."""

from __future__ import annotations

import difflib
import os
import re
import socket
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml


class BadSettings(Exception):
    """Settings that cannot be used; the message names file, line, key and what to change."""


class MeterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to read, and how. Every field is a key of the file."""

    node: str = ""  # the name backends refer to; empty: this machine's host name
    meter: str = "nvml"  # a name of meters/kinds.py, or module:Class
    devices: list[int | str] | None = None  # GPU indices or UUIDs; None: all
    source_url: str | None = None  # dcgm, prometheus, simulated: what to ask
    source_series: str | None = None  # prometheus: the series' name
    source_unit: str = "J"  # prometheus: J, mJ, uJ, Wh, kWh, or W, mW (integrated)
    source_label: str = "gpu"  # prometheus: the label that tells devices apart
    recording: str | None = None  # replay: the file
    host: str = "auto"  # auto | rapl | none: where CPU and DRAM energy comes from
    rapl_root: str = "/sys/class/powercap"
    engine_url: str | None = None  # the engine's metrics page
    engines: dict[str, str] = {}  # several engines on these devices: backend's name, metrics page
    engine_dialect: str = "auto"  # auto, or a row of the engines' table
    window_s: float = 1.0  # seconds a window lasts, 0.5 or more
    poll_s: float | None = None  # seconds between two looks; None: as the counter needs
    idle_power_w: float | None = None  # known idle power of all devices together

    def __post_init__(self) -> None:
        if not 0.5 <= self.window_s <= 3600:
            raise ValueError("window_s must be between 0.5 and 3600 seconds")
        if self.poll_s is not None and not 0.005 <= self.poll_s <= 60:
            raise ValueError("poll_s must be between 0.005 and 60 seconds")
        if self.host not in ("auto", "rapl", "none"):
            raise ValueError("host must be auto, rapl or none")
        if self.idle_power_w is not None and self.idle_power_w < 0:
            raise ValueError("idle_power_w must be 0 or more watts")

    @property
    def node_name(self) -> str:
        return self.node or socket.gethostname()


class AgentSettings(MeterSettings, frozen=True, kw_only=True):
    """And where to send it."""

    proxy_url: str
    token: str | None = None  # or "os.environ/NAME"
    token_file: str | None = None
    spool_dir: str = "/var/lib/joulegate/spool"
    spool_max_mb: float = 256.0  # a week of windows every second
    send_s: float = 1.0  # seconds between two sendings

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.proxy_url.startswith(("http://", "https://")):
            raise ValueError("proxy_url must begin with http:// or https://")
        if not 0.05 <= self.send_s <= 3600:
            raise ValueError("send_s must be between 0.05 and 3600 seconds")
        if self.spool_max_mb < 1:
            raise ValueError("spool_max_mb must be 1 or more")
        if not self.token and not self.token_file:
            raise ValueError("token or token_file must be given")

    def read_token(self) -> str:
        """The token, from where the settings say. Raises BadSettings."""
        if self.token_file:
            try:
                return Path(self.token_file).read_text().strip()
            except OSError as error:
                raise BadSettings(f"token_file {self.token_file}: {error.strerror}.") from None
        token = self.token or ""
        if token.startswith("os.environ/"):
            name = token.removeprefix("os.environ/")
            token = os.environ.get(name, "")
            if not token:
                raise BadSettings(f"The environment has no {name}, which token names.")
        return token

    def __repr__(self) -> str:
        return f"AgentSettings(node={self.node_name!r}, proxy_url={self.proxy_url!r})"


T = TypeVar("T", bound=MeterSettings)


def load(path: str | Path, kind: type[T]) -> T:
    """The settings in a YAML file. Raises BadSettings, with line, key and nearest known key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path}: {error}. Name a readable YAML file.") from None
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadSettings(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise BadSettings(f"{path}: expected keys and values, such as 'node: gpu-1'.")
    assert isinstance(tree, yaml.MappingNode)  # as raw is a dict
    lines = {str(k.value): k.start_mark.line + 1 for k, _ in tree.value}
    for key in raw:
        _check_key(path, str(key), lines.get(key), kind)
    return _convert(path, raw, lines, kind)


def _check_key(path: str | Path, key: str, line: int | None, kind: type[T]) -> None:
    known = [f.encode_name for f in msgspec.structs.fields(kind)]
    if key in known:
        return
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(known)}."
    raise BadSettings(f"{path}, line {line}: unknown key {key!r}. {hint}")


def _convert(path: str | Path, raw: dict[str, Any], lines: dict[str, int], kind: type[T]) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        said = str(error)
        at = re.search(r"`\$\.(\w+)", said)
        key = at[1] if at else next((k for k in lines if k in said), None)
        where = f", line {lines[key]}" if key in lines else ""
        said = re.sub(r" - at `\$\.?(\w*)[^`]*`", r"", said)
        raise BadSettings(f"{path}{where}: {f'{key}: ' if at else ''}{said}.") from None
