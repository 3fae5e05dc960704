"""The usual training loop, as most tutorials write it: the baseline of the benchmark."""

import argparse
from itertools import islice

import torch
from contestant import BATCH, LR, dataset, endless, serve
from network import build
from torch import nn
from torch.utils.data import DataLoader


def main() -> None:
    """Serve the network 784-256-128-10, or that of a recipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()

    if options.recipe:
        model = build(options.recipe, options.overrides)
    else:
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
        )  # fmt: skip
    device = torch.device(options.device)
    model = model.to(device)
    loader = DataLoader(dataset(), batch_size=BATCH, shuffle=True, num_workers=options.workers)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    batches = endless(loader)

    def train(samples: int) -> tuple[int, float]:
        running_loss, seen, steps = 0.0, 0, samples // BATCH
        for images, labels in islice(batches, steps):
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            seen += len(labels)
        return seen, running_loss / steps

    serve(train, torch=torch.__version__, threads=torch.get_num_threads(), workers=options.workers)


if __name__ == "__main__":
    main()
