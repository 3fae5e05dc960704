"""A simulated CUDA or MPS device: it computes on the CPU, with real numbers, and refuses what a GPU would refuse.

- Tensors on it can't be mixed with tensors on the CPU: only `copy_` and `to` cross over.
- Each read of a value by Python (`item`, `float`, `bool`, `cpu`), for which a GPU would have to be waited for, is
  recorded in `reads`.
- A CUDA graph records operations without executing them, and executes them on the same memory at each replay. What
  Python computes in between is not recorded. Reads, and copies from memory that is not pinned, fail while it records.
- An Apple GPU (MPS) has no float64, and not all operations.
- A copy from pinned memory may happen late: writing to its source before an event behind the copy was waited for fails.

The device is PyTorch's spare one (PrivateUse1) with wrapped tensors, whose operations arrive in `__torch_dispatch__`;
see torch.utils.backend_registration and https://dev-discuss.pytorch.org/t/torch-dispatch. Not simulated: cuDNN and
other kernels of CUDA, its random numbers (they are the CPU's), bfloat16, streams that overtake each other, and time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from nnx.system import accelerator, device

aten = torch.ops.aten
NAME = "simulated"
CROSSING = {aten.copy_.default, aten._to_copy.default}
READING = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default}


# The first backward pass of a process starts a thread for each device, after which it must not fork, as other tests do.
# With this one before there is a second device, there will be none; `simulated_gpu` lets autograd do without.
torch.ones(1, requires_grad=True).sum().backward()
backend_registration._setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)


class Generator(torch.Generator):
    """A generator of any device, with the CPU's random numbers."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        return super().__new__(cls, "cpu")


class DeviceTensor(torch.Tensor):
    """A tensor on the simulated device. `inner` is the tensor on the CPU that holds its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        wrapped = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        wrapped.inner = inner
        return wrapped

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert _current is not None, f"{op} on a simulated device after its test"
        return _current.execute(op, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """Passes on operations without a tensor on the device too, such as torch.zeros(3, device=...)."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert _current is not None
        return _current.execute(op, args, kwargs or {})


class Refused(AssertionError):
    """A GPU would fail here, or give another result."""


@dataclass
class Recorded:
    """An operation in a CUDA graph, on tensors of the CPU."""

    op: Any
    args: Any
    kwargs: Any
    outputs: list[Any]

    def execute(self) -> None:
        if _is_view(self.op):
            return
        outputs = pytree.tree_leaves(self.op(*self.args, **self.kwargs))
        for output, place in zip(outputs, self.outputs, strict=True):
            if isinstance(output, Tensor) and output.data_ptr() != place.data_ptr():
                place.copy_(output)


@dataclass
class Graph:
    """A CUDA graph. `replay` executes what was recorded."""

    operations: list[Recorded] = field(default_factory=list)
    replays: int = 0

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad(), no_dispatch():
            for operation in self.operations:
                operation.execute()


class Event:
    """An event: what was copied before `record` has been copied when `synchronize` returns."""

    def __init__(self, gpu: "SimulatedGpu") -> None:
        self.gpu = gpu
        self.covered: set[int] = set()

    def record(self) -> None:
        self.covered = set(self.gpu.in_flight)

    def synchronize(self) -> None:
        self.gpu.in_flight -= self.covered


