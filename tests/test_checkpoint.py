"""Checkpoints: the same in and out, nothing damaged or hostile loads or runs, and a failed write costs nothing."""

import errno
import hashlib
import io
import json
import os
import random
import struct
import warnings
import zipfile
from dataclasses import replace

import pytest
import torch

from nnx import checkpoint, config, models, parts, predict, runtime
from nnx.errors import CheckpointError, MachineError
from nnx.spec import Spec
from nnx.state import State

SPEC = Spec((1, 8, 8), tuple("0123456789"), (0.1 + 0.2,), (1 / 3,))
NAMES = parts.names("model")
SMALL = {"mlp": {"hidden": [6]}, "cnn": {"channels": [3]}, "rnn": {"hidden": 5}, "transformer": {"patch": 4, "width": 8, "depth": 1}}


def kept(name="mlp", *, training=True, seed=0, optimizer="adamw"):
    """A checkpoint as a run makes it, after two steps, so that the optimizer has moments."""
    data = {"dataset": "digits", "model": {"name": name, **SMALL.get(name, {})}, "optimizer": optimizer, "train": {"ema": 0.9}}
    made = config.from_dict(data, "made")
    torch.manual_seed(seed)
    state = State.new(made, models.build(made.model, SPEC, 10), runtime.choose("cpu", "float32"), 5)
    for step in range(2):
        state.begin_step()
        loss = state.model(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))).square().mean()
        loss.backward()
        for each in state.optimizers:
            each.step()
        state.average.update_parameters(state.model)
        state.end_step(loss.detach(), 4)
    whole = checkpoint.Checkpoint(
        made, SPEC, state.evaluated.state_dict(), {"epoch": 1, "val_accuracy": 0.5}, state.counters(), state.tensors()
    )
    return whole if training else checkpoint.without_training(whole)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """The bytes of a good checkpoint."""
    path = tmp_path_factory.mktemp("good") / "checkpoint.pt"
    checkpoint.write(path, kept())
    return path.read_bytes()


def reseal(data):
    """What an attacker can do as well as we: a zip with a right checksum. Written anew from the format's description."""
    body = data[:-2] + struct.pack("<H", len("nnx-sha256:") + 64)
    return body + b"nnx-sha256:" + hashlib.sha256(body).hexdigest().encode()


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def content(**changes):
    """What a good checkpoint holds, as plain values."""
    good = kept(training=False)
    texts = {"config": good.config.to_dict(), "spec": SPEC.to_dict(), "record": good.record, "counters": None}
    whole = {"format": 1, "json": texts, "model": {key: value.clone() for key, value in good.model.items()}, "training": None}
    whole |= changes
    return whole | {"json": whole["json"] if isinstance(whole["json"], str) else json.dumps(whole["json"])}


