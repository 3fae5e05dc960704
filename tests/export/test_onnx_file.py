"""nnx eval and nnx predict of an exported ONNX file: as the checkpoint, and refused in one line where it is hostile."""

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_export import samples
from tiny_networks import ARCHITECTURES

from nnx import checkpoint
from nnx.cli import run_command
from nnx.errors import CheckpointError, MachineError
from nnx.export import _check
from nnx.inference import onnx_file
from nnx.inference.classifier import load_with_runtime
from nnx.run.evaluate import evaluate_checkpoint
from nnx.run.export import export_checkpoint

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402


@pytest.fixture(scope="module")
def exported(trained, run_here):
    """`exported("mlp", "digits")` -> the run folder, with checkpoint.pt and checkpoint.onnx in it."""

    def export(architecture="mlp", data="digits"):
        run = trained(architecture, data)
        if not (run / "checkpoint.onnx").exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_check, "run_in_fresh_process", run_here)
                export_checkpoint(run, "onnx")
        return run

    return export


@pytest.fixture
def model(exported):
    """The parsed file of the MLP, to change."""
    return onnx.ModelProto.FromString((exported() / "checkpoint.onnx").read_bytes())


@pytest.fixture
def nnx(monkeypatch, capsys):
    """`nnx("eval", file)` -> exit code, stdout, stderr."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["nnx", *map(str, words)])
        code = run_command()
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return command


def write(tmp_path, model, *, sealed=True):
    if sealed:
        next(entry for entry in model.metadata_props if entry.key == onnx_file.SEAL).value = onnx_file.digest(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def set_fact(model, key, value):
    next(entry for entry in model.metadata_props if entry.key == key).value = value


def run_it(path):
    """Open the file, and classify two samples. Raises CheckpointError."""
    saved, network = onnx_file.open_onnx(path)
    with torch.inference_mode():
        return network(torch.zeros(2, *saved.spec.shape, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("architecture", "data"), [*((name, "digits") for name in ARCHITECTURES), ("mlp", "arrays"), ("mlp", "table")]
)
def test_the_file_is_measured_as_the_checkpoint_is(exported, architecture, data):
    run = exported(architecture, data)
    ours, theirs = (evaluate_checkpoint(run / f"checkpoint.{ending}") for ending in ("pt", "onnx"))
    assert np.abs(ours.predictions.probabilities - theirs.predictions.probabilities).max() <= 1e-4
    assert theirs.metrics["loss"] == pytest.approx(ours.metrics["loss"], abs=1e-4)
    for key in ("accuracy", "samples", "split", "confusion_matrix"):
        assert ours.metrics[key] == theirs.metrics[key]


def test_eval_and_predict_print_the_same(exported, tmp_path, nnx):
    """The table, the JSON, the CSV and the report."""
    run = exported("cnn")
    np.save(tmp_path / "x.npy", samples(run)[0])
    printed = {}
    for ending in ("pt", "onnx"):
        file = str(run / f"checkpoint.{ending}")
        for words in (["eval", file], ["eval", file, "--json"], ["predict", file, str(tmp_path / "x.npy"), "--csv"]):
            result = nnx(*words, "--quiet")
            assert result.code == 0, result.err
            printed[ending, len(words), words[0]] = result.out
    table, other = (printed[ending, 2, "eval"].splitlines() for ending in ("pt", "onnx"))
    assert table[2:] == other[2:]
    ours, theirs = (json.loads(printed[ending, 3, "eval"]) for ending in ("pt", "onnx"))
    assert ours.keys() == theirs.keys()
    assert ours["confusion_matrix"] == theirs["confusion_matrix"]
    labels, others = (
        [row.split(",")[:2] for row in printed[ending, 4, "predict"].splitlines()] for ending in ("pt", "onnx")
    )
    assert labels == others
    assert nnx("eval", run / "checkpoint.onnx", "--out", tmp_path / "out", "-q").code == 0
    assert (tmp_path / "out" / "eval.json").exists()
    assert "<h1" in (tmp_path / "out" / "report.html").read_text()


def test_the_runtime_is_the_cpu(exported):
    classifier, runtime = load_with_runtime(exported() / "checkpoint.onnx")
    assert (str(runtime.device), classifier.spec) == ("cpu", checkpoint.read(exported() / "checkpoint.pt").spec)
    with pytest.raises(CheckpointError, match="--device cuda: an exported ONNX file runs on the CPU"):
        load_with_runtime(exported() / "checkpoint.onnx", "cuda")


def test_a_missing_package_is_3_with_the_cure(exported, monkeypatch):
    monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "not_there"))
    with pytest.raises(
        MachineError, match=r"needs not_there, which is not installed; run: pip install 'nnx\[export\]'"
    ):
        onnx_file.open_onnx(exported() / "checkpoint.onnx")


def test_a_file_of_another_program_is_2_with_the_cure(model, tmp_path):
    del model.metadata_props[:]
    path = write(tmp_path, model, sealed=False)
    with pytest.raises(CheckpointError, match=r"was not exported by nnx.*; run: nnx export CHECKPOINT --format onnx"):
        run_it(path)


def test_truncated_files_and_flipped_bits_are_refused(exported, tmp_path):
    """Each of 200 flips of a bit in the graph or the metadata, and of 50 cuts: one CheckpointError, or the same
    prediction where the flip is in a part without meaning, such as the producer's name."""
    content = (exported() / "checkpoint.onnx").read_bytes()
    expected = run_it(exported() / "checkpoint.onnx")
    path = tmp_path / "damaged.onnx"
    errors = []
    for seed in range(250):
        rng = np.random.default_rng(seed)
        damaged = bytearray(content)
        place = int(rng.integers(len(damaged)))
        if seed < 200:
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged if seed < 200 else damaged[:place])
        try:
            assert torch.equal(run_it(path), expected)
        except CheckpointError as error:
            errors.append(str(error))
    assert len(errors) >= 240
    assert all(error.startswith(f"{path}: ") and "\n" not in error for error in errors)


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_constant(model):
    tensor = helper.make_tensor("c", TensorProto.FLOAT, [1], [0.0])
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def huge(model):
    model.graph.initializer[0].dims[:] = [2**31, 2**31]


