"""Data-parallel training: torchrun starts several processes, and each computes on its shard of every batch.

    with distributed.join():                   # if one rank fails, all exit
        ...                                    # each rank validates everything by itself
        distributed.connect(device)            # a barrier; afterwards the ranks can exchange tensors
        forward = backpropagation(..., distributed.shard_batch(model))
        gradients = distributed.all_reduce_gradients(forward, model)

All ranks make the same step from the same summed gradients, so their weights stay equal. Only rank 0 prints and writes
files. In a single process, every function here does nothing or returns its argument.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import count
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnx.errors import InputError, MachineError, NnxError, Stopped, printable
from nnx.formatting import print_wrapped
from nnx.system import accelerator
from nnx.system.dropout import bernoulli_mask, draw_mask, dropout

# Seconds between two exchanges of `any_rank_signalled`. One takes 0.3 ms, a step of mnist_mlp 2 ms (two ranks on two
# cores)
POLL_INTERVAL = 0.1
ANNOUNCE_WAIT = 5.0  # seconds of waiting for other ranks before this is printed
GRACE_PERIOD = 5.0  # seconds for a rank to notice by itself that another one has failed
STARTUP_TIMEOUT = 20.0  # seconds for rank 0 to watch for failures: it may still be importing torch
# A rank that hangs must end the run eventually. A rank that saves to a slow disk or evaluates on a slower machine must
# not.
TIMEOUT = timedelta(minutes=10)
NO_TIMEOUT = timedelta(days=20)  # the maximum of poll(2), in milliseconds

StateT = TypeVar("StateT")
Gradients = Callable[[StateT, Tensor, Tensor], Tensor]


class RankInfo(NamedTuple):
    """This process's rank and the number of processes: of the run, and on this machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int


SINGLE_PROCESS = RankInfo(0, 1, 0, 1)
RESTART_KEY = "restart"  # in the persistent store
RESUME_HINT = "The saved state is intact: continue with --resume"

_current = SINGLE_PROCESS
_persistent_store: Any = None  # the key-value store that all ranks share; it survives a restart of the ranks
_store: Any = None  # its section for this attempt: torchrun may restart all ranks
_rendezvous_count = count()  # makes the store's prefix unique
_broadcast_count = count()  # makes the keys of broadcasts unique


def current() -> RankInfo:
    """The rank of this process, inside `join`; that of a single process elsewhere."""
    return _current


@contextmanager
def join() -> Iterator[None]:
    """Around everything that a rank does, from reading the config on. If one rank fails, all exit within seconds.

    Rank 0 then raises the error of that rank, prefixed with "rank N:". The other ranks print nothing. Raises InputError
    if torchrun's environment is incomplete, MachineError if the other ranks can't be reached.
    """
    global _current, _persistent_store, _store
    _current = _environment()
    if _current.world == 1:
        yield
        return
    if _current.rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115 - open until the process exits
        sys.stderr = sys.stderr if os.environ.get("NNX_DEBUG") == "1" else sys.stdout
    finished = threading.Event()
    try:
        _persistent_store = _rendezvous()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        _store = dist.PrefixStore(attempt, _persistent_store)  # type: ignore[attr-defined]
        threading.Thread(target=_exit_after_failure, args=(_store.clone(), finished), daemon=True).start()
        if _current.rank == 0:
            _store.set("watching", "")
        yield
    except Exception as error:
        raise _root_cause(error) from error
    finally:
        finished.set()
        if dist.is_initialized():
            dist.destroy_process_group()
        _current = SINGLE_PROCESS
        _persistent_store = None
        _store = None


def connect(device: torch.device) -> None:
    """Wait until all ranks reach this point, then connect them to exchange tensors on the CPU and on `device`."""
    if _current.world == 1:
        return
    _store.set(f"ready {_current.rank}", "")
    with _announce_wait("the other ranks to get ready"):
        _wait(f"ready {rank}" for rank in range(_current.world))
    backend = accelerator.collective_backend(device)
    store = dist.PrefixStore("group", _store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=_current.rank, world_size=_current.world, timeout=TIMEOUT)


