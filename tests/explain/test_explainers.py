"""One set of tests over every explainer and every architecture, so that a new file of either is tested at once."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nnx import explain
from nnx.config import registry
from nnx.errors import DataError, InputError, MachineError
from nnx.explain import Explanation, _draw, _page

EXPLAINERS = explain.names()
MODELS = registry.names("model")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Fewer samples, steps and dots than in earnest: what the pictures show has tests of its own."""
    for name, constants in {
        "embedding": {"SAMPLES": 150, "TSNE_STEPS": 250},
        "patterns": {"IMAGES": 200, "UNITS": 3},
        "_ascent": {"STEPS": 3},
        "probe": {"SAMPLES": 150},
        "_ridge": {"SHUFFLES": 3},
        "activations": {"SAMPLES": 1},
        "_draw": {"DPI": 60},
    }.items():
        for constant, value in constants.items():
            monkeypatch.setattr(f"nnx.explain.{name}.{constant}", value)


def check(name, found):
    """What every explanation keeps to."""
    assert isinstance(found, Explanation)
    assert found.reading.endswith(".")
    assert "\n" not in found.reading
    assert found.pictures
    assert len({picture.name for picture in found.pictures}) == len(found.pictures)
    for picture in found.pictures:
        assert picture.name.startswith(name), "so that no two explainers write the same file"
        assert re.fullmatch(r"[a-z0-9_.-]+", picture.name)
        assert picture.caption.endswith(".")
        with Image.open(io.BytesIO(picture.png)) as image:
            assert image.format == "PNG"
            assert 100 < image.width < 1500
            assert len(np.unique(np.asarray(image.convert("RGBA")).reshape(-1, 4), axis=0)) > 3, "something is on it"
        assert len(picture.png) < 500_000
    json.dumps(found.figures, allow_nan=False)
    assert found.figures


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", EXPLAINERS)
def test_every_explainer_explains_every_architecture_or_says_why_not(subject, name, model):
    explained = subject(model)
    before = {key: tensor.clone() for key, tensor in explained.network.state_dict().items()}
    why = explain.module(name).applies(explained.checkpoint)
    if why is None:
        [(_, found)] = explain.explain(explained, [name])
        check(name, found)
    else:
        assert explain.choose(explained.checkpoint)[name] == why
        with pytest.raises(InputError, match=name):
            list(explain.explain(explained, [name]))
    assert all((before[key] == tensor).all() for key, tensor in explained.network.state_dict().items()), (
        "the network is left as it was"
    )
    assert not explained.network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in explained.network.modules())


@pytest.mark.parametrize("model", [name for name in MODELS if name != "cnn"])
@pytest.mark.parametrize("name", EXPLAINERS)
def test_tables_too(table_subject, name, model):
    explained = table_subject(model)
    if explain.module(name).applies(explained.checkpoint) is None:
        [(_, found)] = explain.explain(explained, [name])
        check(name, found)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_an_explainer_is_a_file_that_says_what_it_shows(name):
    module = explain.module(name)
    assert _page.summary_line(name).endswith(".")
    assert callable(module.applies)
    assert callable(module.explain)


def test_the_file_names_are_the_registry():
    from pathlib import Path

    files = Path(explain.__file__).parent.glob("[!_]*.py")
    assert sorted(file.stem for file in files) == EXPLAINERS


def test_an_unknown_explainer_gets_a_suggestion(subject):
    with pytest.raises(InputError, match="unknown explainer 'filtres', did you mean 'filters'"):
        list(explain.explain(subject("mlp"), ["filters", "filtres"]))


def test_a_missing_requirement_is_a_reason_unless_the_explainer_is_in_only(subject, monkeypatch):
    def lacking(explained):
        raise DataError("the data is not there")

    monkeypatch.setattr(explain.module("filters"), "explain", lacking)
    monkeypatch.setattr(explain, "names", lambda: ["filters"])
    assert dict(explain.explain(subject("mlp"))) == {"filters": "the data is not there"}
    with pytest.raises(DataError):
        list(explain.explain(subject("mlp"), ["filters"]))


