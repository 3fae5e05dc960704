"""nnx doctor: problems of the machine with their cures; the preparation of an image and the prediction after each
step."""

import io
import json
import os
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from nnx import checkpoint
from nnx.doctor import image as image_check
from nnx.doctor import machine
from nnx.inference import classifier as classifiers
from nnx.preprocessing import handwriting, images
from nnx.system import device as devices
from nnx.system import platform
from nnx.terminal.pixels import RAMP

NAMES = {
    "python",
    "packages",
    "device",
    "precision",
    "layout",
    "cpu",
    "gradient",
    "memory",
    "runs",
    "data",
    "cache",
    "terminal",
}
EXTRAS = {
    f"nnx[{extra}]" for extra in metadata.metadata("nnx").get_all("Provides-Extra", []) if extra not in ("all", "dev")
}


def run_checks(nnx):
    """The checks of this machine by name."""
    result = nnx("doctor", "--json")
    document = json.loads(result.out)
    assert result.code == (0 if document["usable"] else 3)
    return {check["name"]: check for check in document["checks"]}


# ---------------------------------------------------------------- the machine


def test_this_machine(nnx, tmp_path, monkeypatch):
    monkeypatch.delenv("NNX_OFFLINE", raising=False)
    checks = run_checks(nnx)
    assert set(checks) == NAMES | EXTRAS
    assert all(check["state"] in machine.SIGNS for check in checks.values())
    assert all(check["cure"] for check in checks.values() if check["state"] in ("warning", "error"))
    assert checks["python"]["state"] == checks["packages"]["state"] == checks["gradient"]["state"] == "ok"
    assert f"torch {metadata.version('torch')}" in checks["packages"]["found"]
    assert checks["device"]["found"].split()[0] == str(devices.choose_runtime("auto", "auto").device)
    result = nnx("doctor")
    assert result.code == 0
    for name in checks:
        assert f" {name} " in result.out
    assert "\x1b" not in result.out
    assert list(tmp_path.iterdir()) == [], "no files are left"


def test_a_missing_package_is_reported_with_its_cure(nnx, monkeypatch):
    real = machine.importlib.util.find_spec
    monkeypatch.setattr(
        machine.importlib.util,
        "find_spec",
        lambda name: None if name == "captum" else real(name),
    )
    monkeypatch.setattr(
        metadata, "version", lambda name, real=metadata.version: "0.0.1" if name == "numpy" else real(name)
    )
    checks = run_checks(nnx)
    assert (checks["nnx[explain]"]["found"], checks["nnx[explain]"]["cure"]) == (
        "captum not installed",
        "pip install 'nnx[explain]'",
    )
    assert checks["packages"]["state"] == "error"
    assert "numpy 0.0.1 is older than" in checks["packages"]["found"]
    result = nnx("doctor")
    assert result.code == 3
    assert result.err.endswith(
        "error: nnx can't run on this machine: packages. Follow the advice given with each failed check\n"
    )


def test_a_torch_that_fails_is_an_error_not_a_crash(nnx, monkeypatch):
    def broken(*_, **__):
        raise OSError("libcudart.so.99: cannot open shared object file\nmore")

    monkeypatch.setattr(devices, "choose_runtime", broken)
    checks = run_checks(nnx)
    assert checks["torch"]["state"] == "error"
    assert checks["torch"]["found"] == "OSError: libcudart.so.99: cannot open shared object file"
    assert checks["memory"]["state"] == "ok", "the other checks still run"


