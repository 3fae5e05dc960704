"""What the API answers is what the network computes, and requests do not mix."""

import base64
import io
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from serve.conftest import serving, train

import nnx
from nnx.explain import activations, build_subject
from nnx.explain.saliency import baseline, integrated_gradients
from nnx.inference.inputs import InputSet
from nnx.preprocessing import handwriting, images
from nnx.serve import choose

PHOTOGRAPH = Path(__file__).parents[1] / "data/handwriting/2-pencil.jpg"
NAMES = ["cnn", "mlp", "rnn", "transformer"]
ALL = ["prepared", "layers", "saliency"]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unpack(packed: dict) -> np.ndarray:
    levels = np.frombuffer(base64.b64decode(packed["data"]), np.int8).astype(np.float32)
    return levels.reshape(packed["shape"]) * packed["scale"] / 127


@pytest.fixture(scope="module")
def small() -> bytes:
    """The photograph, small enough for a request."""
    picture = Image.open(PHOTOGRAPH).convert("L")
    picture.thumbnail((500, 500))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def answers(served, small) -> dict:
    response = served.ask(image=encoded(small), parts=ALL)
    assert response.status_code == 200, response.text
    return {answer["model"]: answer for answer in response.json()["answers"]}


def test_the_page_and_its_files_are_served_as_what_they_are(served):
    page = served.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name in ("style.css", "page.js", "source.js", "drawing.js", "pictures.js", "form.js", "icon.svg", "docs"):
        assert served.client.get(f"/{name}").status_code == 200, name
    assert "//" not in page.text.replace("<!doctype", "").replace("http://www.w3.org", "")  # nothing from elsewhere


