"""nnx as a library changes nothing in the whole process. Only the command line does, in nnx/cli/_start.py."""

import os
import subprocess
import sys

USE = """
import os, signal, sys, threading
handlers = [signal.getsignal(number) for number in (2, 15)]
import nnx
assert "torch" not in sys.modules, "import nnx is quick"
run = nnx.train("digits_mlp", ["train.epochs=1", "train.report=false", "model.hidden=[8]"], out="r")
nnx.evaluate(run.checkpoint)
nnx.load(run.checkpoint)
assert not [name for name in sys.modules if name.startswith("nnx.cli")], "its effects on the process are not imported"
assert "GOMP_SPINCOUNT" not in os.environ
assert not [thread for thread in threading.enumerate() if thread.name.startswith("nnx")]
assert [signal.getsignal(number) for number in (2, 15)] == handlers
from torch.optim import Optimizer
step = Optimizer.add_param_group.__wrapped__
assert getattr(step, "__dynamo_disable", None) is not step, "torch's optimizers are as torch made them"
for name in ("torch._meta_registrations", "rich.markdown"):
    assert name not in sys.modules or sys.modules[name].__file__, "no stand-in"
print("nothing changed")
"""


def run(code, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_evaluating_and_loading_change_nothing_in_the_process(tmp_path):
    assert run(USE, tmp_path) == "nothing changed\n"


def test_the_command_line_does_change_it(tmp_path):
    """The control: what the test above looks for is there once the command line has started torch."""
    code = (
        "from nnx.cli._start import import_torch; import_torch()\n"
        "from torch.optim import Optimizer\n"
        "step = Optimizer.add_param_group.__wrapped__\n"
        "print(step.__dynamo_disable is step)\n"
    )
    assert run(code, tmp_path) == "True\n"
