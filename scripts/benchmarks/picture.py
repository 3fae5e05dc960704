"""The bar chart of the README."""

from pathlib import Path
from typing import Any

OURS = "#2a6fdb"
THEIRS = "#a9b4c2"
BOUND = "#d9dee5"
INK = "#1c2733"
PAPER = "#ffffff"  # white, so that it is legible on a dark page too


def draw(rows: list[dict[str, Any]], caption: str, path: Path) -> None:
    """Draw horizontal bars, the fastest on top, nnx in blue."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    rows = sorted(rows, key=lambda row: row["value"])
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.36 * len(rows)), dpi=160, facecolor=PAPER, layout="constrained")
    colours = [OURS if row["name"].startswith("nnx") else BOUND if "floor" in row["name"] else THEIRS for row in rows]
    bars = axes.barh([row["name"] for row in rows], [row["value"] for row in rows], color=colours, height=0.72)
    axes.bar_label(bars, [_label(row) for row in rows], padding=4, color=INK, fontsize=9)
    axes.set_xlim(0, 1.25 * rows[-1]["value"])
    axes.set_title(
        "Training samples per second: MLP 784-256-128-10, batch 128, Adam, float32", color=INK, fontsize=10, loc="left"
    )
    axes.set_xlabel(caption, color=INK, fontsize=7, loc="left")
    axes.tick_params(left=False, bottom=False, labelbottom=False, colors=INK, labelsize=9)
    axes.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _label(row: dict[str, Any]) -> str:
    times = f"  ({row['x_beginner']:.1f}×)" if row.get("x_beginner") else ""
    return f"{row['value']:,.0f}{times}"
