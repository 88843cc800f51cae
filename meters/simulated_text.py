"""What the simulated engine says: text that calls itself simulated, and JSON that fits a schema.

Pure, and the same for the same prompt and seed. A token is about four characters.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

TOKEN_CHARS = 4
MESSAGE_TOKENS = 4  # a chat template's marks around one message
OPENING = "This text is simulated: no model wrote it, Joulegate's simulated engine did."
# Filler is about what it is for, so that nobody takes it for an answer.
FILLER = (
    "simulated tokens arrive at the pace of a modelled engine while each step reads every weight "
    "once and shares its energy among all sequences in the batch so that watching joules per token "
    "fall as more requests join shows how batching works on a node without any real accelerator"
)
WORDS = FILLER.split()
BLOCK_BYTES = 16 * TOKEN_CHARS


def count_tokens(text: str) -> int:
    """Tokens of a text: a quarter of its bytes, rounded up."""
    return math.ceil(len(text.encode()) / TOKEN_CHARS)


def block_keys(text: str) -> tuple[Hashable, ...]:
    """A key for each whole 16-token block of a prompt; equal prefixes have equal keys."""
    data = text.encode()
    keys = []
    running = 0
    for start in range(0, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES):
        running = zlib.crc32(data[start : start + BLOCK_BYTES], running)
        keys.append((start, running))
    return tuple(keys)


def text_of_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt that a chat comes down to; images count as a short mark."""
    parts = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = " ".join(
                str(part.get("text", "<image>")) if isinstance(part, dict) else str(part)
                for part in content
            )
        parts.append(f"<|{message.get('role', '')}|>{content or ''}")
        if message.get("tool_calls"):
            parts.append(str(message["tool_calls"]))
    return "\n".join(parts)


def source(seed: int, prompt: str, choice: int = 0) -> random.Random:
    """The random numbers of one answer."""
    return random.Random(zlib.crc32(prompt.encode(), seed & 0xFFFFFFFF) * 1_000 + choice)


def natural_length(random_: random.Random, mean: float, sigma: float) -> int:
    """How long an answer is when nobody limits it: log-normal with that mean, at least 8."""
    median = mean / math.exp(sigma**2 / 2)
    return max(8, round(median * math.exp(random_.gauss(0.0, sigma))))


def pieces(random_: random.Random, tokens: int) -> list[str]:
    """``tokens`` pieces of text; together they say first that they are simulated."""
    opening = OPENING.split(" ")
    out = [opening[0], *(" " + word for word in opening[1:])][:tokens]
    out += [" " + random_.choice(WORDS) for _ in range(tokens - len(out))]
    return out


def cut(text: str) -> list[str]:
    """A given text as token-sized pieces."""
    return [text[i : i + TOKEN_CHARS] for i in range(0, len(text), TOKEN_CHARS)]


def stop_at(parts: list[str], stops: Sequence[str]) -> list[str] | None:
    """``parts`` up to the first stop string, which is left out; None when there is none."""
    text = "".join(parts)
    found = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    if not found:
        return None
    end = min(found)
    kept = []
    for part in parts:
        if end <= 0:
            break
        kept.append(part[:end])
        end -= len(part)
    return kept or [""]


def fitting(schema: Any, random_: random.Random, root: Any = None, depth: int = 0) -> Any:
    """A value that fits a JSON schema (the parts of it that structured outputs support)."""
    root = schema if root is None else root
    if not isinstance(schema, Mapping) or depth > 12:
        return None
    if "$ref" in schema:
        return fitting(_resolve(schema["$ref"], root), random_, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return random_.choice(list(schema["enum"]))
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            # Deep down the last alternative, which in recursive schemas is often null.
            chosen = schema[key][-1] if depth > 4 else schema[key][0]
            return fitting(chosen, random_, root, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            value = fitting(part, random_, root, depth + 1)
            if not isinstance(value, dict):
                return value
            merged.update(value)
        return merged
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        required = schema.get("required", ())
        return {
            name: fitting(part, random_, root, depth + 1)
            for name, part in properties.items()
            if name in required or depth < 6
        }
    if kind == "array":
        few = max(int(schema.get("minItems", 1 if depth < 3 else 0)), 0)
        return [fitting(schema.get("items", {}), random_, root, depth + 1) for _ in range(few)]
    return _scalar(schema, kind, random_)


def _resolve(reference: str, root: Any) -> Any:
    found = root
    for name in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(name) if isinstance(found, Mapping) and name else found
    return found


def _scalar(schema: Mapping[str, Any], kind: Any, random_: random.Random) -> Any:
    if kind == "boolean":
        return random_.random() < 0.5
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", max(low, 0) + 100))
        if kind == "number":
            return round((low + high) / 2, 3)
        first = math.floor(low) + 1 if "exclusiveMinimum" in schema else math.ceil(low)
        step = int(schema.get("multipleOf", 1)) or 1
        return -(-first // step) * step
    if kind == "null":
        return None
    text = {
        "date": "2026-01-01",
        "date-time": "2026-01-01T00:00:00Z",
        "time": "00:00:00Z",
        "email": "simulated@example.com",
        "uri": "https://example.com/simulated",
        "uuid": "00000000-0000-4000-8000-000000000000",
        "ipv4": "192.0.2.1",
    }.get(str(schema.get("format")), "simulated " + random_.choice(WORDS))
    text = text.ljust(int(schema.get("minLength", 0)), ".")
    return text[: int(schema["maxLength"])] if "maxLength" in schema else text
