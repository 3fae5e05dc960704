"""What the exported networks of the tests are: tiny, one for each architecture, on three kinds of data."""

import numpy as np

ARCHITECTURES = {
    "mlp": "{name: mlp, hidden: [12, 8], activation: silu, norm: batch, dropout: 0.1}",
    "cnn": "{name: cnn, channels: [6, 8], hidden: [10]}",
    "rnn": "{name: rnn, hidden: 12, cell: gru}",
    "transformer": "{name: transformer, width: 16, depth: 2, heads: 2, patch: 4}",
}
DATA = ("digits", "arrays", "table")


def table(rows: int = 150) -> str:
    """A CSV with numbers of very different sizes, categories, gaps in both, and a column that never changes."""
    rng = np.random.default_rng(0)
    lines = ["seconds,weight,colour,grade,constant,broken"]
    for _ in range(rows):
        weight = "" if rng.random() < 0.1 else f"{rng.normal(0.001, 0.0001):.7f}"
        colour = "" if rng.random() < 0.1 else rng.choice(["red", "green", "blue, dark"])
        colour = f'"{colour}"' if "," in colour else colour
        seconds = 1_700_000_000 + int(rng.integers(0, 1000))
        broken = "yes" if (colour == "red") != (seconds % 1000 > 800) else "no"
        lines.append(f"{seconds},{weight},{colour},{rng.choice(['a', 'b'])},7,{broken}")
    return "\n".join(lines) + "\n"
