"""skorch: a scikit-learn classifier around a torch module, partial_fit on an array."""

import skorch
import torch
from contestant import BATCH, LR, arrays, portions, serve
from torch import nn


def train(samples: int) -> tuple[int, float]:
    epochs, size = portions(samples)
    network.partial_fit(images[:size], labels[:size], epochs=epochs)
    return epochs * size, float(network.history[-1, "train_loss"])


images, labels = arrays()
network = skorch.NeuralNetClassifier(
    nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)),
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.Adam,
    lr=LR,
    batch_size=BATCH,
    iterator_train__shuffle=True,
    train_split=None,
    verbose=0,
)
serve(train, skorch=skorch.__version__, torch=torch.__version__, threads=torch.get_num_threads())