def test_a_reason_does_not_repeat_the_name_of_the_explainer(subject):
    ours = subject("mlp")
    few = explain.build_subject(
        ours.checkpoint, lambda name: ours.data(name).take(np.arange(5)), ours.images, ours.names
    )
    found = dict(explain.explain(few))
    assert found["embedding"].startswith("needs 20 test samples")
    assert found["probe"].startswith("needs 40 training")
    with pytest.raises(DataError, match="probe: needs 40"):
        list(explain.explain(few, ["probe"]))


def test_titles_of_one_picture_are_all_on_one_line_or_all_on_two(subject):
    ours = subject("mlp")
    short = [_draw.sample_title(replace(ours, names=["a", "b"]), n) for n in (0, 1)]
    mixed = [_draw.sample_title(replace(ours, names=["a", "quite a long name"]), n) for n in (0, 1)]
    assert ["\n" in text for text in short + mixed] == [False, False, True, True]
    assert short[0] == f"a, true {ours.classes[ours.labels[0]]}"


def test_without_captum_saliency_says_what_to_install(subject, monkeypatch):
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "captum" else there(name, *rest)
    )
    checkpoint = subject("mlp").checkpoint
    assert "pip install 'nnx[explain]'" in explain.choose(checkpoint)["saliency"]
    with pytest.raises(MachineError, match=r"pip install 'nnx\[explain\]'"):
        explain.choose(checkpoint, ["saliency"])


def test_a_split_is_loaded_on_its_first_use_and_only_once(subject):
    explained = subject("mlp")
    loads = []
    new = explain.build_subject(
        explained.checkpoint, lambda name: loads.append(name) or explained.data(name), explained.images, explained.names
    )
    assert loads == []
    assert new.data("test") is new.data("test")
    assert loads == ["test"]


def test_the_control_is_the_same_architecture_with_other_weights_always_the_same(subject):
    explained = subject("cnn")
    again = explain.build_subject(explained.checkpoint, explained.data, explained.images, explained.names)
    ours, control, other = (each.state_dict() for each in (explained.network, explained.untrained, again.untrained))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in control.items()}
    assert not all((ours[key] == control[key]).all() for key in ours)
    assert all((control[key] == other[key]).all() for key in control)


def test_one_of_each_class(subject):
    split = subject("mlp").data("test")
    which = explain.one_per_class(split, 10)
    assert split.labels[which].tolist() == list(range(10))
    assert all((split.labels[:place] != split.labels[place]).all() for place in which), "the first of its class"
    assert len(explain.one_per_class(split, 10, limit=3)) == 3


def test_the_page_contains_all_and_escapes_all_texts(subject):
    explained = subject("mlp")
    hostile = explain.build_subject(
        explained.checkpoint,
        explained.data,
        explained.images,
        ["<script>alert(1)</script>"] * len(explained.images),
        explained.labels,
    )
    found = dict(explain.explain(hostile, ["filters", "activations"])) | {"attention": "no <b>attention</b>"}
    page = _page.render(hostile, found)
    assert "<script" not in page
    assert "<b>" not in page
    assert "no &lt;b&gt;attention" in page
    assert page.count("data:image/png;base64,") == sum(
        len(each.pictures) for each in found.values() if isinstance(each, Explanation)
    )
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page), "nothing from elsewhere"
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("name", ["activations", "filters", "patterns", "probe"])
def test_all_captions_name_a_layer_alike(subject, name):
    [(_, found)] = explain.explain(subject("cnn"), [name])
    captions = " ".join(picture.caption for picture in found.pictures)
    if name == "activations":  # its layers are named in the picture
        assert subject("cnn").layer_titles["stages.0"] == "Layer 1: conv 3×3, 6 filters (stages.0)"
        assert "stages." not in captions
    else:
        assert re.search(r"Layer \d: (conv 3×3, \d filters|linear, 16 units) \((stages\.\d|head\.\d)\)", captions)
        assert not re.search(r"(?<!\()(stages|head)\.\d", captions), "never the name alone"