def on_rank_zero(function: Callable[[], str | None]) -> str:
    """Call `function` on rank 0 while the others wait, and return its result on all ranks. If it fails, all exit."""
    if _current.world == 1:
        return function() or ""
    key = f"result {next(_broadcast_count)}"
    if _current.rank == 0:
        _store.set(key, function() or "")
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))  # fails immediately if rank 0 dies; waiting for the key would not
    _wait([key])
    return str(_store.get(key).decode())


def store_for_restart(text: str) -> None:
    """Store `text` for the next attempt: torchrun restarts all ranks if one dies."""
    if _current.world > 1 and _current.rank == 0:
        _persistent_store.set(RESTART_KEY, text)


def stored_before_restart() -> str | None:
    """The text that `store_for_restart` stored in an earlier attempt; None if there is none."""
    if _current.world == 1 or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    return str(_persistent_store.get(RESTART_KEY).decode()) if _persistent_store.check([RESTART_KEY]) else None


def any_rank_signalled(signal: Callable[[], int]) -> Callable[[], int]:
    """A function that returns the highest `signal()` of all ranks, the same on each. All ranks must call it equally
    often.

    The ranks exchange their signals about every POLL_INTERVAL seconds, not at each call: after as many calls as the
    fastest rank makes in that time.
    """
    if _current.world == 1:
        return signal
    number = 0
    interval = 1  # calls between two exchanges
    remaining = 1  # calls until the next one
    last_exchange = time.monotonic()

    def highest_signal() -> int:
        nonlocal number, interval, remaining, last_exchange
        remaining -= 1
        if not number and not remaining:
            now = time.monotonic()
            calls = int(interval * POLL_INTERVAL / (now - last_exchange + 1e-9))
            last_exchange = now
            values = torch.tensor([signal(), max(1, min(100 * interval, calls))])
            dist.all_reduce(values, dist.ReduceOp.MAX)
            number, interval = map(int, values.tolist())
            remaining = interval
        return number

    return highest_signal


def shard(total: int) -> slice:
    """This rank's shard of `total` consecutive samples. The sizes differ by one at most; the first ranks have more."""
    size, remainder = divmod(total, _current.world)
    return slice(*(size * rank + min(rank, remainder) for rank in (_current.rank, _current.rank + 1)))


def all_gather(part: Tensor, total: int) -> Tensor:
    """(n, ...) of each rank's shard -> (total, ...) of all ranks, in order."""
    if _current.world == 1:
        return part
    whole = part.new_zeros(total, *part.shape[1:])
    whole[shard(total)] = part
    dist.all_reduce(whole)
    return whole


