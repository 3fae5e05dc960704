"""Figures as a reader wants them: the screen and the report write them alike, and say how sure they are."""

import math


def wilson(accuracy: float, samples: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927): honest near 0 and 1, unlike the normal approximation."""
    centre = accuracy + z**2 / (2 * samples)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / samples + z**2 / (4 * samples**2))
    return (centre - spread) / (1 + z**2 / samples), (centre + spread) / (1 + z**2 / samples)


def percent(fraction: float) -> str:
    """Two decimals, as test sets of 10,000 have."""
    return f"{fraction:.2%}".replace("%", " %")


def loss(value: float) -> str:
    """Four digits, whatever the size."""
    return f"{value:#.4g}".rstrip(".")


def seconds(duration: float) -> str:
    """Tenths where they matter."""
    return f"{duration:.1f} s" if duration < 100 else f"{duration:,.0f} s"


def size(count: float) -> str:
    """Bytes in three digits, in the unit that suits: 43,120,000 as "43.1 MB"."""
    for unit, power in (("B", 0), ("kB", 3), ("MB", 6)):
        if count < 10 ** (power + 3):
            return f"{count / 10**power:.3g} {unit}"
    return f"{count / 10**9:,.1f} GB"


def interval(accuracy: float, samples: int) -> str:
    """ "95 % interval 97.64 to 98.20 %", by `wilson`."""
    low, high = wilson(accuracy, samples)
    return f"95 % interval {100 * low:.2f} to {percent(high)}"
