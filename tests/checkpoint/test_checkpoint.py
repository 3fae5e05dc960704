"""Checkpoints: the same in and out, nothing damaged or hostile loads or runs, and a failed write costs nothing."""

import errno
import io
import json
import os
import random
import struct
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnx import config, models
from nnx.checkpoint import build_network, checkpoint
from nnx.config import registry
from nnx.errors import CheckpointError, MachineError
from nnx.inference import classifier as classifiers
from nnx.preprocessing.spec import Spec
from nnx.system import device as devices
from nnx.training.state import State

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from tortures.checkpoints import members, number, pickled, reseal, tensor, text, texts, zipped

FORMAT_1 = Path(__file__).parents[1] / "data/format_1.pt"
SPEC = Spec((1, 8, 8), tuple("0123456789"), (0.1 + 0.2,), (1 / 3,))
NAMES = registry.names("model")
SMALL = {
    "mlp": {"hidden": [6]},
    "cnn": {"channels": [3]},
    "rnn": {"hidden": 5},
    "transformer": {"patch": 4, "width": 8, "depth": 1},
}


def kept(name="mlp", *, training=True, seed=0, optimizer="adamw", **model):
    """A checkpoint as a run makes it, after two steps, so that the optimizer has moments."""
    data = {
        "dataset": "digits",
        "model": {"name": name, **(model or SMALL.get(name, {}))},
        "optimizer": optimizer,
        "train": {"ema": 0.9},
    }
    made = config.from_dict(data, "made")
    torch.manual_seed(seed)
    state = State.new(made, models.build(made.model, SPEC, 10), devices.choose_runtime("cpu", "float32"), 5)
    for step in range(2):
        state.begin_step()
        loss = state.model(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))).square().mean()
        loss.backward()
        for each in state.optimizers:
            each.step()
        state.average.update_parameters(state.model)
        state.end_step(loss.detach(), 4)
    now = {"torch": torch.__version__, "threads": 1, "train.epochs": 10}
    tensors, record = state.tensors(), {"epoch": 1, "val_accuracy": 0.5}
    environment = {"began": now, "saved": now}
    whole = checkpoint.Checkpoint(
        made, SPEC, state.evaluated.state_dict(), record, state.counters(), tensors, environment, "0" * 64
    )
    return whole if training else checkpoint.without_training(whole)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """The bytes of a good checkpoint."""
    path = tmp_path_factory.mktemp("good") / "checkpoint.pt"
    checkpoint.write(path, kept())
    return path.read_bytes()


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def content(*, state=False, **changes):
    """What a good checkpoint holds, as plain values; `json` and `training` may be functions that change theirs."""
    good = kept(training=state)
    texts = {"config": good.config.to_dict(), "spec": SPEC.to_dict(), "record": good.record, "counters": good.counters}
    texts |= {"environment": good.environment, "data": good.data}
    whole = {"format": checkpoint.FORMAT, "json": texts, "model": good.model, "training": good.training}
    for key, change in changes.items():
        whole[key] = change(whole[key]) if callable(change) else change
    return checkpoint._plain(
        whole | {"json": whole["json"] if isinstance(whole["json"], str) else json.dumps(whole["json"])}
    )