Forward = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, (B, ...) inputs, (B, ...) targets) -> the mean loss."""


def shard_batch(model: nn.Module) -> Callable[[Forward], Forward]:
    """A wrapper that restricts a forward pass to this rank's shard of the batch.

    The wrapped pass returns the shard's share of the batch's mean loss: summed over the ranks, these losses and their
    gradients equal those of the batch (see `all_reduce_gradients`). As in a single process, batch normalisation uses
    the statistics of the whole batch, and dropout draws its mask for the whole batch. If there are fewer samples than
    ranks, each rank computes all of them.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    has_dropout = any(isinstance(module, nn.Dropout) and module.p for module in model.modules())
    world = _current.world

    def wrap(forward: Forward) -> Forward:
        def forward_shard(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
            total = len(inputs)
            if total < world:
                return forward(model, inputs, targets).div(world)
            samples = shard(total)
            share = (samples.stop - samples.start) / total
            dropout = _BatchDropout(total, samples) if has_dropout else nullcontext()
            with dropout, _synchronised_norms(norms, share):
                return forward(model, inputs[samples], targets[samples]).mul(share)

        return forward_shard

    return wrap


def all_reduce_gradients(gradients: Gradients[StateT], model: nn.Module) -> Gradients[StateT]:
    """Wrap a function that computes gradients and returns a loss, so that it sums both over all ranks.

    Not DistributedDataParallel: it imports torch's compiler before its first step, which takes 1.7 s in each process.
    It overlaps communication with computation, but that gains nothing for networks of a few MB: 5.5 to 9.4 ms per step
    of mnist_mlp, against 4.7 to 8.7 ms here (three alternating runs, two ranks on two busy cores, torch 2.14). It also
    communicates once for each part of an accumulated batch.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, 0)  # equal seeds give equal weights, except on machines of different kinds

    def summed_gradients(state: StateT, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = gradients(state, inputs, targets)
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        packed = torch.cat([loss.view(1), *(grad.flatten() for grad in grads)])
        dist.all_reduce(packed)
        loss, *sums = torch.split(packed, [1, *(grad.numel() for grad in grads)])
        for grad, total in zip(grads, sums, strict=True):
            grad.copy_(total.view_as(grad))
        return loss[0]

    return summed_gradients


# ---------------------------------------------------------------- dropout


class _BatchDropout(TorchFunctionMode):
    """Inside, dropout draws its mask for the `total` samples of the batch and applies the part for this rank's
    `samples`. All ranks have the same generator state, so they draw the same mask."""

    def __init__(self, total: int, samples: slice) -> None:
        super().__init__()
        self.total = total
        self.samples = samples

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is dropout:
            return self._dropout(*args, draw=draw_mask)
        if func is nn.functional.dropout:
            return self._dropout(*args, **kwargs)
        if (
            func is nn.functional.scaled_dot_product_attention
            and kwargs.keys() == {"dropout_p"}
            and kwargs["dropout_p"]
        ):
            return self._attention(*args, **kwargs)
        if getattr(func, "__name__", "") in ("lstm", "gru", "rnn_tanh", "rnn_relu") and len(args) == 9:
            return self._recurrent(func, *args)
        return func(*args, **kwargs)

    def _dropout(
        self,
        x: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        *,
        dim: int = 0,
        draw: Callable[[Sequence[int], float, Tensor], Tensor] = bernoulli_mask,
    ) -> Tensor:
        """Dropout of x, whose dimension `dim` is the samples, with the mask that `draw` draws. `inplace` only saves
        memory and is ignored."""
        if not training or not p:
            return x
        mask = draw((*x.shape[:dim], self.total, *x.shape[dim + 1 :]), p, x)
        return x * mask.narrow(dim, self.samples.start, x.shape[dim])

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        """softmax(q k^T / sqrt(D)) v, like torch's, but with dropout that this mode can intercept."""
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        return self._dropout(weights, dropout_p) @ v

    def _recurrent(
        self,
        func: Callable[..., Any],
        x: Tensor,
        state: Any,
        weights: Sequence[Tensor],
        bias: bool,
        layers: int,
        p: float,
        *modes: bool,
    ) -> tuple[Tensor, ...]:
        """torch's recurrent function `func`, called layer by layer with dropout in between. Inside, x is (T, n, D)."""
        training, bidirectional, batch_first = modes
        x = x.transpose(0, 1) if batch_first else x
        is_tuple = isinstance(state, tuple)  # an LSTM's states and cells
        states = state if is_tuple else (state,)
        last_states = []
        for layer in range(layers):
            x = self._dropout(x, p, training, dim=1) if layer else x
            layer_states = tuple(tensor.unflatten(0, (layers, -1))[layer] for tensor in states)
            layer_state = layer_states if is_tuple else layer_states[0]
            layer_weights = weights[layer * len(weights) // layers : (layer + 1) * len(weights) // layers]
            x, *last = func(x, layer_state, layer_weights, bias, 1, 0.0, training, bidirectional, False)
            last_states.append(last)
        x = x.transpose(0, 1) if batch_first else x
        return x, *(torch.cat(tensors) for tensors in zip(*last_states, strict=True))


# ---------------------------------------------------------------- batch normalisation


@contextmanager
def _synchronised_norms(norms: list[Any], share: float) -> Iterator[None]:
    """Inside, the layers `norms` use the mean and variance of the whole batch. This rank has a `share` of it.

    nn.SyncBatchNorm does the same, but does not support CPU tensors.
    """
    for norm in norms:
        norm.forward = lambda x, norm=norm: _batch_norm(norm, x, share)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # restores the method of the class


def _batch_norm(norm: Any, x: Tensor, share: float) -> Tensor:
    """Normalise x, (n, C, ...), this rank's share of the batch. Updates the running statistics as torch does."""
    y: Tensor
    y, mean, variance = _SyncBatchNorm.apply(x, norm.weight, norm.bias, norm.eps, share)
    with torch.no_grad():
        N = x.numel() / x.shape[1] / share
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (N / (N - 1)), norm.momentum)
    return y


class _SyncBatchNorm(torch.autograd.Function):
    """y = weight * xhat + bias, xhat = (x - m) / sqrt(v + eps), with the mean m and variance v of the whole batch.

    The backward pass takes torch's gradient for constant m and v and subtracts the terms through m and v (Ioffe &
    Szegedy 2015). With means over the whole batch:
    dx = weight / sqrt(v + eps) * (dy - mean(dy) - xhat * mean(dy * xhat)).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, share: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = torch.batch_norm_update_stats(x.float(), None, None, 0.0)
        statistics = _gather(torch.stack([mean, variance, torch.full_like(mean, share)]))  # (world, 3, C)
        means, variances, shares = statistics.unbind(1)
        mean = (shares * means).sum(0)
        # The variance within the ranks and between them (Chan et al. 1979)
        variance = (shares * (variances + (means - mean) ** 2)).sum(0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.share = share
        ctx.mark_non_differentiable(mean, variance)
        return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        N = x.numel() / x.shape[1] / ctx.share
        mean_dy, mean_dy_xhat = _gather(torch.stack([dbias, dweight])).sum(0) / N
        deviation = (variance + ctx.eps).sqrt()
        slope = -weight * mean_dy_xhat / (deviation * deviation)
        offset = -weight * mean_dy / deviation - slope * mean
        slope, offset = (tensor.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2)) for tensor in (slope, offset))
        return dx.addcmul_(x, slope).add_(offset), dweight, dbias, None, None


def _gather(tensor: Tensor) -> Tensor:
    """(...) of each rank -> (world, ...) of all ranks."""
    return all_gather(tensor[None], _current.world)


# ---------------------------------------------------------------- failures


def _environment() -> RankInfo:
    """The rank that torchrun's environment variables give. Raises InputError if they are incomplete."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return SINGLE_PROCESS
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    values = [os.environ.get(name, "") for name in names]
    if invalid := [f"{name}={value}" for name, value in zip(names, values, strict=True) if not value.isdecimal()]:
        raise InputError(f"{invalid[0]}: must be a number if WORLD_SIZE is set; start the run with torchrun or --nproc")
    if not os.environ.get("MASTER_ADDR"):
        raise InputError("MASTER_ADDR: is missing, but WORLD_SIZE is set; start the run with torchrun or --nproc")
    if not 0 < int(values[4]) < 2**16:
        raise InputError(f"MASTER_PORT={values[4]}: is not a port; name one from 1 to 65535")
    info = RankInfo(*map(int, values[:4]))
    start = "start the run with torchrun or --nproc"
    places = (
        ("RANK", info.rank, "WORLD_SIZE", info.world),
        ("LOCAL_RANK", info.local_rank, "LOCAL_WORLD_SIZE", info.local_world),
    )
    for number, rank, size, world in places:
        if rank >= world:
            raise InputError(f"{number}={rank} and {size}={world}: do not fit, ranks count from 0; {start}")
    if info.local_world > info.world:
        raise InputError(f"LOCAL_WORLD_SIZE={info.local_world} and WORLD_SIZE={info.world}: do not fit; {start}")
    return info


@contextmanager
def _announce_wait(what: str) -> Iterator[None]:
    """Print what this rank waits for inside, once that has taken ANNOUNCE_WAIT seconds."""

    def announce() -> None:
        message = f"rank {_current.rank} of {_current.world}: waiting for {what}"
        print_wrapped(message, sys.__stderr__)

    timer = threading.Timer(ANNOUNCE_WAIT, announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _rendezvous() -> Any:
    """The store that torchrun, or rank 0, serves to all ranks. Raises MachineError if it can't be reached."""
    prefix = f"nnx {next(_rendezvous_count)}"
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    others = f"the other processes at {address}" if _current.rank == 0 else f"rank 0 at {address}"
    try:
        with _announce_wait(others):
            store, *_ = next(dist.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise MachineError(f"{address}: can't reach the other processes of this run ({reason})") from None
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _wait(keys: Iterable[str]) -> None:
    """Wait until all `keys` are in the store. Raises the error of another rank if one fails. Handles signals meanwhile,
    as a blocking wait of the store would not."""
    keys = list(keys)
    while not _store.check(keys):
        if report := _failure_report():
            raise _remote_error(report)
        time.sleep(0.01)


def _root_cause(error: Exception) -> Exception:
    """The error that this rank should raise: that of another rank if it is the cause, else `error`, which this reports
    to the other ranks."""
    if _current.rank == 0:
        with suppress(ValueError):  # not in the main thread
            # torchrun sends SIGTERM after a rank has exited; rank 0 must still print the cause
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if (report := _failure_report()) and (not isinstance(error, NnxError) or isinstance(error, Stopped)):
        return _remote_error(report)
    # gloo raises a bare RuntimeError that names its source file
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        failure = (
            f"another of the {_current.world} processes died or did not respond for {TIMEOUT.seconds // 60} minutes"
        )
        return MachineError(f"{failure}. {RESUME_HINT}")
    is_bug = not isinstance(error, NnxError)
    text = f"a bug in nnx: {type(error).__name__}: {error}. NNX_DEBUG=1 shows the traceback" if is_bug else str(error)
    text = text if getattr(error, "has_lines", False) else printable(text)
    _report_failure(f"{getattr(error, 'exit_code', 1)} rank {_current.rank}: {text}")
    return error


def _remote_error(report: str) -> NnxError:
    """The error of the rank that reported "CODE rank N: TEXT"."""
    code, text = report.split(" ", 1)
    if int(code) > 128:
        return Stopped(text.partition(": ")[2], signal=int(code) - 128)
    error = NnxError(text)
    error.has_lines = True  # the reporting rank has escaped names
    error.exit_code = int(code)
    return error


def _report_failure(report: str) -> None:
    """Store a report for the other ranks, unless there is one: the first failure is the cause.

    Waits until rank 0 watches for reports, because torchrun terminates the other ranks when one exits.
    """
    with suppress(RuntimeError, AttributeError):  # the store's server has exited, or was never reached
        _store.compare_set("failure", "", report)
        deadline = time.monotonic() + STARTUP_TIMEOUT
        while not _store.check(["watching"]) and time.monotonic() < deadline:
            time.sleep(0.01)


def _failure_report() -> str:
    """The report of the rank that failed first; empty if none has."""
    with suppress(RuntimeError, AttributeError):  # the store's server has exited, or was never reached
        if _store.check(["failure"]):
            return str(_store.get("failure").decode())
    return ""


def _exit_after_failure(store: Any, finished: threading.Event) -> None:
    """Wait for a failure report, then exit this process unless it finishes within GRACE_PERIOD seconds: it may be
    evaluating or waiting for a GPU."""
    report = ""
    with suppress(RuntimeError):  # the store's server has exited
        store.wait(["failure"], NO_TIMEOUT)
        report = store.get("failure").decode()
    if finished.wait(GRACE_PERIOD):
        return
    error = _remote_error(report) if report else MachineError(f"torchrun or rank 0 died. {RESUME_HINT}")
    if _current.rank == 0:
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # progress hides it
        sys.stderr.write(show_cursor)
        print_wrapped(f"error: {error}")
        sys.stderr.flush()
    os._exit(error.exit_code)
