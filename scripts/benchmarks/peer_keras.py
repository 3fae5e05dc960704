"""Keras 3 on torch or JAX (the argument): Sequential, compile, fit on an array."""

import os
import sys

os.environ["KERAS_BACKEND"] = sys.argv[1]

import keras
from contestant import BATCH, LR, SIZES, arrays, portions, serve


def train(samples: int) -> tuple[int, float]:
    epochs, size = portions(samples)
    history = network.fit(images[:size], labels[:size], batch_size=BATCH, epochs=epochs, verbose=0)
    return epochs * size, history.history["loss"][-1]


images, labels = arrays()
layers = [keras.layers.Dense(units, activation="relu") for units in SIZES[1:-1]]
network = keras.Sequential([keras.Input(SIZES[:1]), *layers, keras.layers.Dense(SIZES[-1])])
network.compile(keras.optimizers.Adam(LR), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
serve(train, keras=keras.__version__, backend=keras.backend.backend())
