"""Saliency: which pixels or features the prediction depends on, beside an untrained network as control."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nnx.checkpoint import Checkpoint
from nnx.explain import Explanation, Picture, Subject, _draw
from nnx.models import _layer_outputs
from nnx.system import accelerator, packages

SAMPLES = 10
STEPS, MAX_STEPS = 64, 8192  # of the integral from the baseline to the input
MAX_ERROR = 0.01  # share of the difference of the logits that the attributions may miss
WINDOWS = 6  # occlusion windows side by side across an image; they overlap by half
BAR = 0.1  # width of a colour bar, in columns of images
BLANK = "no positive\nevidence"
READING_IMAGES = (
    "Red pixels raise the logit of the predicted class, blue pixels lower it. Compare each map with that of the "
    "untrained network below it, which has learned nothing: trust only what differs."
)
READING_ROWS = (
    "A long bar is a feature on which the predictions depend strongly. Compare it with the bar of the untrained "
    "network, which has learned nothing: trust only what differs."
)


def applies(checkpoint: Checkpoint) -> str | None:
    packages.require(("captum",), "explain", "saliency")
    return None


@dataclass(frozen=True)
class Attributions:
    """For N samples: the contribution of each input value to the logit of the predicted class (N, ...), the number of
    steps (N,), the difference of that logit to the baseline's (N,), and the share of it that the contributions miss
    (N,)."""

    values: NDArray[np.float32]
    steps: NDArray[np.int64]
    missing: NDArray[np.float64]
    difference: NDArray[np.float64]


def explain(subject: Subject) -> Explanation:
    x = subject.inputs()[:SAMPLES]
    targets = torch.from_numpy(subject.predicted[:SAMPLES]).to(x.device)
    reference = baseline(subject)
    trained = integrated_gradients(subject.network, x, targets, reference)
    untrained = attribute(subject.untrained, x, targets, reference, trained.steps)
    differs = (x != reference).cpu().numpy()  # elsewhere both attributions are zero by definition
    figures: dict[str, Any] = {
        "baseline": "black" if subject.spec.is_image else "the mean of the training data",
        "samples": subject.names[:SAMPLES],
        "classes": [subject.classes[k] for k in targets.tolist()],
        "labels": None if subject.labels is None else [subject.classes[k] for k in subject.labels[:SAMPLES].tolist()],
        "steps": trained.steps.tolist(),
        "rise": trained.difference.tolist(),
        "completeness_error": float(trained.missing.max()),
        "integrated_gradients": _agreement(trained.values, untrained.values, differs),
    }
    if not subject.spec.is_image:
        return Explanation(READING_ROWS, (_draw_features(subject, trained, untrained),), figures)
    networks = (subject.network, subject.untrained)
    methods = {"integrated\ngradients": [trained.values.sum(1), untrained.values.sum(1)]}
    if subject.spec.shape[0] > 1:  # from black, integrated gradients credit dark colours with nothing
        drops = [occlusion(network, x, targets) for network in networks]
        methods["occlusion"] = drops
        figures["occlusion"] = _agreement(drops[0], drops[1], np.ones_like(drops[0], dtype=bool))
    if any(output.ndim == 4 for output in _layer_outputs.layer_outputs(subject.network, x[:1]).values()):
        cams = [grad_cam(network, x, targets) for network in networks]
        methods["Grad-CAM"] = cams
        figures["grad_cam"] = _agreement(cams[0], cams[1], np.ones_like(cams[0], dtype=bool))
        figures["grad_cam"]["blank"] = [(~maps.any((1, 2))).tolist() for maps in cams]
    picture = Picture("saliency", _caption(subject, figures), _draw_maps(subject, methods, figures))
    return Explanation(READING_IMAGES, (picture,), figures)


def baseline(subject: Subject) -> Tensor:
    """(1, ...) the normalised input that stands for "nothing": a black image, or the mean of the training data."""
    if subject.spec.is_image:
        return subject.inputs(np.zeros((1, *subject.spec.shape), np.uint8))
    return torch.zeros(1, *subject.spec.shape, device=subject.device)


def integrated_gradients(network: nn.Module, x: Tensor, targets: Tensor, reference: Tensor) -> Attributions:
    """Attributions that sum to the difference of the logits within 1 %: with 64 steps, doubled up to 8,192 for the
    samples that need it."""
    result = attribute(network, x, targets, reference, np.full(len(x), STEPS))
    while len(short := np.flatnonzero((result.missing >= MAX_ERROR) & (result.steps < MAX_STEPS))):
        finer = attribute(network, x[short], targets[short], reference, result.steps[short] * 2)
        result.values[short] = finer.values
        result.steps[short] = finer.steps
        result.missing[short] = finer.missing
    return result


def attribute(
    network: nn.Module, x: Tensor, targets: Tensor, reference: Tensor, steps: NDArray[np.int64]
) -> Attributions:
    """The gradient of each sample's target logit, averaged over `steps` points between `reference` and `x`, times their
    difference (Sundararajan et al. 2017)."""
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(lambda inputs, k: _target_logit(network, inputs, k))
    values = torch.zeros_like(x)
    batch_size = max(len(x), _layer_outputs.batch_size_for(x))
    with torch.no_grad():
        before = _target_logit(network, reference.expand_as(x), targets)
        difference = (_target_logit(network, x, targets) - before).cpu().double()  # MPS has no float64
    with accelerator.differentiable_rnn(x.device):
        for count in np.unique(steps):
            group = torch.from_numpy(np.flatnonzero(steps == count)).to(x.device)
            values[group] = method.attribute(
                x[group],
                reference,
                additional_forward_args=targets[group],
                n_steps=int(count),
                method="riemann_middle",
                internal_batch_size=batch_size,
            ).to(values.dtype)
    values = values.detach().cpu()
    missing = (values.double().flatten(1).sum(1) - difference).abs() / difference.abs().clamp_min(1e-12)
    return Attributions(values.float().numpy(), steps.copy(), missing.numpy(), difference.numpy())


def grad_cam(network: nn.Module, x: Tensor, targets: Tensor) -> NDArray[Any]:
    """(N, H, W): the feature maps of the last stage, weighted by the mean gradient of the target logit, summed, clipped
    at zero (Selvaraju et al. 2017), and enlarged to the image."""
    from captum.attr import LayerGradCam

    stages = [name for name, output in _layer_outputs.layer_outputs(network, x[:1]).items() if output.ndim == 4]
    stage = _layer_outputs.layer_modules(network, x[:1])[stages[-1]]
    method = LayerGradCam(lambda inputs, k: _target_logit(network, inputs, k), stage)
    maps: Tensor = method.attribute(x, additional_forward_args=targets, relu_attributions=True)
    return F.interpolate(maps.detach(), x.shape[2:], mode="bilinear", align_corners=False)[:, 0].cpu().numpy()


def occlusion(network: nn.Module, x: Tensor, targets: Tensor) -> NDArray[np.float32]:
    """(N, H, W): by how much the target logit drops when a window of the mean colour covers the pixel, averaged over
    the windows that do (Zeiler & Fergus 2014)."""
    _, _, H, W = x.shape
    total = torch.zeros(len(x), H, W)
    count = torch.zeros(H, W)
    with torch.no_grad():
        whole = _target_logit(network, x, targets)
        for rows in occlusion_windows(H):
            for columns in occlusion_windows(W):
                covered = x.clone()
                covered[:, :, rows, columns] = 0  # normalised: the mean of the training data
                drop = (whole - _target_logit(network, covered, targets)).float().cpu()
                total[:, rows, columns] += drop[:, None, None]
                count[rows, columns] += 1
    drops: NDArray[np.float32] = (total / count).numpy()
    return drops


def occlusion_windows(size: int) -> list[slice]:
    """The windows along one side of an image: each a sixth of it, half a window apart, and together all of it."""
    length = -(-size // WINDOWS)
    last = size - length
    starts = sorted({*range(0, last, max(1, length // 2)), last})
    return [slice(start, start + length) for start in starts]


def rank_correlation(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Spearman's rank correlation of two maps, or None if one of them is constant."""
    from scipy.stats import spearmanr

    one = one.ravel()
    other = other.ravel()
    return float(spearmanr(one, other).statistic) if len(one) > 2 and np.ptp(one) and np.ptp(other) else None


