"""Sizes, rates and times as people write them.

Sizes of arrays go by 1024: "64K" is 65536 bytes. Traffic and rates go by 1000: "1 MB" is a million bytes.
"""

from __future__ import annotations

import math
import re
from numbers import Real

__all__ = [
    "format_bytes",
    "format_duration",
    "format_rate",
    "format_size",
    "microseconds",
    "milliseconds",
    "parse_duration",
    "parse_rate",
    "parse_size",
]

_SIZE = re.compile(r"\s*([0-9]{1,20})\s*(?:([KMG])i?)?B?\s*", re.ASCII | re.IGNORECASE)
_RATE = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kMGT]?)(i?)(bit|bps|B)(?:/s)?\s*", re.ASCII | re.IGNORECASE)
_MOST = (1 << 63) - 1  # bytes
_DURATION = re.compile(r"(?:([0-9.]+)d)?(?:([0-9.]+)h)?(?:([0-9.]+)m(?:in)?)?(?:([0-9.]+)s?)?")
_CLOCK = re.compile(r"(?:([0-9]+)-)?([0-9]+):([0-9]+):([0-9]+)")


def parse_size(text: str) -> int:
    """Return the bytes of a size, at least 1.

    >>> from sfb.units import parse_size
    >>> [parse_size(text) for text in ("8", "64K", "1MiB")]
    [8, 65536, 1048576]

    Raises:
        ValueError: The text is no size.
    """
    match = _SIZE.fullmatch(text)
    size = int(match[1]) << 10 * " KMG".index((match[2] or " ").upper()) if match else 0
    if not 1 <= size <= _MOST:
        raise ValueError(f"{text!r} is not a number of bytes like 8, 64K or 128M")
    return size


def format_size(nbytes: float) -> str:
    """Return the text that `parse_size` reads.

    >>> from sfb.units import format_size
    >>> [format_size(nbytes) for nbytes in (8, 65536, 1 << 40)]
    ['8', '64K', '1024G']
    """
    number, prefix = _scaled(nbytes, 1024, ("", "K", "M", "G"))
    return f"{number:g}{prefix}"


def parse_rate(rate: float | str, name: str = "rate") -> float:
    """Return the bytes per second of a rate, given as a number of them or as a text.

    >>> from sfb.units import parse_rate
    >>> [parse_rate(rate) for rate in ("1Gbit/s", "10 MB/s", "64KiB/s", 5)]
    [125000000.0, 10000000.0, 65536.0, 5.0]

    Args:
        rate: The rate.
        name: What an error calls it.

    Raises:
        ValueError: The text is no rate, or the rate is not above 0 and finite.
        TypeError: It is neither a number nor a text.
    """
    if isinstance(rate, str):
        match = _RATE.fullmatch(rate)
        if match is None:
            raise ValueError(f'{name} must be bytes per second or like "1Gbit/s" or "10MB/s", got {rate!r}')
        digits, prefix, binary, unit = match.groups()
        try:
            number = float(digits)
        except ValueError:
            raise ValueError(f"{name} must begin with a number, got {rate!r}") from None
        number *= (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " ")
        if unit != "B":
            number /= 8
    elif isinstance(rate, Real) and not isinstance(rate, bool):
        try:
            number = float(rate)
        except OverflowError:
            number = math.inf
    else:
        raise TypeError(f"{name} must be a number or a text, got {type(rate).__name__}")
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be above 0 and finite, got {rate!r}")
    return number


def format_rate(rate: float) -> str:
    """Return bytes per second with three digits.

    >>> from sfb.units import format_rate
    >>> format_rate(125e6)
    '125 MB/s'
    """
    return f"{format_bytes(rate)}/s"


def format_bytes(nbytes: float) -> str:
    """Return bytes of traffic with three digits.

    >>> from sfb.units import format_bytes
    >>> [format_bytes(nbytes) for nbytes in (12, 4_262_400, 999_999)]
    ['12 B', '4.26 MB', '1 MB']
    """
    number, prefix = _scaled(float(f"{nbytes:.3g}"), 1000, ("", "k", "M", "G", "T"))
    return f"{number:.3g} {prefix}B"


def parse_duration(text: str) -> float:
    """Return the seconds of a time: a number of them, 90s, 20m, 1h30m, 2d, or H:MM:SS and D-H:MM:SS of schedulers.

    >>> from sfb.units import parse_duration
    >>> [parse_duration(text) for text in ("90", "1h30m", "00:20:00", "1-00:00:00")]
    [90.0, 5400.0, 1200.0, 86400.0]

    Raises:
        ValueError: The text is no time, or the time is not above 0.
    """
    compact = "".join(text.split()).lower()
    match = _CLOCK.fullmatch(compact) or _DURATION.fullmatch(compact)
    try:
        parts = [float(part or 0) for part in match.groups()] if match else []
    except ValueError:  # two decimal points
        parts = []
    seconds = sum(part * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=bool(parts)))
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is not a time above 0 like 90s, 20m, 1h30m or 01:30:00")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a time in its largest two units.

    >>> from sfb.units import format_duration
    >>> [format_duration(seconds) for seconds in (7.4, 90, 5400, 200_000)]
    ['7 s', '1 min 30 s', '1 h 30 min', '2 d 7 h']
    """
    left = round(seconds)
    found: list[str] = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or found or size == 1:
            found.append(f"{count} {name}")
    return " ".join(part for part in found[:2] if part[0] != "0" or len(found) == 1)


def milliseconds(seconds: float | None, digits: int = 3) -> str:
    """Return a time in milliseconds, without the unit; "-" for none.

    >>> from sfb.units import milliseconds
    >>> milliseconds(0.0123456), milliseconds(0.2235, 1), milliseconds(None)
    ('12.346', '223.5', '-')
    """
    return "-" if seconds is None else f"{seconds * 1e3:.{digits}f}"


def microseconds(seconds: float | None, digits: int = 1) -> str:
    """Return a time in microseconds, without the unit; "-" for none.

    >>> from sfb.units import microseconds
    >>> microseconds(0.0123456), microseconds(2.6e-6, 2), microseconds(None)
    ('12345.6', '2.60', '-')
    """
    return "-" if seconds is None else f"{seconds * 1e6:.{digits}f}"


def _scaled(number: float, base: int, prefixes: tuple[str, ...]) -> tuple[float, str]:
    """Return the number in the largest unit of which it has at least one."""
    *smaller, largest = prefixes
    for prefix in smaller:
        if number < base:
            return number, prefix
        number /= base
    return number, largest
