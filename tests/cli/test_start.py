"""The quick start changes nothing but the time."""

import os
import subprocess
import sys

BEGIN = "import sys, os; from nnx.cli._start import import_torch, exit_quickly; import_torch(); import torch\n"


def python(code, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_the_deferred_module_is_loaded_when_it_is_needed():
    done = python(
        BEGIN + "from nnx.cli._start import TESTED\n"
        "assert ('torch._meta_registrations' in sys.modules) != torch.__version__.startswith(TESTED)\n"
        "from nnx.system import device; device.load_meta_kernels()\n"
        "x = torch.linalg.qr(torch.empty(3, 2, device='meta')); print(x[0].shape)\n"
    )
    assert done.stdout == "torch.Size([3, 2])\n", done.stderr


def test_an_architecture_that_computes_in_its_constructor_can_be_measured():
    done = python(
        BEGIN + "from types import SimpleNamespace as N; from torch import nn; from nnx import models\n"
        "from nnx.config import registry; from nnx.preprocessing.spec import Spec\n"
        "class Model(nn.Module):\n"
        "    def __init__(self, config, spec, outputs):\n"
        "        super().__init__(); self.w = nn.Parameter(torch.linalg.qr(torch.rand(9, 4))[0])\n"
        "registry.module = lambda kind, name: N(Model=Model)\n"
        "print(models.count_parameters(models.build(N(name='odd'), Spec((4,), ('a', 'b'), (0.,) * 4, (1.,) * 4), 2)))\n"
    )
    assert done.stdout == "36\n", done.stderr


def test_torchvision_can_be_imported_afterwards():
    done = python(
        BEGIN + "import torchvision.datasets, torchvision.ops\n"
        "print(torchvision.ops.nms(torch.rand(1, 4), torch.rand(1), 0.5))\n"
    )
    assert done.stdout == "tensor([0])\n", done.stderr


def test_random_numbers_are_the_same():
    code = "import torch; print(torch.randperm(9, generator=torch.Generator().manual_seed(3)).tolist(), torch.rand(0))"
    quick, plain = python(BEGIN + code), python(code)
    assert quick.stdout == plain.stdout
    assert quick.stdout.startswith("["), quick.stderr


def test_torchs_compiler_can_be_imported_afterwards():
    done = python(BEGIN + "import torch._dynamo; print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)))")
    assert done.stdout == "tensor([2.])\n", done.stderr


def test_waiting_adapts_to_other_processes_unless_a_variable_is_set():
    ask = BEGIN + (
        "import threading; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'), "
        "*(thread.name for thread in threading.enumerate() if thread.name.startswith('nnx')))"
    )
    adapting = "None None nnx waiting\n" if os.path.exists("/proc/self/schedstat") else "None 1000\n"
    assert python(ask).stdout == adapting
    assert python(ask, OMP_WAIT_POLICY="active").stdout == "active None\n"
    assert python(ask, GOMP_SPINCOUNT="5").stdout == "None 5\n"


def test_exiting_writes_out_what_was_printed_and_gives_the_code():
    done = python(BEGIN + "print('out'); print('err', file=sys.stderr); exit_quickly(5)")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
