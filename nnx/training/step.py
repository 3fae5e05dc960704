"""Faster ways to make a step. Each wraps a function in a function: the loop can't tell which one it calls.

AUTOGRAD     forward and backward by autograd, operation by operation
MATRICES     a plain MLP on the CPU: backpropagation written out in matrices
COMPILED     torch.compile of forward and loss
CUDA_GRAPH   the whole step recorded once and replayed: one launch instead of hundreds
DISTRIBUTED  autograd in several processes, each on its share of the batch
"""

import enum
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nnx import losses, models
from nnx.config import Config
from nnx.config.registry import Component
from nnx.errors import DeviceError
from nnx.events import Choice
from nnx.losses import Criterion
from nnx.system import accelerator, distributed, platform
from nnx.system.device import Runtime
from nnx.training.loop import backpropagation, train_step
from nnx.training.state import GradientFunction, State, StepFunction

# Steps by autograd before a CUDA graph is recorded: what libraries and optimizers set up in their first steps must not
# be in it.
WARM_UP = 3

# An activation in place, and the gradient before it from the gradient behind it and its output: torch's own kernels.
_aten = torch.ops.aten
ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.ReLU: (torch.relu_, lambda grad, output: _aten.threshold_backward(grad, output, 0)),
    nn.Sigmoid: (torch.sigmoid_, _aten.sigmoid_backward),
    nn.Tanh: (torch.tanh_, _aten.tanh_backward),
}


class StepMethod(enum.Enum):
    """How a step is made. The value is the name that is printed."""

    AUTOGRAD = "as is"
    MATRICES = "matrices"
    COMPILED = "compiled"
    CUDA_GRAPH = "CUDA graph"
    COMPILED_CUDA_GRAPH = "compiled, CUDA graph"
    DISTRIBUTED = "as is, by several processes"


def choose_step(config: Config, model: nn.Module, runtime: Runtime) -> tuple[StepMethod, Choice]:
    """How to make steps for `compile` auto, true or false, and the choice as it is printed, with its reason.

    Raises DeviceError where `compile: true` asks for what this machine or run can't do.
    """
    method, reason = _method(config, model, runtime)
    world = distributed.current().world
    value = f"as is, by {world} processes" if method is StepMethod.DISTRIBUTED else method.value
    return method, Choice("step", value, reason)


def make_step(
    method: StepMethod, loss: Component, criterion: Criterion, runtime: Runtime, model: nn.Module
) -> StepFunction:
    """The function that makes one step of `model`, by `method`."""
    match method:
        case StepMethod.MATRICES:
            return train_step(matrix_backpropagation(loss_with_gradient(loss, criterion), model))
        case StepMethod.DISTRIBUTED:
            share = backpropagation(criterion, runtime, distributed.shard_batch(model))
            return train_step(distributed.all_reduce_gradients(share, model))
        case StepMethod.COMPILED:
            return train_step(backpropagation(criterion, runtime, compiled))
        case StepMethod.CUDA_GRAPH:
            return capture_cuda_graph(train_step(backpropagation(criterion, runtime)))
        case StepMethod.COMPILED_CUDA_GRAPH:
            return capture_cuda_graph(train_step(backpropagation(criterion, runtime, compiled)))
        case StepMethod.AUTOGRAD:
            return train_step(backpropagation(criterion, runtime))


def _method(config: Config, model: nn.Module, runtime: Runtime) -> tuple[StepMethod, str]:
    """The method for this run, and why. Raises DeviceError."""
    asked, kind = config.compile is True, runtime.device.type
    if distributed.current().world > 1:
        if asked:
            raise DeviceError("compile: true needs a single process; use compile: auto, or train without torchrun")
        return StepMethod.DISTRIBUTED, "each takes its share of every batch"
    if config.compile is False:
        return StepMethod.AUTOGRAD, "compile: false"
    if asked and kind == "cpu" and not any(map(shutil.which, platform.COMPILERS)):
        raise DeviceError(
            f"compile: true needs a C++ compiler ({' or '.join(platform.COMPILERS)}), and there is none; "
            "install one, or use compile: auto"
        )
    why_not = _not_recordable(config, runtime)
    if accelerator.records_graphs(runtime.device) and why_not is None:
        method = StepMethod.COMPILED_CUDA_GRAPH if asked else StepMethod.CUDA_GRAPH
        return method, "one kernel launch per step instead of hundreds"
    if asked:
        return StepMethod.COMPILED, "as requested"
    if accelerator.records_graphs(runtime.device):
        return StepMethod.AUTOGRAD, str(why_not)
    exact = kind == "cpu" and runtime.dtype == torch.float32 and config.train.accumulate == 1
    if exact and _is_plain(model):
        return StepMethod.MATRICES, "a plain MLP on a CPU: backpropagation without autograd's overhead"
    return StepMethod.AUTOGRAD, f"compiling takes 15 s or more, longer than it saves on {kind}"


