"""Whole micro-units, so that sums are exact whatever their order or grouping.

Floating-point sums depend on the order of their terms, so books kept in floats balance only
"nearly". The ledger keeps energy in whole micro-joules, carbon in micro-grams and money in
nano-dollars. A meter's own resolution is a milli-joule (NVML), a thousand times coarser. A signed
64-bit sum holds 9.2e18 micro-joules: 2.5 GWh.
"""

from __future__ import annotations

from collections.abc import Sequence

MICRO = 1_000_000
NANO = 1_000_000_000
LARGEST = 2**63 - 1  # of a BIGINT


def micro(value: float | None) -> int | None:
    """``value`` in whole millionths, nearest; None stays None. Raises ValueError if not finite."""
    return None if value is None else whole(value, MICRO)


def nano(value: float | None) -> int | None:
    """``value`` in whole billionths, nearest; None stays None. Raises ValueError if not finite."""
    return None if value is None else whole(value, NANO)


def from_micro(value: int | None) -> float | None:
    return None if value is None else value / MICRO


def from_nano(value: int | None) -> float | None:
    return None if value is None else value / NANO


def apportion(total: int, parts: Sequence[float]) -> list[int]:
    """``parts`` (in millionths, >= 0) as whole numbers whose sum is ``total`` exactly.

    Every part is rounded down, and what is then missing goes, one each, to the parts that lost
    most; the first of equals wins. So the same parts always give the same whole numbers, and a
    part of zero stays zero. Raises ValueError when a part is negative, or when the parts miss the
    total by more than one for each of them: then it is not rounding that is missing, and it must
    be booked by name.
    """
    if any(part < 0 for part in parts):
        raise ValueError("a part is negative")
    whole = [int(part) for part in parts]
    missing = total - sum(whole)
    if abs(missing) > len(whole):
        raise ValueError(f"the parts miss the total by {missing}")
    order = sorted(range(len(whole)), key=lambda i: (whole[i] - parts[i], i))
    if missing < 0:  # the total was rounded below the sum: the parts that lost least give
        order = [i for i in reversed(order) if whole[i] > 0]
    step = 1 if missing > 0 else -1
    for i in order[: abs(missing)]:
        whole[i] += step
    if sum(whole) != total:
        raise ValueError(f"the parts miss the total by {missing}")
    return whole


def whole(value: float, per_unit: int) -> int:
    """``value`` in whole parts of which ``per_unit`` make one, nearest. Raises ValueError."""
    scaled = round(value * per_unit)  # raises for NaN (ValueError) and infinity (OverflowError)
    if not -LARGEST <= scaled <= LARGEST:
        raise ValueError(f"{value} is too large for the ledger")
    return scaled
