"""What decoding raises for bytes that are not what they should be."""

from __future__ import annotations

import msgspec

# Not JSON or not of the type; text that is not UTF-8; nested deeper than anybody writes.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
