"""fastai: a Learner on torchvision's MNIST, without progress bars, printing and validation."""

import fastai
import torch
from contestant import BATCH, LR, dataset, portions, serve
from fastai.basics import Adam, Callback, CancelValidException, DataLoaders, Learner
from fastai.callback import progress  # noqa: F401 - adds no_bar to the Learner
from torch import nn


class NoValidation(Callback):
    """Skips validation, as the other contestants do."""

    def before_validate(self) -> None:
        """Cancel it."""
        raise CancelValidException


def train(samples: int) -> tuple[int, float]:
    epochs, size = portions(samples)
    loaders.train.n = size
    with learner.no_bar(), learner.no_logging():
        learner.fit(epochs)
    return epochs * size, float(learner.recorder.losses[-1])


images = dataset()
network = nn.Sequential(
    nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
)
loaders = DataLoaders.from_dsets(images, images, bs=BATCH, device="cpu", num_workers=0)
learner = Learner(loaders, network, loss_func=nn.CrossEntropyLoss(), opt_func=Adam, lr=LR, cbs=NoValidation())
serve(train, fastai=fastai.__version__, torch=torch.__version__, threads=torch.get_num_threads())
