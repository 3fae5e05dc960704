"""Each kind of layer in numpy alone. The numpy exporter copies those that a network uses into its file, as they are.

B samples, C channels, H and W height and width, T steps or tokens, D numbers for each of them.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="no-any-return"

import math

import numpy as np


def table_features(rows, column, category, missing, mean, std, is_number, is_category, is_missing):
    """(B, columns) -> (B, features): each column as one number, or as one feature for each of its categories."""
    values = rows[:, column]  # the value that each feature is about
    absent = np.isnan(values)
    number = np.clip((np.where(absent, missing, values) - mean) / std, -1e6, 1e6)
    flag = (is_category & (values == category)) | (is_missing & absent)
    return np.where(is_number, number, flag).astype(np.float32)


def linear(x, weights, bias):
    """(..., inputs) -> (..., units). Each unit adds up its inputs, each times its weight, and a bias."""
    weighted_sum = x @ weights + bias
    return weighted_sum


def convolution(x, weights, bias, before, after, stride):
    """(B, C, H, W) -> (B, filters, H', W'). Each filter slides over the image: at each place, it adds up the pixels
    below it, each times its weight. The image gets rows and columns of zeros `before` and `after` it."""
    x = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weights.shape[2:], axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]  # (B, C, H', W', height, width): what the filter sees at each place
    weighted_sum = np.tensordot(windows, weights, axes=((1, 4, 5), (1, 2, 3))) + bias  # (B, H', W', filters)
    return weighted_sum.transpose(0, 3, 1, 2)


def max_pool(x):
    """(B, C, H, W) -> (B, C, H/2, W/2): the largest of each 2 x 2 numbers."""
    return squares(x).max(axis=(3, 5))


def average_pool(x):
    """(B, C, H, W) -> (B, C, H/2, W/2): the average of each 2 x 2 numbers."""
    return squares(x).mean(axis=(3, 5))


def squares(x):
    """(B, C, H, W) -> (B, C, H/2, 2, W/2, 2). A last row or column without a partner is left out."""
    B, C, H, W = x.shape
    return x[:, :, : H // 2 * 2, : W // 2 * 2].reshape(B, C, H // 2, 2, W // 2, 2)


def normalise(x, scale, shift):
    """Batch normalisation with the mean and the variance of the training data: per unit, or per channel of images."""
    shape = (-1, 1, 1) if x.ndim == 4 else (-1,)
    return x * scale.reshape(shape) + shift.reshape(shape)


def layer_norm(x, scale, shift, epsilon):
    """(..., D): each sample's D numbers, shifted to mean 0 and scaled to variance 1, then by learned numbers."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * scale + shift


def rnn(steps, input_weights, state_weights, bias):
    """(B, T, inputs) -> (B, T, units): the state after each step, computed from the step and the state before it."""
    state = np.zeros((len(steps), len(state_weights)), np.float32)
    states = []
    for x in steps.transpose(1, 0, 2):
        weighted_sum = x @ input_weights + state @ state_weights + bias
        state = np.tanh(weighted_sum)
        states.append(state)
    return np.stack(states, axis=1)


def lstm(steps, input_weights, state_weights, bias):
    """(B, T, inputs) -> (B, T, units): the state after each step. Gates between 0 and 1 decide what the memory forgets,
    what it takes in, and what the state shows of it."""
    state = memory = np.zeros((len(steps), len(state_weights)), np.float32)
    states = []
    for x in steps.transpose(1, 0, 2):
        weighted_sum = x @ input_weights + state @ state_weights + bias
        input_gate, forget_gate, candidate, output_gate = np.split(weighted_sum, 4, axis=1)
        memory = sigmoid(forget_gate) * memory + sigmoid(input_gate) * np.tanh(candidate)
        state = sigmoid(output_gate) * np.tanh(memory)
        states.append(state)
    return np.stack(states, axis=1)


def gru(steps, input_weights, state_weights, input_bias, state_bias):
    """(B, T, inputs) -> (B, T, units): the state after each step. One gate decides how much of the old state the
    candidate sees, another how much of it remains."""
    state = np.zeros((len(steps), len(state_weights)), np.float32)
    states = []
    for x in steps.transpose(1, 0, 2):
        of_input = np.split(x @ input_weights + input_bias, 3, axis=1)
        of_state = np.split(state @ state_weights + state_bias, 3, axis=1)
        reset_gate = sigmoid(of_input[0] + of_state[0])
        update_gate = sigmoid(of_input[1] + of_state[1])
        candidate = np.tanh(of_input[2] + reset_gate * of_state[2])
        state = (1 - update_gate) * candidate + update_gate * state
        states.append(state)
    return np.stack(states, axis=1)


def patches(x, size):
    """(B, C, H, W) -> (B, T, C * size * size): the image cut into T squares, each a row of numbers."""
    B, C, H, W = x.shape
    x = x.reshape(B, C, H // size, size, W // size, size).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(B, -1, C * size * size)


def attention(x, weights, bias, heads):
    """(B, T, D) -> (B, T, D). Each token asks a query. Its similarity to the key of each token says how much of that
    token's value it takes. Each head does so with its own D / heads numbers."""
    B, T, D = x.shape
    weighted_sum = x @ weights + bias  # (B, T, 3 * D)
    query, key, value = weighted_sum.reshape(B, T, 3, heads, D // heads).transpose(2, 0, 3, 1, 4)
    similarity = query @ key.swapaxes(2, 3) / math.sqrt(D // heads)  # (B, heads, T, T)
    answer = softmax(similarity) @ value  # (B, heads, T, D / heads)
    return answer.transpose(0, 2, 1, 3).reshape(B, T, D)


def softmax(x):
    """(..., K) -> (..., K): positive numbers that add up to 1. Subtracting the largest changes nothing, but avoids
    numbers that are too large to compute."""
    exponential = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def two_classes(logit):
    """(B, 1) -> (B, 2): the probability of the second class by a sigmoid, and the rest for the first."""
    second = sigmoid(logit)
    return np.concatenate([1 - second, second], axis=1)


# ---------------------------------------------------------------- activations


def relu(x):
    return np.maximum(x, 0)


def relu6(x):
    return np.clip(x, 0, 6)


def leaky_relu(x):
    return np.where(x > 0, x, 0.01 * x)


def prelu(x, slope):
    return np.where(x > 0, x, slope * x)


def rrelu(x):
    slope = (1 / 8 + 1 / 3) / 2  # random in training
    return np.where(x > 0, x, slope * x)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def celu(x):
    return elu(x)


def selu(x):
    scale, alpha = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def gelu(x):
    normal_distribution = (1 + error_function(x / math.sqrt(2))) / 2
    return x * normal_distribution


def error_function(x):
    return np.vectorize(math.erf, otypes=[np.float32])(x)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))  # 1 / (1 + exp(-x)), without overflow


def logsigmoid(x):
    return -np.logaddexp(0, -x)


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.logaddexp(0, x)


def mish(x):
    return x * np.tanh(softplus(x))


def softsign(x):
    return x / (1 + np.abs(x))


def tanh(x):
    return np.tanh(x)


def tanhshrink(x):
    return x - np.tanh(x)


def softshrink(x):
    return np.sign(x) * np.maximum(np.abs(x) - 0.5, 0)


def hardshrink(x):
    return np.where(np.abs(x) > 0.5, x, 0)


def hardtanh(x):
    return np.clip(x, -1, 1)


def hardsigmoid(x):
    return np.clip(x + 3, 0, 6) / 6


def hardswish(x):
    return x * hardsigmoid(x)
