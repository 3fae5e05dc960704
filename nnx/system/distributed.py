"""Several processes, one run: torchrun starts them and says who is who; of each batch, each takes its share.

    with ranks.joined():                       # when one leaves by an error, all do
        ...                                    # each checks everything by itself
        ranks.connect(device)                  # once all have come so far
        gradients = ranks.summing(backpropagation(..., fuse=ranks.sharing(model)), model)

Every rank makes the same step from the same sums, so that all have the same weights; rank 0 speaks and writes for all.
For one process alone, nothing here does anything.
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

from nnx.errors import InputError, MachineError, NnxError, Stopped

# seconds between two questions of `agreed`: each takes 0.3 ms, a step of mnist_mlp 2 ms (two ranks on two cores)
PAUSE = 0.1
GRACE = 5.0  # seconds for a rank to notice by itself that another has left
START = 20.0  # seconds for rank 0 to begin to listen: it may still be importing torch
# A rank that hangs must end the run some day; a rank that saves to a slow disk, or evaluates on a slower machine, must
# not.
PATIENCE = timedelta(minutes=10)
FOREVER = timedelta(days=20)  # what fits the milliseconds of poll(2)

Whose = TypeVar("Whose")
Gradients = Callable[[Whose, Tensor, Tensor], Tensor]


class RankInfo(NamedTuple):
    """Which process this is, of how many: of the run, and on this machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int


ALONE = RankInfo(0, 1, 0, 1)
_here = ALONE
_job: Any = None  # the store in which ranks leave word for each other, as long as torchrun lives
_store: Any = None  # the part of it for this attempt: torchrun may restart all ranks
_meetings, _sayings = count(), count()  # that their keys are not used twice


def current() -> RankInfo:
    """Which of the ranks that joined this process is; alone where none did."""
    return _here


@contextmanager
def join() -> Iterator[None]:
    """Around all that torchrun's processes do, from reading the config on: when one leaves by an error, all do within
    seconds.

    Rank 0 then raises the cause, with "rank N:" before it where it is another's. The others write nothing to stdout and
    stderr any more. Raises InputError where torchrun's environment is incomplete, MachineError where the others can't
    be reached.
    """
    global _here, _job, _store
    _here = _environment()
    if _here.world == 1:
        yield
        return
    if _here.rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
        sys.stderr = sys.stderr if os.environ.get("NNX_DEBUG") == "1" else sys.stdout
    over = threading.Event()
    try:
        _job = _meet()
        _store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), _job)  # type: ignore[attr-defined]
        threading.Thread(target=_watch, args=(_store.clone(), over), daemon=True).start()
        if _here.rank == 0:
            _store.set("listening", "")
        yield
    except Exception as error:
        raise _cause(error) from error
    finally:
        over.set()
        if dist.is_initialized():
            dist.destroy_process_group()
        _here, _job, _store = ALONE, None, None


def connect(device: torch.device) -> None:
    """Once all ranks have come to this point, let them exchange tensors, on the CPU and on `device`."""
    if _here.world == 1:
        return
    _store.set(f"ready {_here.rank}", "")
    _wait(f"ready {rank}" for rank in range(_here.world))
    if device.type == "cuda":  # Not run yet: no GPU was there
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = dist.PrefixStore("group", _store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=_here.rank, world_size=_here.world, timeout=PATIENCE)


def on_rank_zero(do: Callable[[], str | None]) -> str:
    """Have rank 0 do it while the others wait, and tell all what it gave. Where it fails, all leave."""
    if _here.world == 1:
        return do() or ""
    key = f"said {next(_sayings)}"
    if _here.rank == 0:
        _store.set(key, do() or "")
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))  # fails at once when rank 0 dies, which waiting for the key does not
    _wait([key])
    return str(_store.get(key).decode())


def store_for_restart(text: str) -> None:
    """Note something down for the ranks that torchrun starts in the place of these, should one of them die."""
    if _here.world > 1 and _here.rank == 0:
        _job.set("remembered", text)