def _is_plain(model: nn.Module) -> bool:
    """Only linear layers with known activations between them, all of them trained."""
    kinds = [type(layer) for layer in model.plain_layers()] if isinstance(model, models.PlainModel) else []
    linears, others = kinds[::2], kinds[1::2]
    plain = set(linears) == {nn.Linear} and len(linears) == len(others) + 1 and set(others) <= ACTIVATIONS.keys()
    return plain and all(parameter.requires_grad for parameter in model.parameters())


def matrix_backpropagation(
    loss_with_gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], model: nn.Module
) -> GradientFunction:
    """Backpropagation in matrices, for layers Linear, activation, Linear, ..., Linear: the gradients of autograd within
    rounding (tested).

    Where a is a layer's activations, (B, units), and delta the gradient of its weighted sums, (B, units):

        forward    a = activation(a_before @ weight.T + bias)
        backward   weight.grad = delta.T @ a_before,  bias.grad = delta summed over B,
                   delta_before = (delta @ weight) * activation'
    """
    layers = [(layer.weight, layer.bias) for layer in model.modules() if isinstance(layer, nn.Linear)]
    sums = [(bias.detach(), weight.detach().t()) for weight, bias in layers]  # views: they follow the weights
    activations = [ACTIVATIONS[type(layer)] for layer in model.modules() if type(layer) in ACTIVATIONS]
    grads = [(torch.empty_like(weight), torch.empty_like(bias)) for weight, bias in layers]

    @torch.no_grad()
    def gradients(state: State, inputs: Tensor, targets: Tensor) -> Tensor:
        a = [inputs.flatten(1)]
        for (bias, weight), (activation, _) in zip(sums[:-1], activations, strict=True):
            a.append(activation(torch.addmm(bias, a[-1], weight)))
        loss, delta = loss_with_gradient(torch.addmm(sums[-1][0], a[-1], sums[-1][1]), targets)
        for n in reversed(range(len(layers))):
            (weight, bias), (weight.grad, bias.grad) = layers[n], grads[n]
            torch.mm(delta.t(), a[n], out=weight.grad)
            torch.sum(delta, 0, out=bias.grad)
            if n:
                delta = activations[n - 1][1](torch.mm(delta, weight), a[n])
        return loss

    return gradients


def loss_with_gradient(loss: Component, criterion: Criterion) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function from (B, K) logits and targets to the mean loss and its (B, K) gradient with respect to the logits."""
    if isinstance(loss, losses.CrossEntropy) and loss.class_weights is None:
        return loss.with_gradient

    def by_autograd(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            mean = criterion(logits.requires_grad_(), targets)
            return mean.detach(), torch.autograd.grad(mean, logits)[0]

    return by_autograd


def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile: once for a full batch, and once for an epoch's last, smaller one."""
    return torch.compile(forward, dynamic=False)


def capture_cuda_graph(step: StepFunction) -> StepFunction:
    """`step`, recorded once for each batch size after WARM_UP steps by autograd, and replayed from then on. Run
    on a simulated device only (tests/simulated_gpu.py): no GPU was available.

    What changes from step to step is read from fixed memory: the batch and the learning rate from tensors that are
    filled, dropout's seed from the generator, whose state a graph reads at each replay.
    """
    calls: Counter[torch.Size] = Counter()
    recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}

    def replay(state: State, inputs: Tensor, targets: Tensor) -> Tensor:
        key = inputs.shape
        if not calls:
            _record_lr(state)
        if key not in recorded:
            calls[key] += 1
            if calls[key] <= WARM_UP:
                # by autograd, but on a stream of its own, as the recording will be
                side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    loss = step(state, inputs, targets)
                torch.cuda.current_stream().wait_stream(side)
                return loss
            graph = torch.cuda.CUDAGraph()
            places = (inputs.clone(), targets.clone())
            with torch.cuda.graph(graph):
                loss = step(state, *places)
            recorded[key] = (graph, *places, loss)
        graph, to_inputs, to_targets, loss = recorded[key]
        to_inputs.copy_(inputs)
        to_targets.copy_(targets)
        graph.replay()
        return loss

    return replay


def _record_lr(state: State) -> None:
    """Put the learning rates into tensors on the device, and set the optimizers to `capturable`."""
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=state.loss.device)
            if "capturable" in group:
                group["capturable"] = True


def _not_recordable(config: Config, runtime: Runtime) -> str | None:
    """Why a step can't be a CUDA graph; None if it can."""
    if runtime.dtype == torch.float16:
        return "float16 adapts the scale of the loss after each step, which a CUDA graph can't"
    if config.optimizer.name not in ("sgd", "adam", "adamw"):
        return f"{config.optimizer.name} makes decisions in Python, which a CUDA graph can't"
    return None