def refused(path, data=None):
    """The message with which `path` is refused; no other exception may come."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        predict.network(checkpoint.read(path))
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
    classifier = predict.load(path)
    with torch.no_grad():
        torch.testing.assert_close(classifier(x), expected, rtol=1e-4, atol=1e-5)
    assert classifier.classes == tuple("0123456789")
    assert not classifier.network.training


def test_a_loaded_classifier_says_that_it_is_in_evaluation_mode(sealed, tmp_path):
    (tmp_path / "a.pt").write_bytes(sealed)
    assert not predict.load(tmp_path / "a.pt").training


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
    checkpoint.write(tmp_path / "a.pt", replace(good, model={**good.model, "view": big[:2, :2], "turned": big[:3, :4].T}))
    assert (tmp_path / "a.pt").stat().st_size < 20_000
    found = checkpoint.read(tmp_path / "a.pt").model
    assert torch.equal(found["turned"], big[:3, :4].T)
    assert found["turned"].is_contiguous()


@pytest.mark.parametrize("optimizer", parts.names("optimizer"))
def test_a_restored_state_makes_the_same_bytes(optimizer, tmp_path):
    """What `cmp` relies on after a resume."""
    checkpoint.write(tmp_path / "last.pt", kept(optimizer=optimizer))
    found = checkpoint.read(tmp_path / "last.pt")
    torch.manual_seed(9)
    state = State.new(found.config, models.build(found.config.model, SPEC, 10), runtime.choose("cpu", "float32"), 5)
    state.restore(found.counters, found.training)
    assert (state.step, state.batch, state.samples) == (2, 2, 8)
    assert_same(checkpoint._plain(state.tensors()), found.training)
    again = checkpoint.Checkpoint(found.config, SPEC, state.evaluated.state_dict(), found.record, state.counters(), state.tensors())
    checkpoint.write(tmp_path / "again.pt", again)
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "last.pt").read_bytes()


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
    for length in [0, 1, 3, 4, 75, 76, len(sealed) // 2, len(sealed) - 76, len(sealed) - 1, *rng.sample(range(len(sealed)), 200)]:
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


def zipped(pickled, *, compression=zipfile.ZIP_STORED, extra=()):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        for name, data in extra:
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(
    "form", ["pickle", "zip", "zip, sealed", "pickle, sealed", "pickle before a zip, sealed", "legacy", "legacy, sealed"]
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
        "zip": zipped(attack),
        "zip, sealed": reseal(zipped(attack)),
        "pickle, sealed": reseal(attack + b"\0\0"),
        "pickle before a zip, sealed": reseal(attack + zipped(attack)),
        "legacy": legacy,
        "legacy, sealed": reseal(legacy + zipped(b"\x80\x02}.")),
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
    path.write_bytes(zipped(raw_pickle(target)))
    try:
        torch.load(path, weights_only=False)
    finally:
        assert target.exists()


def test_nothing_is_inflated(tmp_path):
    path = tmp_path / "a.pt"
    pickled = zipfile.ZipFile(io.BytesIO(saved(content()))).read("archive/data.pkl")
    assert "member" in refused(path, reseal(zipped(pickled, compression=zipfile.ZIP_DEFLATED)))
    bomb = [("archive/data/0", bytes(20_000_000))]
    data = reseal(zipped(pickled, compression=zipfile.ZIP_DEFLATED, extra=bomb))
    assert len(data) < 50_000
    assert "member" in refused(path, data)


@pytest.mark.parametrize(
    "name", ["archive/code/x.py", "archive/data/../../evil", "/etc/passwd", "archive/constants.pkl", "x", "archive/data/0\n"]
)
def test_no_strange_members(name, tmp_path):
    pickled = zipfile.ZipFile(io.BytesIO(saved(content()))).read("archive/data.pkl")
    assert "member" in refused(tmp_path / "a.pt", reseal(zipped(pickled, extra=[(name, b"x")])))


def test_a_resealed_good_one_is_read(tmp_path):
    """The control for all below: only what is changed is what is refused."""
    (tmp_path / "a.pt").write_bytes(reseal(saved(content())))
    assert predict.network(checkpoint.read(tmp_path / "a.pt"))


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
    "nan in the state": {"training": {"loss": torch.tensor(torch.nan)}},
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
    "no format": {"format": "1"},
    "wrong config": {"json": {"config": {"dataset": "digits", "model": "mlpp"}, "spec": SPEC_DICT, "record": {}, "counters": None}},
    "no spec": {"json": {"config": {"dataset": "digits", "model": "mlp"}, "record": {}, "counters": None}},
}


def spec_of(**changes):
    config_dict = kept(training=False).config.to_dict()
    return {"json": {"config": config_dict, "spec": SPEC_DICT | changes, "record": {"epoch": 1}, "counters": None}}


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
    if isinstance(changes.get("model"), dict):
        changes["model"] = {**content()["model"], **changes["model"]}
    refused(tmp_path / "a.pt", reseal(saved(content(**changes))))


@pytest.mark.parametrize("case", HOSTILE_SPECS)
def test_no_spec_breaks_the_loader(case, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(reseal(saved(content(**spec_of(**HOSTILE_SPECS[case])))))
    with pytest.raises(CheckpointError):
        predict.load(path)


def test_a_later_format_says_upgrade(tmp_path):
    assert "upgrade nnx" in refused(tmp_path / "a.pt", reseal(saved(content(format=2))))


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
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle))
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
    monkeypatch.setattr(os, "fsync", lambda handle: full() if os.path.isdir(f"/proc/self/fd/{handle}") else fsync(handle))
    with pytest.raises(MachineError) as caught:
        checkpoint.write(path, kept(seed=1))
    assert path.read_bytes() != sealed
    assert "untouched" not in str(caught.value)