def test_folders_that_can_not_be_used(nnx, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("NNX_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data/MNIST").mkdir(parents=True)
    monkeypatch.setenv("NNX_OFFLINE", "1")
    checks = run_checks(nnx)
    assert checks["cache"]["state"] == "warning"
    assert "is a file" in checks["cache"]["found"]
    assert "NNX_CACHE_DIR" in checks["cache"]["cure"]
    assert checks["data"]["found"].endswith("contains MNIST")
    assert checks["network"]["state"] == "note"
    monkeypatch.setattr(
        machine.tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    checks = run_checks(nnx)
    assert (checks["runs"]["state"], checks["data"]["state"]) == ("warning", "note"), "data may be read-only"
    assert "not writable (Permission denied)" in checks["runs"]["found"]


def test_scarce_memory_disk_and_threads(nnx, monkeypatch):
    monkeypatch.setattr(platform, "free_memory", lambda: 2**20)
    monkeypatch.setattr(
        machine.shutil, "disk_usage", lambda path: os.statvfs_result((0,) * 10) and type("Usage", (), {"free": 1000})
    )
    monkeypatch.setattr(platform, "cores", lambda: 99)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    checks = run_checks(nnx)
    assert {checks[name]["state"] for name in ("memory", "runs", "cache")} == {"warning"}
    assert "OMP_NUM_THREADS=1 limits torch to" in checks["cpu"]["cure"]


# ---------------------------------------------------------------- an image


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    import sys

    from nnx.cli import run_command

    folder = tmp_path_factory.mktemp("doctor")
    sys.argv = ["nnx", "train", "digits_mlp", "--set", "train.epochs=2", "--out", str(folder / "run"), "-q", "--json"]
    assert run_command() == 0
    return folder / "run/checkpoint.pt"


PHOTO = Path(__file__).parents[1] / "data/handwriting/3-photo.jpg"


def test_the_last_stage_is_the_prediction_of_predict(nnx, trained):
    for image in (PHOTO, PHOTO.with_name("7-small.png")):
        document = json.loads(nnx("doctor", image, "--checkpoint", trained, "--json").out)
        (predicted,) = json.loads(nnx("predict", trained, image, "--json").out)["predictions"]
        assert [stage["step"] for stage in document["stages"]] == ["original, only resized", *predicted["prepared"]]
        assert [each["label"] for each in document["top"]] == [each["label"] for each in predicted["top"]]
        assert [each["probability"] for each in document["top"]] == pytest.approx(
            [each["probability"] for each in predicted["top"]], abs=1e-5
        )
        last = document["stages"][-1]
        for key in ("label", "probability", "top"):
            assert last[key] == document[key]
        probabilities = {stage["probability"] for stage in document["stages"]}
        assert probabilities != {document["probability"]}, "the prediction changes from step to step"


def test_each_prediction_is_that_of_the_image_after_the_step(trained):
    classifier, runtime = classifiers.load_with_runtime(trained, "cpu")
    pixels = images.decode(PHOTO)
    stages = image_check.prediction_by_stage(pixels, classifier, runtime)
    _, steps = handwriting.prepare(pixels, classifier.spec)
    import torch

    for stage, picture in zip(stages, [pixels, *(step.picture for step in steps)], strict=True):
        expected = handwriting.resize_to_spec(picture, classifier.spec)
        assert np.array_equal(stage.image, expected)
        with torch.no_grad():
            probabilities = classifier(torch.from_numpy(expected.copy())[None])[0]
        assert stage.top[0]["label"] == str(int(probabilities.argmax()))
        assert stage.top[0]["probability"] == pytest.approx(float(probabilities.max()), abs=1e-6)


def test_stages_are_drawn_without_colours(nnx, trained):
    result = nnx("doctor", PHOTO, "--checkpoint", trained)
    assert result.code == 0
    assert "\x1b" not in result.out
    assert "average training image" in result.out
    document = json.loads(nnx("doctor", PHOTO, "--checkpoint", trained, "--json").out)
    table = result.out[result.out.index("step ") :].splitlines()[1:]
    for line, stage in zip(table, document["stages"], strict=True):
        assert line.startswith(stage["step"])
        assert f"{stage['probability']:.2%}".replace("%", " %") in line
    drawn = result.out[: result.out.index("step ")]
    assert all(any(shade in line for line in drawn.splitlines()) for shade in RAMP), "all shades"


def test_stages_are_drawn_in_colours(trained):
    classifier, runtime = classifiers.load_with_runtime(trained, "cpu")
    stages = image_check.prediction_by_stage(images.decode(PHOTO), classifier, runtime)
    for width in (30, 80, 200):
        console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width, _environ={})
        for line in image_check.draw_stages(stages, classifier.spec, console):
            assert line.cell_len <= max(width, 40)
            console.print(line, soft_wrap=True)
        text = console.file.getvalue()
        assert text.count("▀") == (len(stages) + 1) * 24 * 12, "the average and each stage, three times as large"
        assert "38;2;" in text


def test_stages_are_written_as_a_picture(nnx, trained, tmp_path):
    result = nnx("doctor", PHOTO, "--checkpoint", trained, "--out", "seen.png")
    assert result.code == 0
    assert result.err.endswith("wrote seen.png\n")
    pixels = images.decode(tmp_path / "seen.png")
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels)) > 50
    assert nnx("doctor", PHOTO, "--checkpoint", trained, "--out", "seen.pdf").code == 0
    refused = nnx("doctor", PHOTO, "--checkpoint", trained, "--out", "seen.txt")
    assert refused.code == 2
    assert "seen.txt: has no image suffix" in refused.err
    refused = nnx("doctor", PHOTO, "--checkpoint", trained, "--out", "seen.png/deeper.png")
    assert refused.code == 3
    assert "deeper.png" in refused.err