def _target_logit(network: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """(N,) the logit of each sample's target class. A single logit for two classes is that of the second; its negative
    is that of the first."""
    logits: Tensor = network(x)
    if logits.shape[1] == 1:
        logits = torch.cat([-logits, logits], dim=1)
    return logits.gather(1, targets[:, None])[:, 0]


def _agreement(trained: NDArray[Any], untrained: NDArray[Any], where: NDArray[Any]) -> dict[str, Any]:
    """How similar the maps of the trained and the untrained network are, as rank correlations (Adebayo et al. 2018).

    `looks`: of the magnitudes over the whole image, which is how similar they look; high if both mostly show the input.
    `says`: of the signed values at `where`, which is how similar their statements are.
    """
    looks = [rank_correlation(np.abs(a), np.abs(b)) for a, b in zip(trained, untrained, strict=True)]
    says = [rank_correlation(a[mask], b[mask]) for a, b, mask in zip(trained, untrained, where, strict=True)]
    return {"looks": _mean(looks), "says": _mean(says), "looks_each": looks, "says_each": says}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


# ---------------------------------------------------------------- pictures


def _draw_maps(subject: Subject, methods: dict[str, list[NDArray[Any]]], figures: dict[str, Any]) -> bytes:
    """A PNG with a column per sample: the image, then for each method the map of the trained and of the untrained
    network. `methods`: name -> both (N, H, W)."""
    N = len(figures["samples"])
    rows = 1 + 2 * len(methods)
    longest = max(map(len, figures["classes"] + (figures["labels"] or [])))
    column = 0.82 if longest <= 2 else 1.1 if longest <= 8 else 1.4  # inches
    figure = _draw.new_figure(column * N + 1.9, 0.5 + column * _draw.aspect_ratio(subject) * rows)
    # colour bars have a column of their own, so that images and maps stay in line
    places = figure.add_gridspec(rows, N + 1, width_ratios=[*N * [1], BAR])
    table = np.array([[figure.add_subplot(places[row, n]) for n in range(N)] for row in range(rows)])
    _label(table[0], "image")
    for n, axes in enumerate(table[0]):
        _draw.hide_axes(axes).imshow(_draw.sample_image(subject.images[n]), cmap="gray", vmin=0, vmax=1)
        _title(axes, figures, n)
    for m, (name, both) in enumerate(methods.items()):
        pair = table[1 + 2 * m : 3 + 2 * m]
        signed = name != "Grad-CAM"
        for row, maps, label in zip(pair, both, (name, "untrained\nnetwork"), strict=True):
            _label(row, label)
            for axes, values, image in zip(row, maps, subject.images, strict=False):
                _draw_map(_draw.hide_axes(axes), values, image, signed)
        label = "effect on\nthe logit" if signed else "evidence"
        room = figure.add_subplot(places[1 + 2 * m : 3 + 2 * m, N])
        _draw.relative_bar(figure, pair.ravel().tolist(), label, signed=signed, room=room)
    return _draw.to_png(figure)


def _draw_map(axes: Any, values: NDArray[Any], image: NDArray[Any], signed: bool) -> None:
    """One map on its own colour scale."""
    if signed:
        limit = float(np.quantile(np.abs(values), 0.995)) or None
        _draw.show(axes, values, signed=True, limit=limit)
        return
    _draw.draw_heatmap(axes, values, image)
    if not values.any():
        axes.text(0.5, 0.5, BLANK, transform=axes.transAxes, ha="center", va="center", color="white", fontsize=6)


def _title(axes: Any, figures: dict[str, Any], n: int) -> None:
    """The name of the sample, its true and its predicted class. A mistake has a colour, a cross and a frame."""
    predicted = _draw.shorten(figures["classes"][n])
    lines = [_draw.shorten(figures["samples"][n], 14, tail=True)]
    is_mistake = _is_mistake(figures, n)
    if figures["labels"]:
        lines.append(f"true {_draw.shorten(figures['labels'][n])}")
    lines.append(f"{'✗ ' if is_mistake else ''}pred. {predicted}")
    axes.set_title("\n".join(lines), fontsize=8, color=_draw.MISTAKE if is_mistake else _draw.INK)
    if is_mistake:
        axes.spines[:].set(visible=True, color=_draw.MISTAKE, linewidth=2)


def _is_mistake(figures: dict[str, Any], n: int) -> bool:
    return bool(figures["labels"]) and figures["labels"][n] != figures["classes"][n]


def _label(row: NDArray[Any], name: str) -> None:
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")


def _caption(subject: Subject, figures: dict[str, Any]) -> str:
    agreement = figures["integrated_gradients"]
    error = figures["completeness_error"]
    smallest = min(map(abs, figures["rise"]))
    reason = f" (the smallest difference is only {smallest:.2g})" if error >= MAX_ERROR else ""
    sentences = [
        "Integrated gradients from a black image: the contribution of each pixel to the logit of the predicted class; "
        "black pixels contribute nothing.",
        f"The contributions sum to the difference of the logits within {100 * error:.2g} % in "
        f"{max(figures['steps']):,} steps{reason}.",
        f"Rank correlation with the untrained network: {_number(agreement['looks'])} for the magnitudes, mostly "
        f"because both show where the image is not black, and {_number(agreement['says'])} for the signed values "
        "there.",
    ]
    if "occlusion" in figures:
        height, width = (windows[0].stop for windows in map(occlusion_windows, subject.spec.shape[1:]))
        sentences.append(
            f"Occlusion: by how much the logit drops when a window of {height}×{width} pixels in the mean colour "
            "covers the pixel; dark pixels can count, too; rank correlation "
            f"{_number(figures['occlusion']['says'])}."
        )
    if "grad_cam" in figures:
        sentences.append(
            "Grad-CAM: the regions whose feature maps in the last stage raise the logit, bright for the strongest; "
            f"rank correlation {_number(figures['grad_cam']['says'])}."
        )
        if any(map(any, figures["grad_cam"]["blank"])):
            sentences.append(
                '"No positive evidence": no region raises the logit, and Grad-CAM omits those that lower it.'
            )
    if any(_is_mistake(figures, n) for n in range(len(figures["samples"]))):
        sentences.append("A frame and a cross mark a misclassified sample.")
    return " ".join([*sentences, "Each map has its own colour scale, up to its own largest magnitude."])


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _draw_features(subject: Subject, trained: Attributions, untrained: Attributions) -> Picture:
    strength, control = (np.abs(attributions.values).mean(0) for attributions in (trained, untrained))
    order = np.argsort(-strength, kind="stable")[: _draw.MAX_BARS]
    series = {"trained": strength[order] / strength.sum(), "untrained": control[order] / control.sum()}
    figure = _draw.bar_chart([subject.features[n] for n in order], series, "share of all attributions")
    which = f"; the {len(order)} largest of {len(strength)} features" if len(order) < len(strength) else ""
    caption = (
        f"The mean magnitude of the integrated gradients of each feature over {len(trained.values)} samples, from the "
        f"mean of the training data{which}."
    )
    return Picture("saliency", caption, _draw.to_png(figure))
