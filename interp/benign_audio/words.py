"""Numbers as sentences have them: shares in percent with their intervals, counts with their nouns."""

from __future__ import annotations

import math

from interp.evals.statistics import Interval


def share(interval: Interval) -> str:
    """A share, which lies between nothing and all; Student's interval does not know that."""
    return part_of(Interval(interval.value, max(0.0, interval.low), min(1.0, interval.high), interval.n))


def part_of(interval: Interval) -> str:
    """A part of a gap, which may be less than nothing or more than all."""
    span = f" [{percent(interval.low)}, {percent(interval.high)}]" if math.isfinite(interval.low) else ""
    return f"{percent(interval.value)}{span}"


def coefficient(interval: Interval) -> str:
    """A correlation with its interval."""
    span = f" [{interval.low:.2f}, {interval.high:.2f}]" if math.isfinite(interval.low) else ""
    return f"{interval.value:.2f}{span}".replace("-", "−")


def percent(share: float) -> str:
    """A share without an interval."""
    return "–" if not math.isfinite(share) else f"{100 * share:.1f} %".replace("-", "−")


def count(n: int, what: str) -> str:
    """So many of them."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def capital(text: str) -> str:
    """The text as a sentence begins."""
    return text[:1].upper() + text[1:]
