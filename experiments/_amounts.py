"""Bytes, seconds and counts as text."""

from __future__ import annotations

from collections.abc import Sequence


def size_text(n: int) -> str:
    """A number of bytes for a reader."""
    value, unit = float(n), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def time_text(seconds: float) -> str:
    """A time for a reader."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def count_text(number: int, what: str) -> str:
    """A number of things for a reader."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def ranges(numbers: Sequence[int], *, to: str = "-", then: str = ", ") -> str:
    """Numbers with neighbours as ranges, such as "3-6, 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return then.join(str(run[0]) if len(run) == 1 else f"{run[0]}{to}{run[-1]}" for run in runs)