def test_the_newest_checkpoint_is_the_default(nnx, trained, tmp_path):
    refused = nnx("doctor", PHOTO)
    assert refused.code == 2
    assert "runs: contains no run with a checkpoint.pt; name a checkpoint with --checkpoint, or train" in refused.err
    for n, name in enumerate(("b", "a", "c")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / f"runs/{name}/checkpoint.pt").write_bytes(trained.read_bytes())
        os.utime(tmp_path / f"runs/{name}/checkpoint.pt", (n, n if name != "a" else 10**9))
    result = nnx("doctor", PHOTO)
    assert "checkpoint runs/a/checkpoint.pt, the newest in runs/" in result.err
    assert json.loads(nnx("doctor", PHOTO, "--json").out)["checkpoint"] == "runs/a/checkpoint.pt"


def test_old_checkpoints_and_images_that_need_no_preparation(nnx, trained, tmp_path):
    saved = checkpoint.read(trained)
    checkpoint.write(tmp_path / "old.pt", replace(saved, spec=replace(saved.spec, image_statistics=None)))
    result = nnx("doctor", PHOTO, "--checkpoint", "old.pt")
    assert "average" not in result.out
    assert "does not say what its images look like" in result.out
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "right.png")
    document = json.loads(nnx("doctor", "right.png", "--checkpoint", trained, "--json").out)
    assert [stage["step"] for stage in document["stages"]] == ["original"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("missing.png", "--checkpoint", "CHECKPOINT"), "missing.png: no such file"),
        (("IMAGE", "--checkpoint", "missing.pt"), "missing.pt: no such file"),
        (("IMAGE", "--checkpoint", "rows.pt"), "rows.pt: was trained on rows of numbers"),
        (("--checkpoint", "CHECKPOINT"), "--checkpoint: needs an image; name one"),
        (("--out", "a.png"), "--out: needs an image"),
        (("IMAGE", "--checkpoint", "CHECKPOINT", "--device", "cuda:77"), "this machine has: cpu"),
    ],
)
def test_a_wrong_command_is_2(nnx, trained, tmp_path, words, what):
    saved = checkpoint.read(trained)
    spec = replace(saved.spec, shape=(64,), mean=(0.0,) * 64, std=(1.0,) * 64, image_statistics=None)
    checkpoint.write(tmp_path / "rows.pt", replace(saved, spec=spec))
    result = nnx("doctor", *({"CHECKPOINT": trained, "IMAGE": PHOTO}.get(word, word) for word in words))
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert what in result.err
    assert result.out == ""
