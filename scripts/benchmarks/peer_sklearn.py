"""scikit-learn's MLPClassifier, without its default weight decay: one partial_fit on an array for each epoch."""

import numpy as np
import sklearn  # noqa: TID253 - this program measures it
from contestant import BATCH, LR, SIZES, arrays, portions, serve
from sklearn.neural_network import MLPClassifier  # noqa: TID253


def train(samples: int) -> tuple[int, float]:
    epochs, size = portions(samples)
    for _ in range(epochs):
        network.partial_fit(images[:size], labels[:size], classes=np.arange(SIZES[-1]))
    return epochs * size, float(network.loss_)


images, labels = arrays()
network = MLPClassifier(SIZES[1:-1], alpha=0, batch_size=BATCH, learning_rate_init=LR)
serve(train, sklearn=sklearn.__version__)