def stored_before_restart() -> str | None:
    """What rank 0 noted down before torchrun restarted this run, if it did."""
    if _here.world == 1 or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not _job.check(["remembered"]):
        return None
    return str(_job.get("remembered").decode())


def any_rank_signalled(signal: Callable[[], int]) -> Callable[[], int]:
    """`signal`, answered for all ranks at once: the highest of what theirs say. All must ask equally often.

    They ask each other every PAUSE seconds or so, not each time: after as many calls as the fastest of them made in
    that time.
    """
    if _here.world == 1:
        return signal
    number, left, calls, asked = 0, 1, 1, time.monotonic()

    def ask() -> int:
        nonlocal number, left, calls, asked
        left -= 1
        if not number and not left:
            took, asked = time.monotonic() - asked, time.monotonic()
            answers = torch.tensor([signal(), max(1, min(100 * calls, int(calls * PAUSE / (took + 1e-9))))])
            dist.all_reduce(answers, dist.ReduceOp.MAX)
            number, calls = map(int, answers.tolist())
            left = calls
        return number

    return ask


def shard(total: int) -> slice:
    """This rank's part of `total` samples: consecutive ones, as many for each rank, or one more for the first ranks."""
    each, more = divmod(total, _here.world)
    return slice(*(each * rank + min(rank, more) for rank in (_here.rank, _here.rank + 1)))


def all_gather(part: Tensor, total: int) -> Tensor:
    """(n, ...) of each rank's share -> (total, ...) of all, in order, each sample once."""
    if _here.world == 1:
        return part
    zeros = part.new_zeros(total, *part.shape[1:])
    zeros[shard(total)] = part
    dist.all_reduce(zeros)
    return zeros


