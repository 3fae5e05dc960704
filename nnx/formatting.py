"""Format figures for people, the same way on the terminal and in the report: losses, percentages, sizes, intervals."""

import math


def wilson(accuracy: float, samples: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson 1927). Unlike the normal one, it holds near 0 and 1, too."""
    centre = accuracy + z**2 / (2 * samples)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / samples + z**2 / (4 * samples**2))
    return (centre - spread) / (1 + z**2 / samples), (centre + spread) / (1 + z**2 / samples)


def percent(fraction: float) -> str:
    """Two decimals, the resolution of 10,000 test samples: 0.9794 as "97.94 %"."""
    return f"{fraction:.2%}".replace("%", " %")


def loss(value: float) -> str:
    """Four significant digits: 0.12345 as "0.1235"."""
    return f"{value:#.4g}".rstrip(".")


def seconds(duration: float) -> str:
    """A duration in seconds, with tenths below 100 s: "12.3 s"."""
    return f"{duration:.1f} s" if duration < 100 else f"{duration:,.0f} s"


def size(count: float) -> str:
    """A number of bytes with three digits, in a suitable unit: 43,120,000 as "43.1 MB"."""
    for unit, power in (("B", 0), ("kB", 3), ("MB", 6)):
        if count < 10 ** (power + 3):
            return f"{count / 10**power:.3g} {unit}"
    return f"{count / 10**9:,.1f} GB"


def interval(accuracy: float, samples: int) -> str:
    """The interval of `wilson` as text: "95 % interval 97.64 to 98.20 %"."""
    low, high = wilson(accuracy, samples)
    return f"95 % interval {100 * low:.2f} to {percent(high)}"
