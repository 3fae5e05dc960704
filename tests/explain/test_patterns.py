"""What excites units most: receptive fields against brute force, optimised inputs of units whose best input is
known."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nnx import config, explain, models
from nnx.explain import _ascent, _units, patterns
from nnx.explain._ascent import Target
from nnx.models import _layer_outputs
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec

SPEC = Spec((1, 12, 12), ("a", "b", "c"), (0.3,), (0.5,))
PREPARE = Normalise(SPEC, torch.device("cpu"))
ARCHITECTURES = {
    "mlp": "{name: mlp, hidden: [6, 5], norm: layer}",
    "cnn": "{name: cnn, channels: [3, 4], depth: 2, kernel: [3, 5], hidden: [5]}",
    "valid": "{name: cnn, channels: [3], kernel: [5], padding: valid, pool: [average]}",
    "stride": "{name: cnn, channels: [3, 4], pool: [stride, none], norm: none, activation: tanh}",
    "residual": "{name: cnn, channels: [4, 4], residual: true, activation: gelu, head: average}",
    "rnn": "{name: rnn, cell: lstm, hidden: 6}",
    "both ways": "{name: rnn, cell: gru, hidden: 4, layers: 2, bidirectional: true}",
    "transformer": "{name: transformer, patch: 4, width: 8, depth: 2, heads: 2}",
}


def built(model, spec=SPEC):
    torch.manual_seed(0)
    return models.build(config.load("digits_mlp", [f"model={model}"]).model, spec, len(spec.classes)).eval()


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_the_receptive_field_is_where_a_changed_pixel_changes_something(model):
    """Brute force: each pixel of 24 images is changed strongly, up and down, and any unit of the layer may answer."""
    network = built(ARCHITECTURES[model]).double()
    torch.manual_seed(1)
    base = torch.randn(24, 1, 12, 12, dtype=torch.float64)
    before = {name: output.double() for name, output in _units.differentiable_outputs(network, base).items()}
    changed = {name: torch.zeros(output.shape[2], 144, dtype=torch.bool) for name, output in before.items()}
    with torch.no_grad():
        for pixel in range(144):
            for change in (-6.0, 6.0):
                other = base.clone()
                other.flatten(1)[:, pixel] += change
                for name, output in _units.differentiable_outputs(network, other).items():
                    changed[name][:, pixel] |= ((output - before[name]).abs() > 1e-12).any(1).any(0)
    for name, output in before.items():
        places = list(range(output.shape[2]))
        field = _units.receptive_field(network, SPEC, name, places)
        np.testing.assert_array_equal(field, changed[name].reshape(-1, 12, 12).numpy(), err_msg=name)


def test_receptive_fields_are_as_large_as_arithmetic_says():
    """A 3x3 convolution and pooling by 2 see 4x4 pixels; another 3x3, two pixels apart, 8x8, and its pooling 10x10."""
    network = built("{name: cnn, channels: [2, 2], kernel: [3]}")
    for layer, side, place in (("stages.0", 4, 2 * 6 + 2), ("stages.1", 10, 1 * 3 + 1)):
        (field,) = _units.receptive_field(network, SPEC, layer, [place])
        rows, columns = patterns._box(field)
        assert (rows.stop - rows.start, columns.stop - columns.start) == (side, side)
        assert field.sum() == side**2


def test_a_network_is_left_as_it_was():
    network = built(ARCHITECTURES["cnn"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _units.receptive_field(network, SPEC, "stages.1", [0])
    _ascent.maximise(network, PREPARE, np.full((1, 12, 12), 0.5), [Target("stages.1", 0, 0, 1, 0.5, 1.0)], seed=0)
    assert all((before[name] == tensor).all() for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


# ---------------------------------------------------------------- optimised inputs


def test_the_best_input_of_a_linear_unit_is_found():
    """w·x within the valid range is greatest where each pixel is as bright as can be for w > 0, as dark for w < 0,
    whatever its size."""
    network = built("{name: mlp, hidden: []}")
    signs = torch.randint(0, 2, (3, 144), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    network.load_state_dict({"layers.1.weight": signs, "layers.1.bias": torch.zeros(3)})
    targets = [Target("logits", unit, 0, shift=0, blur=0.0, pull=1.0) for unit in range(3)]
    made = _ascent.maximise(network, PREPARE, np.full((1, 12, 12), 0.5), targets, seed=0)
    assert (made.reshape(3, 144) == (signs > 0).float().numpy()).all()


def test_pixels_that_do_not_matter_stay_at_the_mean():
    network = built("{name: mlp, hidden: []}")
    weight = torch.zeros(3, 1, 12, 12)
    weight[:, :, 4:8, 4:8] = 1
    network.load_state_dict({"layers.1.weight": weight.flatten(1), "layers.1.bias": torch.zeros(3)})
    mean = np.linspace(0.1, 0.9, 144).reshape(1, 12, 12)
    (made,) = _ascent.maximise(network, PREPARE, mean, [Target("logits", 1, 0, shift=0, blur=0.0, pull=1.0)], seed=0)
    inside = weight[0].numpy() > 0
    assert (made[inside] > mean[inside] + 0.5 * (1 - mean[inside])).all()
    np.testing.assert_allclose(made[~inside], mean[~inside], atol=0.05)


def test_a_unit_that_is_off_is_found_too():
    """At the mean image its ReLU gives nothing, and no gradient: only a unit that leaks can be climbed."""
    network = built("{name: mlp, hidden: [2]}")
    weight = torch.zeros(2, 144)
    weight[:, :72], weight[:, 72:] = 1, -1
    network.layers[1].load_state_dict({"weight": weight / 144, "bias": torch.tensor([-0.3, 0.0])})
    mean = np.full((1, 12, 12), 0.5)
    x = PREPARE(torch.from_numpy(mean)[None].float() * 255)
    assert _units.differentiable_outputs(network, x)["layers.1"][0, 0, 0] == 0
    made = _ascent.maximise(network, PREPARE, mean, [Target("layers.1", 0, 0, shift=0, blur=0.0, pull=1.0)], seed=0)
    assert _units.differentiable_outputs(network, PREPARE(torch.from_numpy(made) * 255))["layers.1"][0, 0, 0] > 0.4


def test_images_of_different_targets_do_not_mix():
    network = built(ARCHITECTURES["cnn"])
    targets = [
        Target("stages.0", 1, 7, 1, 0.4, 0.2),
        Target("stages.1", 2, 4, 0, 0.2, 1.0),
        Target("logits", 2, 0, 2, 0.8, 1.0),
    ]
    mean = np.full((1, 12, 12), 0.4)
    made = _ascent.maximise(network, PREPARE, mean, targets, seed=7)
    assert made.min() >= 0
    assert made.max() <= 1
    assert (made == _ascent.maximise(network, PREPARE, mean, targets, seed=7)).all()
    images = torch.from_numpy(made)
    together = _ascent._gradient(network, PREPARE, images, targets)
    for n, target in enumerate(targets):
        alone = _ascent._gradient(network, PREPARE, images[n : n + 1], [target])
        np.testing.assert_allclose(together[n : n + 1], alone, atol=1e-6)
    assert together[0].flatten().count_nonzero() < 144, "the others' gradients would be everywhere"


def test_each_image_is_blurred_by_its_own_gaussian():
    from scipy.ndimage import gaussian_filter

    sigmas = [0.8, 0.0, 2.0]
    images = torch.rand(3, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    for image, blurred, sigma in zip(images, _ascent._make_blur(sigmas, channels=2)(images), sigmas, strict=True):
        expected = (
            gaussian_filter(image.numpy(), (0, sigma, sigma), mode="constant", radius=(0, 4, 4))
            if sigma
            else image.numpy()
        )
        np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-5)


# ---------------------------------------------------------------- the explainer


@pytest.mark.parametrize("model", ["mlp", "cnn", "rnn", "transformer"])
def test_the_nine_images_are_the_nine_strongest(subject, model):
    explained = subject(model)
    images = explained.data("test").inputs
    outputs = {
        name: _units.by_position(output)
        for name, output in _layer_outputs.layer_outputs(explained.network, explained.inputs(images)).items()
    }
    layers = patterns.find_activations(explained.network, explained, images)
    assert [layer.name for layer in layers] == list(outputs)
    for layer in layers:
        most = outputs[layer.name].amax(2).numpy()
        if layer.name != "logits":
            spread = most.var(0)
            assert set(np.round(spread[layer.units], 6)) == set(np.round(np.sort(spread)[::-1][: patterns.UNITS], 6))
        for n, unit in enumerate(layer.units):
            strongest = sorted(most[:, unit].tolist(), reverse=True)[:9]
            assert most[layer.best[n], unit].tolist() == strongest
            for image, place in zip(layer.best[n], layer.positions[n], strict=True):
                assert outputs[layer.name][image, unit, place] == most[image, unit]


def test_patches_are_cut_where_the_unit_looks():
    """Of an image whose pixels say where they are."""
    network = built("{name: cnn, channels: [2], kernel: [3]}")
    layer = patterns.LayerPatterns("stages.0", (2, 6, 6), np.zeros((9, 2), np.float32), np.zeros((9, 2), np.int64))
    places = [0, 14, 35, 5]
    layer.fields = dict(zip(places, _units.receptive_field(network, SPEC, "stages.0", places), strict=True))
    layer.size, layer.patches = (4, 4), {}
    image = np.arange(144.0).reshape(1, 12, 12)
    whole = patterns.crop(image, layer, 14)[:, :, 0]  # row 2, column 2 of the map: pixels 3 to 6
    assert (whole == image[0, 3:7, 3:7]).all()
    corner, other, right = (patterns.crop(image, layer, place)[:, :, 0] for place in (0, 35, 5))
    assert np.isnan(corner[0]).all()
    assert np.isnan(corner[:, 0]).all()
    assert (corner[1:, 1:] == image[0, :3, :3]).all()
    assert (other[:3, :3] == image[0, 9:, 9:]).all()
    assert np.isnan(other[3]).all()
    assert (right[1:, :3] == image[0, :3, 9:]).all()
    colours = patterns.crop(np.stack([image[0], image[0] + 1, image[0] + 2]), layer, 14)
    assert (colours[0, 0] == [39, 40, 41]).all()


def test_a_token_is_framed():
    patch = np.zeros((12, 12), dtype=bool)
    patch[4:8, 8:12] = True
    framed = patterns._draw_frame(np.zeros((12, 12, 3)), patch)
    rows, columns = np.nonzero(framed.any(2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 23, 24, 35)
    assert framed.any(2).sum() == 4 * 12 - 4


@pytest.mark.parametrize("model", ["mlp", "cnn", "rnn", "transformer"])
def test_it_explains(subject, model):
    explained = subject(model)
    [(_, found)] = explain.explain(explained, ["patterns"])
    layers = found.figures["layers"]
    assert [picture.name for picture in found.pictures] == [f"patterns-{name}" for name in layers]
    assert len(layers["logits"]["shown"]) == 10
    for name, layer in layers.items():
        reached = np.array([unit["optimised"] / unit["strongest"] for unit in layer["shown"]])
        assert (reached > 0.99).mean() >= 0.75, (
            name
        )  # of a few black and white pixels the best image may have the best there can be
        assert reached.min() > 0.6, name
        assert all(len(unit["classes"]) == 9 for unit in layer["shown"])
    mean = explained.inputs((explained.data("test").inputs.mean(0) + 0.5).astype(np.uint8)[None])
    for unit in layers["logits"]["shown"]:
        start = explained.network(mean)[0, unit["unit"]].item()
        assert unit["optimised"] > start + 0.5 * (unit["strongest"] - start)
    heights = [Image.open(io.BytesIO(picture.png)).height for picture in found.pictures]
    assert max(heights) < 1500
    if model == "cnn":
        [(_, again)] = explain.explain(explained, ["patterns"])
        assert again == found


# ---------------------------------------------------------------- no checkerboards, gray, layers


def neighbour_correlation(images):
    """Of (N, C, H, W) images, between pixels and their neighbours to the right and below: below 0 for a
    checkerboard."""
    images = images - images.mean(0)
    pairs = [(images[..., 1:], images[..., :-1]), (images[..., 1:, :], images[..., :-1, :])]
    return np.mean([(a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()) for a, b in pairs])


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_optimised_images_are_no_checkerboards(subject, model, monkeypatch):
    explained = subject(model)
    images = explained.data("test").inputs

    def smoothness():
        layer = patterns.find_activations(explained.network, explained, images)[-1]
        layer.find_fields(explained, layer)
        mean = images.mean(0) / 255
        return neighbour_correlation(
            _ascent.maximise(explained.network, explained.prepare, mean, layer.targets, seed=0)
        )

    smooth = smoothness()
    monkeypatch.setattr(patterns, "BLUR", 0)
    monkeypatch.setattr(patterns, "JITTER", 1000)
    assert smooth > 0.3
    assert smooth > smoothness() + 0.2, "the control: without blur and jitter"


def test_colour_images_are_blurred_more(subject, colour_subject):
    blurs = []
    for explained in (subject("cnn"), colour_subject("cnn")):
        layer = patterns.find_activations(explained.network, explained, explained.data("test").inputs)[0]
        layer.find_fields(explained, layer)
        blurs.append(layer.targets[0].blur)
    assert blurs[1] == pytest.approx(patterns.COLOUR_BLUR * blurs[0])


def test_optimised_colour_images_are_not_saturated():
    """Of a linear network: few values are clipped, and channels that vary together in the dataset do so here."""
    spec = Spec((3, 12, 12), ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3)
    network = built("{name: mlp, hidden: []}", spec)
    prepare = Normalise(spec, torch.device("cpu"))
    targets = [Target("logits", unit, 0, shift=0, blur=0.0, pull=0.2) for unit in range(3)]
    mean = np.full((3, 12, 12), 0.5)
    covariance = 0.02 * (0.9 * np.ones((3, 3)) + 0.1 * np.eye(3))  # mostly gray
    plain, natural = (_ascent.maximise(network, prepare, mean, targets, 0, colours) for colours in (None, covariance))
    clipped = [((made == 0) | (made == 1)).mean() for made in (plain, natural)]
    assert clipped[0] > 0.5
    assert clipped[1] < 0.1
    red, green = natural[:, 0].ravel(), natural[:, 1].ravel()
    assert np.corrcoef(red, green)[0, 1] > 0.8
    assert natural.std() == pytest.approx(_ascent.CONTRAST * 0.02**0.5, rel=0.2)


def test_small_fields_in_colour_are_not_saturated_by_the_halo_of_the_blur():
    spec = Spec((3, 16, 16), ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3)
    network = built("{name: cnn, channels: [8]}", spec)
    middle = 3 * 8 + 3
    targets = [Target("stages.0", unit, middle, shift=0, blur=1.5, pull=0.2) for unit in range(8)]
    covariance = 0.05 * np.eye(3)
    images = _ascent.maximise(
        network, Normalise(spec, torch.device("cpu")), np.full((3, 16, 16), 0.5), targets, 0, covariance
    )
    field = images[:, :, 6:10, 6:10]
    assert np.abs(field - 0.5).mean() > 0.1
    assert ((field == 0) | (field == 1)).mean() < 0.15


def test_the_colour_covariance_is_numpys():
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 5)).astype(np.uint8)
    pixels = (images / 255 - images.mean(0) / 255).transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(patterns._colour_covariance(images), np.cov(pixels, bias=True), atol=1e-12)


def test_a_picture_names_its_layer_and_its_caption_explains_the_gray(subject, monkeypatch):
    titles = []
    monkeypatch.setattr(patterns._draw, "to_png", lambda figure: titles.append(figure.get_suptitle()) or b"")
    monkeypatch.setattr(_ascent, "STEPS", 2)
    [(_, found)] = explain.explain(subject("cnn"), ["patterns"])
    assert titles == [subject("cnn").layer_titles[name] for name in found.figures["layers"]]
    assert all("Gray between and beside the images is no part of them" in each.caption for each in found.pictures)
    cut = ["beyond the edge of its image" in each.caption for each in found.pictures]
    assert cut[0], "the units of the first layer see few pixels"
    assert not cut[-1], "a class sees the whole image"


def test_it_is_for_images(table_subject):
    assert "rows of numbers" in patterns.applies(table_subject("mlp").checkpoint)
    assert isinstance(table_subject("mlp").network, nn.Module)