def refused(path, data=None):
    """The message with which `path` is refused; no other exception may come."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        build_network(checkpoint.read(path))
    assert "weights_only" not in str(caught.value), "torch's advice on how to switch safety off is not passed on"
    return str(caught.value)


def flat(value, prefix=""):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {prefix: value}
    return {key: leaf for name, inner in items for key, leaf in flat(inner, f"{prefix}/{name}").items()}


def assert_same(one, two):
    one, two = flat(one), flat(two)
    assert one.keys() == two.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == two[key].dtype, key
            assert torch.equal(value, two[key]), key
        else:
            assert value == two[key], key


# ---------------------------------------------------------------- in and out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_written_is_read(name, training, tmp_path):
    path, good = tmp_path / "checkpoint.pt", kept(name, training=training)
    checkpoint.write(path, good)
    found = checkpoint.read(path)
    assert found.config.to_dict() == good.config.to_dict()
    assert (found.spec, found.record, found.counters) == (good.spec, good.record, good.counters)
    assert_same(found.model, good.model)
    assert_same(found.training or {}, good.training or {})
    assert (found.training is None) == (not training)
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


@pytest.mark.parametrize("name", NAMES)
def test_the_network_comes_back_with_its_answers(name, tmp_path):
    path, good = tmp_path / "checkpoint.pt", kept(name)
    checkpoint.write(path, good)
    x = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    model = models.build(good.config.model, SPEC, 10)
    model.load_state_dict(good.model)
    expected = model.eval()((x / 255 - SPEC.mean[0]) / SPEC.std[0]).softmax(1)
    classifier = classifiers.load(path)
    with torch.no_grad():
        torch.testing.assert_close(classifier(x), expected, rtol=1e-4, atol=1e-5)
    assert classifier.classes == tuple("0123456789")
    assert not classifier.network.training


def test_a_loaded_classifier_says_that_it_is_in_evaluation_mode(sealed, tmp_path):
    (tmp_path / "a.pt").write_bytes(sealed)
    assert not classifiers.load(tmp_path / "a.pt").training


@pytest.mark.parametrize("name", NAMES)
def test_equal_states_make_equal_bytes(name, tmp_path, monkeypatch):
    host = "the-host-of-the-tests"  # a real name may be as short as two letters, which weights spell by chance
    monkeypatch.setattr("platform.node", lambda: host)
    monkeypatch.setattr("socket.gethostname", lambda: host)
    for file, seed in (("one", 0), ("two", 0), ("other", 1)):
        checkpoint.write(tmp_path / file, kept(name, seed=seed))
    one, two, other = ((tmp_path / file).read_bytes() for file in ("one", "two", "other"))
    assert one == two
    assert one != other
    for secret in (host, str(tmp_path), os.getcwd()):
        assert secret.encode() not in one


def test_what_was_read_makes_the_same_bytes_again(sealed, tmp_path):
    """Pickle writes equal texts at full length or as a reference, by identity: the bytes must not tell which."""
    (tmp_path / "one").write_bytes(sealed)
    checkpoint.write(tmp_path / "again", checkpoint.read(tmp_path / "one"))
    assert (tmp_path / "again").read_bytes() == sealed


def test_plain_torch_reads_it(sealed):
    found = torch.load(io.BytesIO(sealed), weights_only=True)
    assert set(found) == {"format", "json", "model", "training"}
    assert_same(found["model"], dict(kept().model))
    assert json.loads(found["json"])["spec"]["classes"] == list("0123456789")


def test_views_are_kept_as_themselves_alone(tmp_path):
    big = torch.randn(1000, 1000)
    good = kept(training=False)
    checkpoint.write(
        tmp_path / "a.pt", replace(good, model={**good.model, "view": big[:2, :2], "turned": big[:3, :4].T})
    )
    assert (tmp_path / "a.pt").stat().st_size < 20_000
    found = torch.load(tmp_path / "a.pt", weights_only=True)["model"]
    assert torch.equal(found["turned"], big[:3, :4].T)
    assert found["turned"].is_contiguous()


@pytest.mark.parametrize("optimizer", registry.names("optimizer"))
def test_a_restored_state_makes_the_same_bytes(optimizer, tmp_path):
    """What `cmp` relies on after a resume."""
    checkpoint.write(tmp_path / "last.pt", kept(optimizer=optimizer))
    found = checkpoint.read(tmp_path / "last.pt")
    torch.manual_seed(9)
    state = State.new(
        found.config, models.build(found.config.model, SPEC, 10), devices.choose_runtime("cpu", "float32"), 5
    )
    state.restore(found.counters, found.training)
    assert (state.step, state.batch, state.samples) == (2, 2, 8)
    assert_same(checkpoint._plain(state.tensors()), found.training)
    again = replace(found, model=state.evaluated.state_dict(), counters=state.counters(), training=state.tensors())
    checkpoint.write(tmp_path / "again.pt", again)
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "last.pt").read_bytes()


def test_the_first_format_is_read():
    found = checkpoint.read(FORMAT_1)
    assert (found.environment, found.data) == (None, None)
    assert found.training["losses"].shape == (0,)
    assert found.training["losses"].dtype == torch.float32
    assert_same(found.model, torch.load(FORMAT_1, weights_only=True)["model"])
    assert classifiers.load(FORMAT_1).classes == found.spec.classes


def test_a_run_of_the_first_format_goes_on():
    found = checkpoint.read(FORMAT_1)
    model = models.build(found.config.model, found.spec, len(found.spec.classes))
    state = State.new(found.config, model, devices.choose_runtime("cpu", "float32"), 5)
    state.restore(found.counters, found.training)
    assert state.step == found.counters["step"] > 0
    assert state.recorded == 0
    assert_same(checkpoint._plain(state.tensors()), found.training)


def test_the_first_format_is_what_it_was_and_no_more(tmp_path):
    """With the parts of the second it is neither; as it was, it is read: the control."""
    old = torch.load(FORMAT_1, weights_only=True)
    (tmp_path / "a.pt").write_bytes(reseal(saved(old)))
    assert checkpoint.read(tmp_path / "a.pt")
    more = json.dumps(json.loads(old["json"]) | {"environment": None, "data": None})
    for changed in ({"format": 2}, {"json": more}, {"training": old["training"] | {"losses": torch.zeros(1)}}):
        assert "exactly the parts" in refused(tmp_path / "a.pt", reseal(saved(old | changed)))


def test_a_checkpoint_is_not_written_that_could_not_be_read(tmp_path, monkeypatch):
    checkpoint.write(tmp_path / "a.pt", kept())
    monkeypatch.setattr(checkpoint.torch_archive, "MAX_MEMBERS", 20)
    with pytest.raises(CheckpointError, match=r"a\.pt: more than a checkpoint can hold"):
        checkpoint.write(tmp_path / "a.pt", kept())
    monkeypatch.undo()
    assert checkpoint.read(tmp_path / "a.pt"), "what was there is untouched"


@pytest.mark.parametrize(
    "model",
    [
        {"name": "mlp", "hidden": [4] * 100, "norm": "batch", "activation": "prelu"},
        {"name": "cnn", "channels": [2], "depth": 20, "residual": True},
        {"name": "rnn", "cell": "gru", "hidden": 3, "layers": 10, "bidirectional": True},
        {"name": "transformer", "patch": 4, "width": 8, "heads": 2, "depth": 10, "positions": "sincos"},
    ],
    ids=lambda model: model["name"],
)
def test_deep_networks_fit_the_limits(model, tmp_path):
    checkpoint.write(tmp_path / "a.pt", kept(**model))
    assert checkpoint.read(tmp_path / "a.pt").config.model.name == model["name"]


# ---------------------------------------------------------------- damage


def test_no_flipped_bit_is_read(sealed, tmp_path):
    path, rng = tmp_path / "a.pt", random.Random(0)
    edges = [*range(4), *range(len(sealed) - 99, len(sealed), 3)]
    for position in [*edges, *rng.sample(range(len(sealed)), 300 - len(edges))]:
        damaged = bytearray(sealed)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a\.pt: "):
            checkpoint.read(path)


def test_torch_alone_would_read_flipped_bits(sealed):
    """The control: why there is a seal."""
    weights = sealed.index(kept().model["layers.1.weight"].numpy().tobytes())
    damaged = bytearray(sealed)
    damaged[weights] ^= 1
    found = torch.load(io.BytesIO(bytes(damaged)), weights_only=True)
    assert not torch.equal(found["model"]["layers.1.weight"], kept().model["layers.1.weight"])


def test_no_cut_file_is_read(sealed, tmp_path):
    path, rng = tmp_path / "a.pt", random.Random(1)
    for length in [
        0,
        1,
        3,
        4,
        75,
        76,
        len(sealed) // 2,
        len(sealed) - 76,
        len(sealed) - 1,
        *rng.sample(range(len(sealed)), 200),
    ]:
        path.write_bytes(sealed[:length])
        with pytest.raises(CheckpointError, match=r"a\.pt: "):
            checkpoint.read(path)
    assert "cut short" in refused(path, sealed[: len(sealed) // 2])
    assert "damaged" in refused(path, sealed[:40] + b"?" + sealed[41:])
    assert refused(path, sealed + b"\0"), "nor is one with something behind it"


def test_what_is_no_checkpoint_at_all(tmp_path):
    path = tmp_path / "a.pt"
    assert "no such file" in refused(path)
    assert "folder" in refused(tmp_path)
    assert "not a checkpoint of nnx" in refused(path, b"hello\n")
    assert "not a checkpoint of nnx" in refused(path, b"")
    assert "not a checkpoint of nnx" in refused(path, saved({"weight": torch.ones(3)})), "somebody else's"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
    assert "Git LFS pointer" in refused(path, pointer)
    assert "git lfs pull" in refused(path, pointer)


def test_a_path_through_a_file_and_a_strange_name(tmp_path):
    (tmp_path / "file").write_text("x")
    assert refused(tmp_path / "file" / "a.pt")
    assert refused(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe"), "and it does not wait for a writer"


# ---------------------------------------------------------------- hostility, with a right seal


def raw_pickle(target):
    """A pickle that touches `target` when it is loaded, assembled by hand."""
    command = f"touch {target}"
    return b"\x80\x02cposix\nsystem\nX" + struct.pack("<I", len(command)) + command.encode() + b"\x85R."


@pytest.mark.parametrize(
    "form",
    ["pickle", "zip", "zip, sealed", "pickle, sealed", "pickle before a zip, sealed", "legacy", "legacy, sealed"],
)
@pytest.mark.parametrize("switch", [False, True])
def test_nothing_in_it_is_run(form, switch, tmp_path, monkeypatch):
    if switch:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    target = tmp_path / "owned"
    attack = raw_pickle(target)
    legacy = saved_legacy(attack)
    data = {
        "pickle": attack,
        "zip": zipped(members(attack)),
        "zip, sealed": reseal(zipped(members(attack))),
        "pickle, sealed": reseal(attack + b"\0\0"),
        "pickle before a zip, sealed": reseal(attack + zipped(members(attack))),
        "legacy": legacy,
        "legacy, sealed": reseal(legacy + zipped(members())),
    }[form]
    refused(tmp_path / "a.pt", data)
    assert not target.exists()


def saved_legacy(pickled):
    """torch's format before 1.6: magic number, protocol, machine, then the object, one pickle each."""
    import pickle  # noqa: TID251

    return b"".join(pickle.dumps(item, 2) for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + pickled


def test_the_attack_would_work(tmp_path):
    """The control: a loader that trusts runs it."""
    path, target = tmp_path / "a.pt", tmp_path / "owned"
    path.write_bytes(zipped(members(raw_pickle(target))))
    try:
        torch.load(path, weights_only=False)
    finally:
        assert target.exists()


def test_nothing_is_inflated(tmp_path):
    path, file = tmp_path / "a.pt", io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members(None, ("archive/data/9", bytes(20_000_000))):
            archive.writestr(name, data)
    data = reseal(file.getvalue())
    assert len(data) < 50_000
    assert "zip" in refused(path, data)


DATA = "archive/data/0"
LIES = {
    "compressed": {"method": 8},
    "compressed, beside it": {"begin_method": 8},
    "larger than stored": {"size": 1_000_000},
    "larger": {"size": 1540, "stored": 1540},
    "larger, beside it": {"trail_size": 1540},
    "sizes before it": {"begin_size": 1536},
    "other checksum": {"crc": 0, "flags": 0},
    "encrypted": {"flags": 0x809},
    "elsewhere": {"offset": 0},
    "another name": {"name": b"archive/data/7"},
    "another name, beside it": {"begin_name": b"archive/data/7"},
    "a name twice": {"name": b"archive/data/1", "begin_name": b"archive/data/1"},
    "zip64": {"size": 0xFFFFFFFF, "stored": 0xFFFFFFFF, "extra": struct.pack("<2H2Q", 1, 16, 1536, 1536)},
}


@pytest.mark.parametrize("lie", LIES)
def test_no_member_lies(lie, tmp_path):
    assert "member" in refused(tmp_path / "a.pt", reseal(zipped(members(), {DATA: LIES[lie]})))


@pytest.mark.parametrize(
    "end", [{"count": 5}, {"count": 2**40}, {"length": 4}, {"start": 0}, {"start": 2**32 - 1}, {"gap": b"x"}]
)
def test_no_directory_lies(end, tmp_path):
    assert "not a readable zip archive" in refused(tmp_path / "a.pt", reseal(zipped(members(), **end)))


def test_nothing_stands_before_or_behind_the_zip(tmp_path):
    good = zipped(members())
    refused(tmp_path / "a.pt", reseal(b"x" + good))
    refused(tmp_path / "a.pt", reseal(good)[:-75] + b"x" + reseal(good)[-75:])
    refused(tmp_path / "a.pt", reseal(good + good))


@pytest.mark.parametrize(
    "name",
    [
        "archive/code/x.py",
        "archive/data/../../evil",
        "/etc/passwd",
        "archive/constants.pkl",
        "x",
        "archive/data/0\n",
        "archive/data/٣",
    ],
)
def test_no_strange_members(name, tmp_path):
    assert "member" in refused(tmp_path / "a.pt", reseal(zipped(members(None, (name, b"x")))))


def test_no_member_without_a_tensor(tmp_path):
    assert "other than plain" in refused(tmp_path / "a.pt", reseal(zipped(members(None, ("archive/data/9", b"1234")))))


def test_a_resealed_good_one_is_read(tmp_path):
    """The control for all below: only what is changed is what is refused."""
    for data in (saved(content()), saved(content(state=True)), zipped(members())):
        (tmp_path / "a.pt").write_bytes(reseal(data))
        assert build_network(checkpoint.read(tmp_path / "a.pt"))


SPEC_DICT = SPEC.to_dict()
WEIGHT = "layers.1.weight"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's of what is deprecated or a prototype
    QUANTIZED = torch.quantize_per_tensor(torch.ones(6, 64), 0.1, 0, torch.qint8)
    NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
HOSTILE = {
    "stride 0": {"model": {WEIGHT: torch.ones(1).expand(10**6, 10**6)}},
    "transposed": {"model": {WEIGHT: torch.ones(6, 64).T}},
    "infinite": {"model": {WEIGHT: torch.full((6, 64), torch.inf)}},
    "sparse": {"model": {WEIGHT: torch.eye(3).to_sparse()}},
    "meta": {"model": {WEIGHT: torch.ones(6, 64, device="meta")}},
    "complex": {"model": {WEIGHT: torch.ones(6, 64, dtype=torch.complex64)}},
    "quantized": {"model": {WEIGHT: QUANTIZED}},
    "nested": {"model": {WEIGHT: NESTED}},
    "other shape": {"model": {WEIGHT: torch.ones(6, 65)}},
    "text for a weight": {"model": {WEIGHT: "x"}},
    "nothing for a weight": {"model": {WEIGHT: None}},
    "more weights": {"model": {"more": torch.ones(3)}},
    "no model": {"model": None},
    "list for the model": {"model": [torch.ones(3)]},
    "json": {"json": "{"},
    "json, deep": {"json": "[" * 100_000},
    "json, list": {"json": "[]"},
    "json, not ascii": {"json": lambda whole: json.dumps(whole | {"data": "é"}, ensure_ascii=False)},
    "json, wide": {"json": lambda whole: json.dumps(whole | {"data": [[]] * 300_000})},
    "json, number": {"json": lambda whole: json.dumps(whole).replace("0.5", "9" * 5000)},
    "no format": {"format": "1"},
    "format 0": {"format": 0},
    "more at the top": {"more": 1},
    "more in the json": {"json": lambda whole: whole | {"more": 1}},
    "less in the json": {"json": lambda whole: {key: whole[key] for key in whole if key != "data"}},
    "wrong config": {"json": lambda whole: whole | {"config": {"dataset": "digits", "model": "mlpp"}}},
    "another config": {"json": lambda whole: whole | {"config": {"dataset": "digits", "model": "cnn"}}},
    "no spec": {"json": lambda whole: {key: whole[key] for key in whole if key != "spec"}},
    "text in the record": {"json": lambda whole: whole | {"record": {"epoch": "1"}}},
    "nan in the record": {"json": lambda whole: whole | {"record": {"val_loss": float("nan")}}},
    "other environment": {"json": lambda whole: whole | {"environment": {"began": {}}}},
    "environment without epochs": {"json": lambda whole: whole | {"environment": {"began": {}, "saved": {}}}},
    "number for the data": {"json": lambda whole: whole | {"data": 1}},
    "counters without a state": {"json": lambda whole: whole | {"counters": kept().counters}},
}


def counted(**changes):
    return {"json": lambda whole: whole | {"counters": whole["counters"] | changes}}


def trained(**changes):
    return {"training": lambda whole: whole | changes}


def optimized(change):
    def changed(whole):
        [adam] = checkpoint._plain(whole["optimizers"])
        change(adam)
        return whole | {"optimizers": [adam]}

    return {"training": changed}


HOSTILE_STATES = {
    "no counters": {"json": lambda whole: whole | {"counters": None}},
    "more counters": counted(more=1),
    "negative step": counted(step=-1),
    "fraction of an epoch": counted(epoch=0.5),
    "endless step": counted(step=10**4000),
    "true batch": counted(batch=True),
    "no history": counted(history=None),
    "text in the history": counted(history=["x"]),
    "records without a loss": counted(history=[{"epoch": 1, "val_accuracy": 0.5}]),
    "text for a loss": counted(history=[{"epoch": 1, "val_accuracy": 0.5, "val_loss": "x"}]),
    "infinite loss": counted(history=[{"epoch": 1, "val_accuracy": 0.5, "val_loss": float("inf")}]),
    "more in the state": trained(more=1),
    "nan in the state": trained(loss=torch.tensor(torch.nan)),
    "list for the loss": trained(loss=torch.zeros(1)),
    "whole number for the loss": trained(loss=torch.tensor(1)),
    "many losses": trained(losses=torch.zeros(101)),
    "table of losses": trained(losses=torch.zeros(2, 2)),
    "no losses": trained(losses=None),
    "no average": trained(average=None),
    "other average": trained(average={"n_averaged": torch.tensor(1)}),
    "other weights": trained(model={WEIGHT: torch.zeros(6, 64)}),
    "text in the scaler": trained(scaler={"scale": "x"}),
    "no optimizers": trained(optimizers=[]),
    "text for the optimizers": trained(optimizers="x"),
    "optimizer without groups": optimized(lambda adam: adam.pop("param_groups")),
    "other parameters in a group": optimized(lambda adam: adam["param_groups"][0].update(params=[0, 9])),
    "mapping in a group": optimized(lambda adam: adam["param_groups"][0].update(betas={})),
    "weights in a group": optimized(lambda adam: adam["param_groups"][0].update(betas=torch.zeros(10))),
    "moments of no parameter": optimized(lambda adam: adam["state"].update({9: {}})),
    "moments of another": optimized(lambda adam: adam["state"][0].update(exp_avg=torch.zeros(7))),
    "moments of another name": optimized(lambda adam: adam["state"][0].update(exp=adam["state"][0].pop("exp_avg"))),
    "a moment less": optimized(lambda adam: adam["state"][0].pop("exp_avg")),
    "nothing for a moment": optimized(lambda adam: adam["state"][0].update(step=None)),
    "many moments": optimized(lambda adam: adam["state"][0].update({str(n): torch.zeros(6, 64) for n in range(9)})),
    "infinite moments": optimized(lambda adam: adam["state"][0]["exp_avg"].fill_(torch.inf)),
}


@pytest.mark.parametrize("case", HOSTILE_STATES)
def test_no_strange_state_is_taken(case, tmp_path):
    refused(tmp_path / "a.pt", reseal(saved(content(state=True, **HOSTILE_STATES[case]))))


def spec_of(**changes):
    return {"json": lambda whole: whole | {"spec": SPEC_DICT | changes}}


HOSTILE_SPECS = {
    "text as shape": {"shape": ["a", 8, 8]},
    "fractions as shape": {"shape": [1, 8.0, 8]},
    "negative shape": {"shape": [1, -8, -8]},
    "no shape": {"shape": []},
    "endless shape": {"shape": [1, 10**9, 10**9]},
    "one number as shape": {"shape": 3},
    "nothing for the mean": {"mean": [None]},
    "too many means": {"mean": [0.1] * 7},
    "zero deviation": {"std": [0.0]},
    "no classes": {"classes": []},
    "more classes": {"classes": list("0123456789ab")},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_but_plain_weights_is_taken(case, tmp_path):
    changes = dict(HOSTILE[case])
    whole = content(**{key: change for key, change in changes.items() if key != "model"})
    if "model" in changes:
        whole["model"] = whole["model"] | changes["model"] if isinstance(changes["model"], dict) else changes["model"]
    refused(tmp_path / "a.pt", reseal(saved(whole)))


@pytest.mark.parametrize("case", HOSTILE_SPECS)
def test_no_spec_breaks_the_loader(case, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(reseal(saved(content(**spec_of(**HOSTILE_SPECS[case])))))
    with pytest.raises(CheckpointError):
        classifiers.load(path)


def test_a_later_format_says_upgrade(tmp_path):
    assert "has format 4, newer than this nnx reads (3); upgrade nnx" in refused(
        tmp_path / "a.pt", reseal(saved(content(format=4)))
    )


BIAS = "layers.1.bias"
HOOKS = b"ccollections\nOrderedDict\n)R"
PICKLES = {
    "larger than its member": {"model": {BIAS: tensor("1", (6,), numbers=7)}},
    "larger than its storage": {"model": {BIAS: tensor("1", (6, 1000), numbers=6)}},
    "smaller than its storage": {"model": {BIAS: tensor("1", (5,), numbers=6)}},
    "stride 0": {"model": {BIAS: tensor("1", (6, 6), (0, 1), numbers=6)}},
    "stride 0 of one number": {"model": {BIAS: tensor("1", (6,), (0,))}},
    "negative stride": {"model": {BIAS: tensor("1", (6,), (-1,))}},
    "offset": {"model": {BIAS: tensor("1", (6,), offset=1)}},
    "negative shape": {"model": {BIAS: tensor("1", (-2, -3), (1, 1), numbers=6)}},
    "other kind": {"model": {BIAS: tensor("1", (6,), kind="Int")}},
    "untyped": {"model": {BIAS: tensor("1", (6,), kind="Untyped")}},
    "a storage twice": {"model": {BIAS: tensor("3", (10,))}},
    "no storage": {"model": {BIAS: tensor("8", (6,))}},
    "with a gradient": {"model": {BIAS: tensor("1", (6,), tail=b"\x88" + HOOKS)}},
    "with a hook": {"model": {BIAS: tensor("1", (6,), tail=b"\x89" + HOOKS + number(1) + number(1) + b"s")}},
    "metadata": {"model": {BIAS: tensor("1", (6,), tail=b"\x89" + HOOKS + b"}")}},
    "a list in two places": {"training": b"]q\x00(h\x00h\x00e"},
    "a dict in itself": {"training": b"}q\x00(K\x01h\x00u"},
    "a key twice": {"more": text("format") + b"K\x02"},
    "a list for a key": {"training": b"}(]Nu"},
    "a tuple": {"training": b")"},
    "a mark": {"training": b"]((ea"},
    "a large number": {"training": b"\x8a\x09" + b"\xff" * 9},
    "bytes": {"training": b"C\x01x"},
    "a name": {"training": b"ctorch\nFloatStorage\n"},
    "a dict made by a call": {"training": HOOKS},
    "a name with a space": {"training": b"ctorch._utils _rebuild_tensor_v2\n\n"},
    "popped": {"training": b"NN0"},
    "many notes": {"training": b"N" + b"q\x00" * 20_000},
    "another end": {"more": b"u.}("},
    "no end": {"more": b"u" + b"N" * 9},
    "a note of nothing": {"training": b"h\x09"},
}


@pytest.mark.parametrize("case", PICKLES)
def test_no_strange_pickle_is_taken(case, tmp_path):
    refused(tmp_path / "a.pt", reseal(zipped(members(pickled(**PICKLES[case])))))


def test_what_is_refused_is_refused_before_torch_sees_it(tmp_path, monkeypatch):
    """Not by torch, whose reader trusts sizes: the control is that it would be asked for a good one."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    refused(tmp_path / "a.pt", reseal(zipped(members(pickled(model=PICKLES["larger than its member"]["model"])))))
    refused(tmp_path / "a.pt", reseal(zipped(members(pickled(content=texts(record={"epoch": "1"}))))))
    (tmp_path / "a.pt").write_bytes(reseal(zipped(members())))
    with pytest.raises(pytest.fail.Exception):
        checkpoint.read(tmp_path / "a.pt")


def test_what_torch_makes_is_what_was_understood(tmp_path, monkeypatch):
    """A second line: a file that torch and we read in two ways."""
    (tmp_path / "a.pt").write_bytes(reseal(zipped(members())))
    good = torch.load(tmp_path / "a.pt", weights_only=True)
    weight = good["model"][BIAS]
    for other in (weight.double(), weight[:5], torch.zeros(12)[::2], torch.zeros(7)[:6], [0.0] * 6):
        monkeypatch.setattr(
            torch, "load", lambda *_, other=other, **__: good | {"model": good["model"] | {BIAS: other}}
        )
        refused(tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: good)
    assert checkpoint.read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "error", [RecursionError, MemoryError, struct.error, zipfile.BadZipFile, OverflowError, AssertionError]
)
def test_any_failure_on_the_way_is_one_error(error, sealed, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error("use weights_only=False")

    monkeypatch.setattr(torch, "load", fail)
    refused(tmp_path / "a.pt", sealed)


def test_a_file_without_a_seal_is_not_read(tmp_path):
    with open(tmp_path / "a.pt", "wb") as file:
        file.truncate(3 << 30)
    assert "not a checkpoint" in refused(tmp_path / "a.pt")
    os.truncate(tmp_path / "a.pt", 5 << 30)
    assert "larger than 4 GiB" in refused(tmp_path / "a.pt")


def test_a_large_file_is_understood_before_it_is_read(sealed, tmp_path, monkeypatch):
    """Gigabytes are not hashed for what a few bytes claim. Small ones are hashed first, so that damage is called
    damage."""
    damaged = sealed[:40] + b"?" + sealed[41:]
    assert "damaged" in refused(tmp_path / "a.pt", damaged)
    monkeypatch.setattr(checkpoint, "_LARGE", 0)
    assert "member" in refused(tmp_path / "a.pt", damaged)
    (tmp_path / "a.pt").write_bytes(sealed)
    assert classifiers.load(tmp_path / "a.pt")
    weights = sealed.index(kept().model[WEIGHT].numpy().tobytes())
    assert "damaged" in refused(tmp_path / "a.pt", sealed[:weights] + b"??" + sealed[weights + 2 :])


def test_weights_of_another_network(tmp_path):
    path, other = tmp_path / "a.pt", kept("cnn", training=False)
    checkpoint.write(path, replace(kept(training=False), model=other.model))
    assert "do not fit the mlp" in refused(path)


def test_weights_that_are_not_finite(tmp_path):
    good = kept(training=False)
    checkpoint.write(tmp_path / "a.pt", replace(good, model={**good.model, WEIGHT: good.model[WEIGHT] / 0}))
    assert "infinite or NaN" in refused(tmp_path / "a.pt")


# ---------------------------------------------------------------- a write that fails


def full(*arguments, **keywords):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(call, sealed, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    path.write_bytes(sealed)
    monkeypatch.setattr(os, call, full)
    with pytest.raises(MachineError, match=r"last\.pt: could not be saved \(No space left on device\)"):
        checkpoint.write(path, kept(seed=1))
    monkeypatch.undo()
    assert path.read_bytes() == sealed
    assert os.listdir(tmp_path) == ["last.pt"], "no temporary file is left"
    checkpoint.write(path, kept(seed=1))
    assert path.read_bytes() != sealed, "the control: once there is room, it is replaced"


def test_an_interrupted_write_leaves_the_old_file(sealed, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    path.write_bytes(sealed)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(path, kept(seed=1))
    assert path.read_bytes() == sealed
    assert os.listdir(tmp_path) == ["last.pt"]


def test_it_is_on_the_disk_before_it_takes_the_old_ones_place(sealed, tmp_path, monkeypatch):
    path, calls = tmp_path / "last.pt", []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: calls.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    monkeypatch.setattr(os, "replace", lambda old, new: calls.append(f"{old} -> {new}") or rename(old, new))
    checkpoint.write(path, kept())
    temporary = tmp_path / f".last.pt.{os.getpid()}.tmp"
    assert calls == [str(temporary), f"{temporary} -> {path}", str(tmp_path)]


@pytest.mark.parametrize("place", ["missing/last.pt", "file/last.pt"])
def test_nowhere_to_write(place, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError):
        checkpoint.write(tmp_path / place, kept())


def test_a_failure_after_the_replacement_does_not_call_the_old_file_untouched(sealed, tmp_path, monkeypatch):
    path, fsync = tmp_path / "last.pt", os.fsync
    path.write_bytes(sealed)
    monkeypatch.setattr(
        os, "fsync", lambda handle: full() if os.path.isdir(f"/proc/self/fd/{handle}") else fsync(handle)
    )
    with pytest.raises(MachineError) as caught:
        checkpoint.write(path, kept(seed=1))
    assert path.read_bytes() != sealed
    assert "untouched" not in str(caught.value)