Forward = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Of a network, (B, ...) inputs and (B, ...) targets: their mean loss."""


def shard_batch(model: nn.Module) -> Callable[[Forward], Forward]:
    """Makes of a forward pass one of this rank's share of the batch, which gives that share's part of the batch's mean
    loss: over all ranks, these losses and their gradients add up to those of the batch (see `summing`).

    Batch normalisation sees the whole batch, too, and dropout draws for the whole batch, as one process would. Where
    there are fewer samples than ranks, each rank takes them all.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    drops = any(isinstance(module, nn.Dropout) and module.p for module in model.modules())
    world = _here.world

    def shared(forward: Forward) -> Forward:
        def forward_share(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
            total = len(inputs)
            if total < world:
                return forward(model, inputs, targets).div(world)
            mine = shard(total)
            dropout = _Dropout(total, mine) if drops else nullcontext()
            with dropout, _across_ranks(norms, part := (mine.stop - mine.start) / total):
                return forward(model, inputs[mine], targets[mine]).mul(part)

        return forward_share

    return shared


def all_reduce_gradients(gradients: Gradients[Whose], model: nn.Module) -> Gradients[Whose]:
    """Makes of what leaves its gradients in the parameters, and returns a loss, one that leaves the ranks' sum, and
    returns it.

    Not DistributedDataParallel, which imports torch's compiler before its first step: 1.7 s in each process. To
    exchange some gradients while others are computed, as it does, gains nothing for networks of some MB: 5.5 to 9.4 ms
    a step of mnist_mlp's network, this 4.7 to 8.7 (three turns, two ranks on two busy cores, torch 2.14). And it
    exchanges each part of an accumulated batch by itself.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for tensor in model.state_dict().values():
        dist.broadcast(
            tensor, 0
        )  # equal seeds made equal weights already, but for ranks on machines of different kinds

    def summed(whose: Whose, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = gradients(whose, inputs, targets)
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        everything = torch.cat([loss.view(1), *(grad.flatten() for grad in grads)])
        dist.all_reduce(everything)
        loss, *sums = torch.split(everything, [1, *(grad.numel() for grad in grads)])
        for grad, total in zip(grads, sums, strict=True):
            grad.copy_(total.view_as(grad))
        return loss[0]

    return summed


# ---------------------------------------------------------------- dropout


class _Dropout(TorchFunctionMode):
    """Inside, each rank draws for the `total` samples of the batch, from the same state of its generator, and uses its
    share of that."""

    def __init__(self, total: int, mine: slice) -> None:
        super().__init__()
        self.total, self.mine = total, mine

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
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
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, dim: int = 0
    ) -> Tensor:
        """x, of which dimension `dim` is the samples -> the same; `inplace` saves memory, and may be ignored."""
        if not training or not p:
            return x
        whole = x.new_empty(*x.shape[:dim], self.total, *x.shape[dim + 1 :]).bernoulli_(1 - p)
        return x * whole.narrow(dim, self.mine.start, x.shape[dim]).div(1 - p)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        """softmax(q k^T / sqrt(D)) v, as torch's own, which draws where nobody can see."""
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
        """torch's own, layer by layer, as it draws between them: for (T, n, D)."""
        training, bidirectional, batch_first = modes
        x = x.transpose(0, 1) if batch_first else x
        states, ended = state if isinstance(state, tuple) else (state,), []
        for layer in range(layers):
            x = self._dropout(x, p, training, dim=1) if layer else x
            mine = tuple(each.unflatten(0, (layers, -1))[layer] for each in states)
            own = weights[layer * len(weights) // layers : (layer + 1) * len(weights) // layers]
            x, *last = func(
                x, mine if isinstance(state, tuple) else mine[0], own, bias, 1, 0.0, training, bidirectional, False
            )
            ended.append(last)
        return x.transpose(0, 1) if batch_first else x, *(torch.cat(each) for each in zip(*ended, strict=True))


# ---------------------------------------------------------------- batch normalisation


@contextmanager
def _across_ranks(norms: list[Any], part: float) -> Iterator[None]:
    """Inside, these layers normalise by the mean and variance of the whole batch, of which this rank has that part.

    nn.SyncBatchNorm does the same, but takes no tensors on the CPU.
    """
    for norm in norms:
        norm.forward = lambda x, norm=norm: _normalise(norm, x, part)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # its class's own shows again


def _normalise(norm: Any, x: Tensor, part: float) -> Tensor:
    """Of (n, C, ...), this rank's part of the batch. Running statistics move as in torch."""
    y: Tensor
    y, mean, variance = _Normalise.apply(x, norm.weight, norm.bias, norm.eps, part)
    with torch.no_grad():
        N = x.numel() / x.shape[1] / part
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (N / (N - 1)), norm.momentum)
    return y


class _Normalise(torch.autograd.Function):
    """With m and v the whole batch's mean and variance: y = weight * xhat + bias, xhat = (x - m) / sqrt(v + eps).

    Backward is that of fixed m and v, which torch has, less what reaches x through them (Ioffe & Szegedy 2015): with
    the means over the whole batch of dy and dy * xhat, dx = weight / sqrt(v + eps) * (dy - mean(dy) - xhat * mean(dy *
    xhat)).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, part: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = torch.batch_norm_update_stats(x.float(), None, None, 0.0)
        means, variances, parts = _gather(torch.stack([mean, variance, torch.full_like(mean, part)])).unbind(
            1
        )  # (world, C) each
        mean = (parts * means).sum(0)
        variance = (parts * (variances + (means - mean) ** 2)).sum(
            0
        )  # within the ranks and between them (Chan et al. 1979)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.part = eps, part
        ctx.mark_non_differentiable(mean, variance)
        return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        N = x.numel() / x.shape[1] / ctx.part
        to_shift, to_scale = _gather(torch.stack([dbias, dweight])).sum(0) / N  # the means of dy and of dy * xhat
        deviation = (variance + ctx.eps).sqrt()
        slope = -weight * to_scale / (deviation * deviation)
        offset = -weight * to_shift / deviation - slope * mean
        slope, offset = (each.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2)) for each in (slope, offset))
        return dx.addcmul_(x, slope).add_(offset), dweight, dbias, None, None


def _gather(tensor: Tensor) -> Tensor:
    """(...) of each rank -> (world, ...) of all."""
    return all_gather(tensor[None], _here.world)


# ---------------------------------------------------------------- leaving together


def _environment() -> RankInfo:
    """What torchrun says. Raises InputError where that is incomplete."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    values = [os.environ.get(name, "") for name in names]
    if wrong := [f"{name}={value}" for name, value in zip(names, values, strict=True) if not value.isdecimal()]:
        raise InputError(f"{wrong[0]}: should be a number where WORLD_SIZE is set, as torchrun sets it")
    if not os.environ.get("MASTER_ADDR"):
        raise InputError("MASTER_ADDR: is missing, though WORLD_SIZE is set; torchrun sets both")
    return RankInfo(*map(int, values[:4]))


def _meet() -> Any:
    """The store that torchrun, or rank 0, serves to all ranks. Raises MachineError."""
    try:
        return dist.PrefixStore(f"nnx {next(_meetings)}", next(dist.rendezvous("env://", timeout=PATIENCE))[0])  # type: ignore[attr-defined]
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise MachineError(
            f"{where}: can't reach the other processes of this run ({str(error).splitlines()[0]})"
        ) from None


def _wait(keys: Iterable[str]) -> None:
    """Until all keys are in the store. Raises what another rank left with; lets signals be handled, which waiting in
    the store does not."""
    keys = list(keys)
    while not _store.check(keys):
        if word := _word():
            raise _another(word)
        time.sleep(0.01)


def _cause(error: Exception) -> Exception:
    """What this rank should leave by: `error`, or what made another rank leave where that is why this one fails. The
    others hear of it."""
    if _here.rank == 0:
        with suppress(ValueError):  # not in the main thread
            signal.signal(
                signal.SIGTERM, signal.SIG_IGN
            )  # torchrun's, as another rank left; there is still the cause to be told
    if (word := _word()) and (not isinstance(error, NnxError) or isinstance(error, Stopped)):
        return _another(word)
    if isinstance(error, dist.DistError) or "gloo" in str(
        error
    ):  # gloo raises a bare RuntimeError that names its source file
        minutes = PATIENCE.seconds // 60
        return MachineError(
            f"another of the {_here.world} processes died, or did not answer for {minutes} minutes. {SAVED}"
        )
    text = (
        str(error)
        if isinstance(error, NnxError)
        else f"a bug in nnx: {type(error).__name__}: {error}. NNX_DEBUG=1 shows where"
    )
    _leave_word(f"{getattr(error, 'exit_code', 1)} rank {_here.rank}: {text}")
    return error


SAVED = "What was saved is whole: go on with --resume"


def _another(word: str) -> NnxError:
    """The error of the rank that left this word: its exit code and its text."""
    code, text = word.split(" ", 1)
    if int(code) > 128:
        return Stopped(text.partition(": ")[2], signal=int(code) - 128)
    error = NnxError(text)
    error.exit_code = int(code)
    return error


def _leave_word(word: str) -> None:
    """For the others, unless one of them has left one: the first to fail is the cause.

    Waits until rank 0 listens, as torchrun ends all others when one has left.
    """
    with suppress(RuntimeError, AttributeError):  # whoever serves the store is gone, or was never found
        _store.compare_set("word", "", word)
        patience = time.monotonic() + START
        while not _store.check(["listening"]) and time.monotonic() < patience:
            time.sleep(0.01)


def _word() -> str:
    """What another rank left, if any did."""
    with suppress(RuntimeError, AttributeError):  # whoever serves the store is gone, or was never found
        if _store.check(["word"]):
            return str(_store.get("word").decode())
    return ""


def _watch(store: Any, over: threading.Event) -> None:
    """End this process where another has left and this one has not noticed after GRACE seconds: it evaluates, say, or
    waits for a GPU."""
    word = ""
    with suppress(RuntimeError):  # whoever serves the store is gone
        store.wait(["word"], FOREVER)
        word = store.get("word").decode()
    if over.wait(GRACE):
        return
    error = _another(word) if word else MachineError(f"torchrun, or rank 0, died. {SAVED}")
    if _here.rank == 0:
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # progress hides it
        print(f"{show_cursor}error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(error.exit_code)
