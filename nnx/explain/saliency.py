"""Saliency: which pixels or features the prediction depends on, beside an untrained network as control."""

import importlib.util
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

SAMPLES = 10
STEPS, MAX_STEPS = 64, 8192  # of the integral from the baseline to the input
MAX_ERROR = 0.01  # share of the difference of the logits that the attributions may miss
READING_IMAGES = (
    "Red pixels raise the logit of the predicted class, blue pixels lower it. Compare each map with that of the "
    "untrained network below it, which has learned nothing: trust only what differs."
)
READING_ROWS = (
    "A long bar is a feature on which the predictions depend strongly. Compare it with the bar of the untrained "
    "network, which has learned nothing: trust only what differs."
)


def applies(checkpoint: Checkpoint) -> str | None:
    if importlib.util.find_spec("captum"):
        return None
    return "needs captum, which is not installed; run: pip install 'nnx[explain]'"


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
        "steps": trained.steps.tolist(),
        "rise": trained.difference.tolist(),
        "completeness_error": float(trained.missing.max()),
        "integrated_gradients": _agreement(trained.values, untrained.values, differs),
    }
    if not subject.spec.is_image:
        return Explanation(READING_ROWS, (_draw_features(subject, trained, untrained),), figures)
    cams: list[NDArray[Any]] = []
    if any(output.ndim == 4 for output in _layer_outputs.layer_outputs(subject.network, x[:1]).values()):
        cams = [grad_cam(network, x, targets) for network in (subject.network, subject.untrained)]
        figures["grad_cam"] = _agreement(cams[0], cams[1], np.ones_like(cams[0], dtype=bool))
    png = _draw_maps(subject, [trained.values, untrained.values], cams, figures)
    return Explanation(READING_IMAGES, (Picture("saliency", _caption(figures, cams), png),), figures)


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
        difference = (_target_logit(network, x, targets) - before).double()
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no gradient of an RNN in evaluation mode
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
    missing = (values.double().flatten(1).sum(1) - difference).abs() / difference.abs().clamp_min(1e-12)
    return Attributions(
        values.detach().float().cpu().numpy(), steps.copy(), missing.cpu().numpy(), difference.cpu().numpy()
    )


def grad_cam(network: nn.Module, x: Tensor, targets: Tensor) -> NDArray[Any]:
    """(N, H, W): the feature maps of the last stage, weighted by the mean gradient of the target logit, summed, clipped
    at zero (Selvaraju et al. 2017), and enlarged to the image."""
    from captum.attr import LayerGradCam

    stages = [name for name, output in _layer_outputs.layer_outputs(network, x[:1]).items() if output.ndim == 4]
    stage = _layer_outputs.layer_modules(network, x[:1])[stages[-1]]
    method = LayerGradCam(lambda inputs, k: _target_logit(network, inputs, k), stage)
    maps: Tensor = method.attribute(x, additional_forward_args=targets, relu_attributions=True)
    return F.interpolate(maps.detach(), x.shape[2:], mode="bilinear", align_corners=False)[:, 0].cpu().numpy()


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


def _draw_maps(
    subject: Subject, attributions: list[NDArray[Any]], cams: list[NDArray[Any]], figures: dict[str, Any]
) -> bytes:
    """A PNG with a column per sample: the image, the attributions of both networks, then their Grad-CAM."""
    N = len(figures["samples"])
    rows = 1 + len(attributions) + len(cams)
    figure = _draw.new_figure(max(3.0, 0.8 * N + 0.8), 0.3 + 0.82 * _draw.aspect_ratio(subject) * rows)
    table = figure.subplots(rows, N, squeeze=False)
    _label(table[0], "image and\nprediction")
    for n, axes in enumerate(table[0]):
        _draw.hide_axes(axes).imshow(_draw.sample_image(subject.images[n]), cmap="gray", vmin=0, vmax=1)
        name = _draw.shorten(subject.names[n], 10, tail=True)
        axes.set_title(f"{name}\n→ {_draw.shorten(figures['classes'][n], 8)}", fontsize=8)
    for row, values, name in zip(
        table[1:], attributions, ("integrated\ngradients", "untrained\nnetwork"), strict=False
    ):
        _label(row, name)
        for n, axes in enumerate(row):
            flat = values[n].sum(0)
            limit = float(np.quantile(np.abs(flat), 0.995)) or None
            _draw.show(_draw.hide_axes(axes), flat, signed=True, limit=limit)
    for row, maps, name in zip(table[1 + len(attributions) :], cams, ("Grad-CAM", "untrained\nnetwork"), strict=False):
        _label(row, name)
        for n, axes in enumerate(row):
            _draw.draw_heatmap(_draw.hide_axes(axes), maps[n], subject.images[n])
    return _draw.to_png(figure)


def _label(row: NDArray[Any], name: str) -> None:
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")


def _caption(figures: dict[str, Any], cams: list[NDArray[Any]]) -> str:
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
    if cams:
        grad_cam_agreement = _number(figures["grad_cam"]["says"])
        sentences.append(
            "Grad-CAM: the regions whose feature maps in the last stage raise the logit, bright for the strongest; "
            "rank "
            f"correlation {grad_cam_agreement}."
        )
        if not all(maps.any((1, 2)).all() for maps in cams):
            sentences.append("A map that is dark all over: no feature map raises the logit.")
    return " ".join([*sentences, "Each map has its own colour scale."])


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
