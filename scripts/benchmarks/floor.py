"""The floor: only the matrix products of a training step of the MLP.

No training loop for the same network can be faster with torch's matrix products.
"""

import argparse
from itertools import pairwise

import torch
from contestant import BATCH, SIZES, serve


def main() -> None:
    """Serve steps on random numbers, without data and without learning."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=SIZES)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_default_device(options.device)

    values = [torch.randn(options.batch, size) for size in options.sizes]  # the inputs of each layer, and the logits
    errors = [torch.randn(options.batch, size) for size in options.sizes]
    weights = [torch.randn(units, inputs) / inputs**0.5 for inputs, units in pairwise(options.sizes)]
    gradients = [torch.empty_like(weight) for weight in weights]

    def step() -> None:
        for layer, weight in enumerate(weights):
            torch.mm(values[layer], weight.t(), out=values[layer + 1])
        for layer in reversed(range(len(weights))):
            torch.mm(errors[layer + 1].t(), values[layer], out=gradients[layer])
            if layer:  # the images need no gradient
                torch.mm(errors[layer + 1], weights[layer], out=errors[layer])

    def train(samples: int) -> tuple[int, None]:
        steps = -(-samples // options.batch)
        for _ in range(steps):
            step()
        gradients[0][0, 0].item()  # waits for a GPU
        return steps * options.batch, None

    serve(train, torch=torch.__version__, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
