"""docs/settings.md, made from the settings themselves: ``python -m proxy.settings_page``."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from proxy.config_file import bare
from proxy.settings import Settings


def table(
    kind: type[msgspec.Struct] = Settings, prefix: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    """Every setting as (name, type, default, help)."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        described = getattr(hint, "__metadata__", ())
        text = next((m.description for m in described if getattr(m, "description", None)), "")
        inner = _struct_in(hint)
        name = f"{prefix}{field.name}"
        default = _default_text(field)
        if inner is None:
            yield name, _type_text(hint), default, text
            continue
        many = _many(hint)
        yield name, many or "mapping", default if many else "", text
        suffix = {"list": "[].", "mapping": ".NAME."}.get(many, ".")
        yield from table(inner, f"{name}{suffix}")


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    for part in typing.get_args(hint):
        found = _struct_in(part)
        if found is not None:
            return found
    return None


def _many(hint: Any) -> str:
    return {list: "list", dict: "mapping"}.get(typing.get_origin(bare(hint)), "")


def _type_text(hint: Any) -> str:
    kind = bare(hint)
    args = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return " \\| ".join(f"`{a}`" for a in args)
    if typing.get_origin(kind) in (list, dict):
        return {list: "list", dict: "mapping"}[typing.get_origin(kind)]
    if args:
        return " or ".join(_type_text(a) for a in args if a is not type(None))
    return {str: "text", int: "integer", float: "number", bool: "true/false"}.get(kind, "any")


def _default_text(field: Any) -> str:
    if field.default is not msgspec.NODEFAULT:
        return "none" if field.default is None else str(field.default)
    if field.default_factory is not msgspec.NODEFAULT:
        return str(field.default_factory() or "none")
    return "required"


def markdown() -> str:
    """docs/settings.md: every setting with its type, default and help."""
    lines = [
        "# Settings",
        "",
        "Every key of `config.yaml`. Generated from `proxy/settings.py` by `make docs`; a test",
        "checks that it is up to date. `os.environ/NAME` as a value reads that environment",
        "variable. An unknown key, a wrong type or a contradiction stops the start, with its line",
        "and the nearest known key; `joulegate check config.yaml` shows what would be used. What",
        "`policies` may hold is in [policies.md](policies.md). LiteLLM's `config.yaml` is taken",
        "too: the keys of a backend then live under `model_info.energy`, all others under a",
        "top-level `joulegate`.",
        "",
        "| setting | type | default | what it does |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{n}` | {k} | {d or '–'} | {text} |" for n, k, d, text in table()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