def huge_float(model):
    model.graph.initializer.append(TensorProto(name="big", dims=[800_000_000], data_type=TensorProto.FLOAT))


def negative(model):
    model.graph.initializer[0].dims[:] = [-1, -1]


def loop(model):
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["never"], body=body))


def foreign(model):
    model.graph.node.append(helper.make_node("Gelu", ["input"], ["x"], domain="com.microsoft"))
    model.opset_import.add(domain="com.microsoft", version=1)


def function(model):
    model.functions.add(name="f", domain="mine")


def sparse(model):
    model.graph.sparse_initializer.add()


def future(model):
    model.opset_import[0].version = 4000


def deep(model):
    model.graph.node.extend(helper.make_node("Relu", [f"r{n}"], [f"r{n + 1}"]) for n in range(onnx_file.MAX_NODES))


def another_input(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 9


def another_type(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def fewer_classes(model):
    spec = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "spec"))
    set_fact(model, "spec", json.dumps({**spec, "classes": spec["classes"][:9]}))


def another_output(model):
    model.graph.output[0].name = "logits"


def no_json(model):
    set_fact(model, "config", "{")


def deep_json(model):
    set_fact(model, "spec", "[" * 100_000)


def long_json(model):
    set_fact(model, "spec", "[" + "0," * 1_000_000 + "0]")


def wrong_config(model):
    set_fact(model, "config", '{"model": {"name": "mlp", "hidden": "much"}}')


def many_layers(model):
    config = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "config"))
    set_fact(model, "config", json.dumps({**config, "model": {"name": "mlp", "hidden": [1] * 900}}))


def wrong_spec(model):
    set_fact(model, "spec", "[1]")


def newer(model):
    set_fact(model, "format", "2")


HOSTILE = {
    external: "has external data",
    external_constant: "has external data",
    huge: "declares more numbers than the file has",
    huge_float: "declares more numbers than the file has",
    negative: "declares more numbers than the file has",
    loop: "has loops, branches or functions",
    foreign: "has operators of 'com.microsoft'",
    function: "has loops, branches or functions",
    sparse: "has sparse tensors",
    future: "has opset 4000",
    deep: "operators; at most 20,000",
    another_input: "its input should be B x 1 x 8 x 8",
    another_type: "its input should be",
    fewer_classes: "its probabilities should be B x 9",
    another_output: "its probabilities should be",
    no_json: "its metadata is not",
    deep_json: "its metadata is not|does not have exactly the parts",
    long_json: "does not have exactly the parts",
    wrong_config: "its config is not valid",
    many_layers: "its weights do not fit the mlp",
    wrong_spec: "its metadata is not",
    newer: "has metadata of format 2",
}


@pytest.mark.parametrize("change", HOSTILE)
def test_hostile_files_are_refused_soon(model, tmp_path, change):
    change(model)
    path = write(tmp_path, model)
    begun = time.perf_counter()
    with pytest.raises(CheckpointError, match=HOSTILE[change]) as refused:
        run_it(path)
    assert time.perf_counter() - begun < 5
    assert str(refused.value).startswith(f"{path}: ")
    assert refused.value.exit_code == 2


def replace_graph(model, *nodes, **constants):
    """Another graph, which computes "logits" before the softmax."""
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    for name, values in constants.items():
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
    model.graph.node.extend(nodes)


def test_a_graph_that_would_take_a_terabyte_is_stopped(model, tmp_path):
    replace_graph(
        model,
        helper.make_node("Expand", ["shape", "shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Expand", ["number", "out"], ["probabilities"]),
        shape=[2**17, 2**10, 2**10, 1],
        out=[2, 10],
    )
    begun = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"can't be run|can't load"):
        run_it(write(tmp_path, model))
    assert time.perf_counter() - begun < 5


def test_a_graph_that_takes_too_long_is_stopped(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LIMIT", 0.5)
    replace_graph(
        model,
        helper.make_node("ConstantOfShape", ["size"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{n}", "m0"], [f"m{n + 1}"]) for n in range(300)),
        helper.make_node("ReduceSum", ["m300"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "out"], ["probabilities"]),
        size=[1500, 1500],
        out=[2, 10],
    )
    begun = time.perf_counter()
    with pytest.raises(CheckpointError, match="takes longer than"):
        run_it(write(tmp_path, model))
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize("value", [float("nan"), 2.0, -1.0])
def test_what_is_no_probability_is_refused(model, tmp_path, value):
    model.graph.node[-1].output[0] = "inner"
    model.graph.initializer.append(helper.make_tensor("extra", TensorProto.FLOAT, [], [value]))
    model.graph.node.append(helper.make_node("Add", ["inner", "extra"], ["probabilities"]))
    with pytest.raises(CheckpointError, match="does not return probabilities of its 10 classes"):
        run_it(write(tmp_path, model))


def test_names_that_are_no_files(tmp_path):
    for path in (tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(CheckpointError):
            onnx_file.open_onnx(path)
    (tmp_path / "text.onnx").write_text("not a protobuf")
    (tmp_path / "empty.onnx").write_text("")
    for name in ("text.onnx", "empty.onnx"):
        with pytest.raises(CheckpointError, match="is damaged, or not an ONNX file"):
            onnx_file.open_onnx(tmp_path / name)