@dataclass
class SimulatedGpu:
    """The device of one test, and what happened on it."""

    memory: int = 2**30  # bytes that are free
    reads: list[str] = field(default_factory=list)
    operations: int = 0
    graphs: list[Graph] = field(default_factory=list)
    side_steps: int = 0  # times that a stream of its own was entered
    pinned: dict[int, Tensor] = field(default_factory=dict)  # by address; kept, so that no address is used again
    in_flight: set[int] = field(default_factory=set)  # addresses of pinned memory that may still be copied from
    recording: Graph | None = None
    before: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # memory, and its values before recording
    made: list[Tensor] = field(default_factory=list)  # while recording

    def execute(self, op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Execute `op` on the CPU's tensors behind the arguments, if any is on the device or the result shall be."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        on_device = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not on_device and (target is None or target.type != NAME):
            return self._on_cpu(op, args, kwargs)
        self.operations += 1
        on_cpu = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
        if on_device and on_cpu and op not in CROSSING:
            raise Refused(f"{op}: tensors of the CPU {[tuple(t.shape) for t in on_cpu]} and of the device")
        to_cpu = (target is not None and target.type == "cpu") or (
            op is aten.copy_.default and not isinstance(args[0], DeviceTensor)
        )
        if op in READING or to_cpu:
            self._read(str(op))
        for source in on_cpu:
            self._copies_from(source, non_blocking=bool(kwargs.get("non_blocking") or (args[2:3] == (True,))))
        inner = [self._inner(leaf) for leaf in leaves]
        inner_args, inner_kwargs = pytree.tree_unflatten(inner, structure)
        inner_kwargs.pop("pin_memory", None)
        outputs = self._call(op, inner_args, inner_kwargs)
        if torch.Tag.inplace_view in op.tags:
            _change_shape(op, args, kwargs)
        if to_cpu:
            return args[0] if op is aten.copy_.default else outputs
        wrappers = {id(tensor.inner): tensor for tensor in on_device}
        return pytree.tree_map_only(
            Tensor,
            lambda output: wrappers[id(output)] if id(output) in wrappers else DeviceTensor(output),
            outputs,
        )

    def _call(self, op: Any, args: Any, kwargs: Any) -> Any:
        self._check(op)
        outputs = self._compute(op, args, kwargs)
        for tensor in pytree.tree_leaves((args, kwargs, outputs)):
            if isinstance(tensor, Tensor):
                self._check_dtype(op, tensor)
        return outputs

    def _check(self, op: Any) -> None:
        """Raises Refused if the device has no kernel for `op`."""

    def _check_dtype(self, op: Any, tensor: Tensor) -> None:
        """Raises Refused if the device can't hold `tensor`."""

    def _compute(self, op: Any, args: Any, kwargs: Any) -> Any:
        call = DECOMPOSED.get(op, op)
        if self.recording is None:
            return call(*args, **kwargs)
        for tensor in _written(op, args, kwargs):
            memory = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())
            self.before.setdefault(tensor.untyped_storage().data_ptr(), (memory, memory.clone()))
        outputs = call(*args, **kwargs)
        leaves = pytree.tree_leaves(outputs)
        # aliases of the same memory: the shape of a tensor may change (transpose_)
        args, kwargs, places = pytree.tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs, leaves))
        self.recording.operations.append(Recorded(call if call is op else _Decomposed(call, op), args, kwargs, places))
        if not any(part.alias_info for part in op._schema.returns):
            self.made += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return outputs

    def _on_cpu(self, op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        pin = kwargs.pop("pin_memory", None)
        if self.in_flight:
            for tensor in _written(op, args, kwargs):
                if tensor.untyped_storage().data_ptr() in self.in_flight:
                    raise Refused(f"{op} writes to memory that may still be copied to the device")
        output = op(*args, **kwargs)
        if pin:
            self.pinned[output.untyped_storage().data_ptr()] = output
        return output

    def _copies_from(self, source: Tensor, *, non_blocking: bool) -> None:
        address = source.untyped_storage().data_ptr()
        if address in self.pinned and non_blocking:
            self.in_flight.add(address)
        elif self.recording is not None:
            raise Refused("a copy from memory that is not pinned, while a graph is recorded")

    def _read(self, name: str) -> None:
        if self.recording is not None:
            raise Refused(f"{name}: a read while a graph is recorded")
        self.reads.append(name)

    @staticmethod
    def _inner(leaf: Any) -> Any:
        if isinstance(leaf, DeviceTensor):
            return leaf.inner
        return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == NAME else leaf

    @contextmanager
    def record(self, graph: Graph) -> Iterator[None]:
        """Record operations into `graph`. Their effects are undone at the end, as they were not executed; new tensors
        become NaN."""
        random = torch.default_generator.get_state()
        self.recording, self.before, self.made = graph, {}, []
        try:
            yield
        finally:
            self.recording = None
            with torch.no_grad(), no_dispatch():
                for memory, values in self.before.values():
                    memory.copy_(values)
                for tensor in self.made:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
            torch.default_generator.set_state(random)
            self.graphs.append(graph)

    @contextmanager
    def side_stream(self, stream: Any) -> Iterator[None]:
        self.side_steps += 1
        yield


class SimulatedMps(SimulatedGpu):
    """An Apple GPU: it has no float64, and no kernel for some operations, of which torchgen has the list."""

    def _check(self, op: Any) -> None:
        if op.namespace == "aten" and op not in DECOMPOSED and str(op).removeprefix("aten.") not in mps_kernels():
            raise Refused(f"{op} has no kernel for MPS")

    def _check_dtype(self, op: Any, tensor: Tensor) -> None:
        if tensor.dtype in (torch.float64, torch.complex128):
            raise Refused(f"{op}: Cannot convert a MPS Tensor to {tensor.dtype}")


@cache
def mps_kernels() -> frozenset[str]:
    """The operations that torch has for MPS, as `name.overload`: those with a kernel for it, and those that are made of
    others on any device. From the list that torch is generated from."""
    listed = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    functions = {entry["func"].partition("(")[0]: entry for entry in yaml.load(listed.read_text(), yaml.CSafeLoader)}
    supported = set()
    for name, entry in functions.items():
        kernels = functions[entry.get("structured_delegate", name)].get("dispatch", {"CompositeImplicitAutograd": ""})
        keys = {key.strip() for keys in kernels for key in keys.split(",")}
        if "MPS" in keys or any(key.startswith("Composite") for key in keys):
            base, _, overload = name.partition(".")
            supported.add(f"{base}.{overload or 'default'}")
    return frozenset(supported)


@dataclass
class _Decomposed:
    """A kernel that only CUDA has, written in operations of the CPU, with the kernel's schema."""

    function: Callable[..., Any]
    op: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def _schema(self) -> Any:
        return self.op._schema

    @property
    def tags(self) -> Any:
        return self.op.tags


def _is_view(op: Any) -> bool:
    """Whether `op` only describes the memory of its argument anew, in a new tensor or (transpose_) in place."""
    returns = op._schema.returns
    return torch.Tag.inplace_view in op.tags or any(r.alias_info and not r.alias_info.is_write for r in returns)


def _change_shape(op: Any, args: Any, kwargs: Any) -> None:
    """Execute `op`, such as transpose_, on the wrapper: its shape and strides follow those of the inner tensor. As in
    torch.utils._python_dispatch.return_and_correct_aliasing."""
    with no_dispatch():
        before = torch._C._meta_in_tls_dispatch_include()
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            op(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)


def _written(op: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that `op` writes to."""
    written = []
    for index, argument in enumerate(op._schema.arguments):
        declared = argument.alias_info and argument.alias_info.is_write
        if declared or (op is aten.native_batch_norm.default and argument.name.startswith("running_")):
            value = kwargs.get(argument.name) if argument.kwarg_only or index >= len(args) else args[index]
            written += [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return written


def _lstm_cell(
    from_input: Tensor, from_hidden: Tensor, cell: Tensor, bias: Tensor | None = None, bias_hidden: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """CUDA's fused LSTM cell: (B, 4H) weighted sums and the (B, H) cell -> hidden, cell, and (B, 4H) gates."""
    sums = from_input + from_hidden
    if bias is not None and bias_hidden is not None:
        sums = sums + bias + bias_hidden
    enter, forget, candidate, leave = sums.chunk(4, 1)
    gates = (enter.sigmoid(), forget.sigmoid(), candidate.tanh(), leave.sigmoid())
    new = gates[1] * cell + gates[0] * gates[2]
    return gates[3] * new.tanh(), new, torch.cat(gates, 1)


def _lstm_cell_backward(
    grad_hidden: Tensor | None, grad_cell: Tensor | None, cell: Tensor, new: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients before `_lstm_cell`: of its weighted sums, of its cell, and of its biases."""
    enter, forget, candidate, leave = workspace.chunk(4, 1)
    into_hidden = torch.zeros_like(new) if grad_hidden is None else grad_hidden
    into_cell = torch.zeros_like(new) if grad_cell is None else grad_cell
    squashed = new.tanh()
    into_cell = into_cell + into_hidden * leave * (1 - squashed * squashed)
    sums = (
        into_cell * candidate * enter * (1 - enter),
        into_cell * cell * forget * (1 - forget),
        into_cell * enter * (1 - candidate * candidate),
        into_hidden * squashed * leave * (1 - leave),
    )
    grads = torch.cat(sums, 1)
    return grads, into_cell * forget, grads.sum(0) if has_bias else None


def _gru_cell(
    from_input: Tensor,
    from_hidden: Tensor,
    hidden: Tensor,
    bias: Tensor | None = None,
    bias_hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """CUDA's fused GRU cell: two times (B, 3H) weighted sums and the (B, H) hidden state -> the next, and (B, 5H)."""
    if bias is not None and bias_hidden is not None:
        from_input = from_input + bias
        from_hidden = from_hidden + bias_hidden
    reset, update, candidate = from_input.chunk(3, 1)
    hidden_reset, hidden_update, recurrent = from_hidden.chunk(3, 1)
    reset = (reset + hidden_reset).sigmoid()
    update = (update + hidden_update).sigmoid()
    candidate = (candidate + reset * recurrent).tanh()
    return candidate + update * (hidden - candidate), torch.cat((reset, update, candidate, hidden, recurrent), 1)


def _gru_cell_backward(
    grad: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients before `_gru_cell`: of both weighted sums, of the hidden state, and of both biases."""
    reset, update, candidate, hidden, recurrent = workspace.chunk(5, 1)
    into_candidate = grad * (1 - update) * (1 - candidate * candidate)
    into_update = grad * (hidden - candidate) * update * (1 - update)
    into_reset = into_candidate * recurrent * reset * (1 - reset)
    from_input = torch.cat((into_reset, into_update, into_candidate), 1)
    from_hidden = torch.cat((into_reset, into_update, into_candidate * reset), 1)
    biases = (from_input.sum(0), from_hidden.sum(0)) if has_bias else (None, None)
    return from_input, from_hidden, grad * update, *biases


DECOMPOSED: dict[Any, Callable[..., Any]] = {
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_cell_backward,
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
}

_current: SimulatedGpu | None = None


@contextmanager
def simulated_gpu(*, memory: int = 2**30, mps: bool = False) -> Iterator[SimulatedGpu]:
    """Inside, `device: cuda` is the simulated device, and torch.cuda's streams, events and graphs are simulated. With
    `mps`, the device is an Apple GPU instead."""
    global _current
    gpu = SimulatedMps(memory) if mps else SimulatedGpu(memory)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    stubs: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device: "Simulated GPU",
        "is_bf16_supported": lambda: False,
        "mem_get_info": lambda device: (gpu.memory, gpu.memory),
        "max_memory_allocated": lambda device: 0,
        "default_generators": (torch.default_generator,),
        "is_current_stream_capturing": lambda: gpu.recording is not None,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": gpu.side_stream,
        "Event": lambda: Event(gpu),
        "CUDAGraph": Graph,
        "graph": gpu.record,
    }
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # assigning to `data` would leave `inner` behind
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(1.0, device=...) passes through the dispatcher
    _current = gpu
    try:
        with pytest.MonkeyPatch.context() as patch, _Dispatch(), torch.autograd.set_multithreading_enabled(False):
            if mps:
                patch.setattr(torch.mps, "manual_seed", torch.default_generator.manual_seed)
            else:
                for name, stub in stubs.items():
                    patch.setattr(torch.cuda, name, stub)
            patch.setattr(torch, "Generator", Generator)
            patch.setattr(accelerator, "is_mps" if mps else "is_cuda", lambda device: device.type == NAME)
            patch.setattr(device, "_device", lambda name: (DEVICE, "a simulated device for tests"))
            yield gpu
    finally:
        _current = None
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
