"""Sizes, durations and rates as people read them. Pure."""

from __future__ import annotations

_PREFIXES = ("", "k", "m", "g", "t")
_UNITS = (
    (("s", "second", "seconds"), 1),
    (("min", "minute", "minutes"), 60),
    (("h", "hour", "hours"), 3600),
    (("d", "day", "days"), 86_400),
    (("w", "week", "weeks"), 7 * 86_400),
)


def size(nbytes: float) -> str:
    """``1536`` -> ``1.5 KiB``. Three digits, binary units."""
    if nbytes < 1024:
        return f"{nbytes:.0f} B"
    value, units = nbytes / 1024, iter(("KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 999.5 and unit != "TiB":
        value, unit = value / 1024, next(units)
    return f"{_three_digits(value)} {unit}"


def duration(seconds: float) -> str:
    """``200`` -> ``3 min 20 s``. Two units at most."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, long, part_name, part in (
        ("d", 86_400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= long:
            rest = whole % long // part
            return f"{whole // long} {name} {rest} {part_name}" if rest else f"{whole // long} {name}"
    return f"{whole} s"


def rate(per_second: float) -> str:
    """``1234.5`` -> ``1,234 samples/s``; below one a second the time of one sample."""
    if 0 < per_second < 1:
        return f"{duration(1 / per_second)} a sample"
    return f"{_three_digits(per_second)} samples/s"


def ratio(raw_nbytes: float, stored_nbytes: float) -> str:
    """How many times smaller the stored bytes are."""
    if not stored_nbytes:
        return "-"
    value = raw_nbytes / stored_nbytes
    return f"{value:.2f}" if value >= 0.095 else f"{value:.2g}"


def number(value: float | complex | None) -> str:
    """Five significant digits, for tables."""
    return "-" if value is None else f"{value:.5g}"


def count(n: int, noun: str) -> str:
    """``1, "sample"`` -> ``1 sample``; ``2000`` -> ``2,000 samples``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def printable(text: str) -> str:
    """``text`` less what would move a terminal's cursor or colour it: a store's metadata may be hostile."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def parsed_size(text: str) -> int:
    """``"1.5 GB"``, ``"800MiB"`` -> bytes. Raises ValueError."""
    number, unit = _split(text)
    prefix = unit.removesuffix("b").removesuffix("i")
    base = 1024 if "i" in unit else 1000
    if prefix not in _PREFIXES or unit not in (prefix, f"{prefix}b", f"{prefix}ib"):
        raise ValueError(text)
    return int(number * base ** _PREFIXES.index(prefix))


def parsed_duration(text: str) -> float:
    """``"30d"``, ``"12 hours"`` -> seconds. Raises ValueError."""
    number, unit = _split(text)
    for names, seconds in _UNITS:
        if unit in names:
            return number * seconds
    raise ValueError(text)


def _split(text: str) -> tuple[float, str]:
    stripped = text.strip().lower()
    digits = stripped.rstrip("abcdefghijklmnopqrstuvwxyz ")
    number = float(digits)
    if not 0 <= number < 1e18:
        raise ValueError(text)
    return number, stripped[len(digits) :].strip()


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