def test_a_folder_of_runs_is_served_together(served):
    models = served.client.get("/api/models").json()
    assert [model["id"] for model in models["models"]] == NAMES
    assert [model["architecture"] for model in models["models"]] == NAMES
    assert models["classes"] == [str(n) for n in range(10)]
    assert served.client.get("/healthz").json() == {"status": "ok", "models": 4}


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_is_that_of_the_classifier(served, trained, answers, small, name, tmp_path):
    (tmp_path / "two.png").write_bytes(small)
    classifier = nnx.load(trained / name)
    (batch,) = InputSet([str(tmp_path / "two.png")], classifier.spec).batches()
    with torch.no_grad():
        expected = classifier(torch.from_numpy(batch.inputs))[0]
    assert answers[name]["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert answers[name]["label"] == classifier.classes[int(expected.argmax())]


def test_each_step_of_the_preparation_is_shown(trained, answers, small):
    spec = nnx.load(trained / "mlp").spec
    image, steps = handwriting.prepare(images.decode(small, "x"), spec)
    shown = answers["mlp"]["prepared"]
    assert [step["step"] for step in shown] == ["original, only resized", *(step.text for step in steps)]
    last = np.frombuffer(base64.b64decode(shown[-1]["image"]["data"]), np.uint8)
    assert (last.reshape(8, 8) == image[0]).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_saliency_is_that_of_nnx_explain(trained, answers, small, name):
    pytest.importorskip("captum")
    subject = subject_of(trained / name, small)
    target = torch.from_numpy(subject.predicted)
    expected = integrated_gradients(subject.network, subject.inputs(), target, baseline(subject)).values[0].sum(0)
    ours = unpack(answers[name]["saliency"])[0]
    # 16 steps and 8 bits, instead of as many steps as the sum needs
    assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > 0.98


def subject_of(run: Path, picture: bytes):
    from nnx import checkpoint

    saved = checkpoint.read(run / "checkpoint.pt")
    image, _ = handwriting.prepare(images.decode(picture, "x"), saved.spec)
    return build_subject(saved, lambda split: None, image[None], ["two"])


def test_the_belief_is_the_prediction_after_each_row(trained, answers, small):
    expected = activations.step_predictions(subject_of(trained / "rnn", small))[0]
    (belief,) = (layer for layer in answers["rnn"]["layers"] if layer["kind"] == "belief")
    assert unpack(belief["values"])[0] == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("settings", [["model.read=mean"], ["model.read=last", "model.cell=gru", "model.layers=2"]])
def test_step_logits_are_those_of_shorter_inputs(settings):
    from nnx import config as configs
    from nnx import models
    from nnx.preprocessing.spec import Spec

    config = configs.load("digits_rnn", ["model.bidirectional=false", *settings]).model
    network = models.build(config, Spec((1, 8, 8), ("a", "b"), (0.0,), (1.0,)), 2).eval()
    x = torch.randn(2, 1, 8, 8)
    for t in range(8):
        torch.testing.assert_close(network.step_logits(x)[:, t], network(x[:, :, : t + 1]))


def test_a_network_that_reads_backwards_has_no_belief():
    from nnx import config as configs
    from nnx import models
    from nnx.preprocessing.spec import Spec

    config = configs.load("digits_rnn", ["model.bidirectional=true"]).model
    network = models.build(config, Spec((1, 8, 8), ("a", "b"), (0.0,), (1.0,)), 2).eval()
    assert network.step_logits(torch.randn(2, 1, 8, 8)) is None


def test_the_attention_of_a_head_sums_to_one_over_the_patches(answers):
    maps = [unpack(layer["values"]) for layer in answers["transformer"]["layers"] if layer["kind"] == "attention"]
    assert maps
    for heads in maps:
        assert (heads >= 0).all()
        assert (heads.sum((1, 2)) <= 1.01).all()


def test_layers_have_the_shapes_that_were_announced(served, answers):
    for model in served.client.get("/api/models").json()["models"]:
        told = [(layer["name"], layer["shape"]) for layer in model["layers"]]
        assert [(layer["name"], layer["values"]["shape"]) for layer in answers[model["id"]]["layers"]] == told


def test_a_sample_is_answered_as_the_dataset_has_it(served, trained):
    sample = served.client.get("/api/sample", params={"index": 7}).json()
    assert (sample["split"], sample["count"]) == ("test", 360)
    assert served.client.get("/api/sample").json()["index"] < 360
    (answer,) = served.ask(sample=7, models=["mlp"]).json()["answers"]
    pixels = np.frombuffer(base64.b64decode(sample["image"]["data"]), np.uint8).reshape(1, 1, 8, 8)
    with torch.no_grad():
        expected = nnx.load(trained / "mlp")(torch.from_numpy(pixels.copy()))[0]
    assert answer["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_fifty_clients_at_once_lose_no_answer_and_do_not_mix(served):
    alone = {n: served.ask(sample=n, parts=ALL).json() for n in range(50)}
    with ThreadPoolExecutor(50) as clients:
        for _ in range(2):
            together = list(clients.map(lambda n: served.ask(sample=n, parts=ALL), range(50)))
            assert [response.status_code for response in together] == [200] * 50
            for n, response in enumerate(together):
                for mine, theirs in zip(response.json()["answers"], alone[n]["answers"], strict=True):
                    assert mine["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)
                    assert mine["layers"] == theirs["layers"]


# ---------------------------------------------------------------- tables


def test_a_row_is_answered_as_nnx_predict_does(iris, tmp_path):
    with serving(iris) as served:
        columns = served.client.get("/api/models").json()["columns"]
        assert [column["kind"] for column in columns] == ["number"] * 4
        assert all(column["low"] < float(column["typical"]) < column["high"] for column in columns)
        sample = served.client.get("/api/sample", params={"index": 3}).json()
        (by_row,) = served.ask(row=sample["row"], parts=ALL).json()["answers"]
        (by_index,) = served.ask(sample=3).json()["answers"]
        assert by_row["probabilities"] == pytest.approx(by_index["probabilities"], abs=1e-5)
        assert len(unpack(by_row["saliency"])) == 4
        names = list(sample["row"])
        (tmp_path / "row.csv").write_text(",".join(names) + "\n" + ",".join(sample["row"].values()) + "\n")
        classifier = nnx.load(iris)
        (batch,) = InputSet([str(tmp_path / "row.csv")], classifier.spec).batches()
        with torch.no_grad():
            expected = classifier(torch.from_numpy(batch.inputs))[0]
        assert by_row["probabilities"] == pytest.approx(expected.tolist(), abs=1e-6)
        wrong = served.ask(row={**sample["row"], names[0]: "much"})
        assert wrong.status_code == 422
        assert "'much', which is not a number" in wrong.json()["error"]
        missing = served.ask(row={names[0]: "1"})
        assert missing.json()["error"] == f"row: has no column {names[1]!r}; null stands for a missing value"


def test_a_column_far_from_zero_keeps_the_digits_of_its_samples(tmp_path):
    """Times in seconds since 1970 differ after the seventh digit."""
    seconds = 1_700_000_000 + np.random.default_rng(0).permutation(200)
    rows = [f"{each},{'late' if each % 1000 > 100 else 'early'}" for each in seconds.tolist()]
    (tmp_path / "log.csv").write_text("\n".join(["seconds,kind", *rows]))
    config = f"dataset.path={tmp_path / 'log.csv'}"
    run = train(tmp_path / "run", "iris_mlp", "dataset={name: table, path: x, target: kind}", config, "train.epochs=1")
    with serving(run) as served:
        shown = served.client.get("/api/sample", params={"index": 0}).json()["row"]["seconds"]
        typical = served.client.get("/api/models").json()["columns"][0]["typical"]
    assert int(shown) in seconds
    assert abs(float(typical) - np.median(seconds)) < 20


def test_a_table_with_categories_and_missing_values(tmp_path):
    rows = [f"{n % 7},{'red' if n % 3 else 'blue'},{'' if n % 5 == 0 else n},{'ab'[n % 2]}" for n in range(200)]
    (tmp_path / "plant.csv").write_text("size,colour,age,target\n" + "\n".join(rows) + "\n")
    recipe = tmp_path / "plant.yaml"
    recipe.write_text(
        f"dataset: {{name: table, path: {tmp_path / 'plant.csv'}, target: target}}\n"
        "model: {name: mlp, hidden: [8]}\ntrain: {epochs: 2}\n"
    )
    run = train(tmp_path / "plant", str(recipe))
    with serving(run) as served:
        columns = {column["name"]: column for column in served.client.get("/api/models").json()["columns"]}
        assert columns["colour"]["categories"] == ["red", "blue"]  # the most frequent first
        assert (columns["size"]["low"], columns["size"]["high"]) == (0, 6)
        assert columns["age"]["features"] == 2
        assert served.ask(row={"size": "3", "colour": "green", "age": None}).status_code == 200
        for n in range(5):
            row = served.client.get("/api/sample", params={"index": n}).json()["row"]
            by_row, by_index = (served.ask(**each).json()["answers"][0] for each in ({"row": row}, {"sample": n}))
            assert by_row["probabilities"] == pytest.approx(by_index["probabilities"], abs=1e-5)
        os.rename(tmp_path / "plant.csv", tmp_path / "gone.csv")
    with serving(run) as served:  # without its data, the form still works
        columns = {column["name"]: column for column in served.client.get("/api/models").json()["columns"]}
        assert columns["size"]["low"] < 3 < columns["size"]["high"]
        assert served.ask(row={"size": "3", "colour": "red", "age": "4"}).status_code == 200
        gone = served.client.get("/api/sample")
        assert gone.status_code == 404
        assert "plant" not in gone.text  # no paths


# ---------------------------------------------------------------- which networks


def serve_once(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nnx", "serve", *map(str, words), "--no-open"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_of_many_runs_only_those_served_are_loaded(trained, tmp_path, monkeypatch):
    for n in range(12):
        (tmp_path / f"run{n:02}").mkdir()
        shutil.copy(trained / "mlp" / "checkpoint.pt", tmp_path / f"run{n:02}")
        os.utime(tmp_path / f"run{n:02}" / "checkpoint.pt", (n, n))
    loaded = []
    load = choose.Network
    monkeypatch.setattr(choose, "Network", lambda *given: loaded.append(given[0]) or load(*given))
    networks, notes = choose.find_networks([tmp_path], lambda saved: torch.device("cpu"))
    assert [network.name for network in networks] == loaded == [f"run{n:02}" for n in range(4, 12)]
    assert notes == ["left out: 4 older of 12 runs; name them to serve them"]


def test_networks_that_do_not_fit_are_left_out_of_a_folder_and_refused_by_name(trained, iris):
    refused = serve_once(trained / "mlp", iris)
    assert refused.returncode == 2
    assert f"error: {iris / 'checkpoint.pt'}: does not fit {trained / 'mlp' / 'checkpoint.pt'}" in refused.stderr
    with serving(trained / "mlp", iris.parent) as served:
        assert served.client.get("/healthz").json()["models"] == 1
        served.process.terminate()
        assert "it was trained on rows of a table, not on images" in served.process.communicate()[1]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_what_is_no_checkpoint_is_refused(tmp_path, make):
    make(tmp_path / "x")
    result = serve_once(tmp_path / "x")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'x'}: ")
    assert "Traceback" not in result.stderr
