"""Saliency: which pixels or features spoke for the answer, beside the same picture of a network that has learned
nothing."""

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
STEPS, MOST_STEPS = 64, 8192  # on the way from the baseline
COMPLETE = 0.01  # of the difference of the logits may be missing
READING = {
    True: "Red pixels spoke for the class that the network says, blue ones against it; believe a picture only as far as it differs from "
    "that of the untrained network below it, which knows nothing.",
    False: "A long bar is a feature on which the answers turned; believe it only as far as it differs from the bar of the untrained "
    "network, which knows nothing.",
}


def applies(checkpoint: Checkpoint) -> str | None:
    return (
        None
        if importlib.util.find_spec("captum")
        else "needs captum, which is not installed; pip install 'nnx[explain]'"
    )


@dataclass(frozen=True)
class Credits:
    """Of N samples, what each number of the input has added to the logit of its class (N, ...), in how many steps (N,),
    how much of the logit's difference is missing, as a share of it (N,), and that difference (N,)."""

    values: NDArray[np.float32]
    steps: NDArray[np.int64]
    missing: NDArray[np.float64]
    rise: NDArray[np.float64]


def explain(subject: Subject) -> Explanation:
    x = subject.inputs()[:SAMPLES]
    targets = torch.from_numpy(subject.predicted[:SAMPLES]).to(x.device)
    black = baseline(subject)
    ours = integrated_gradients(subject.network, x, targets, black)
    control = credits(subject.untrained, x, targets, black, ours.steps)
    differs = (x != black).cpu().numpy()  # elsewhere both are zero by definition
    figures: dict[str, Any] = {
        "baseline": "black" if subject.spec.is_image else "the mean of the training data",
        "samples": subject.names[:SAMPLES],
        "classes": [subject.classes[k] for k in targets.tolist()],
        "steps": ours.steps.tolist(),
        "rise": ours.rise.tolist(),
        "completeness_error": float(ours.missing.max()),
        "integrated_gradients": _agreement(ours.values, control.values, differs),
    }
    if not subject.spec.is_image:
        return Explanation(READING[False], (_features(subject, ours, control),), figures)
    lines = [("integrated\ngradients", ours.values), ("the same,\nuntrained", control.values)]
    cams: list[tuple[str, NDArray[Any]]] = []
    if any(output.ndim == 4 for output in _layer_outputs.layer_outputs(subject.network, x[:1]).values()):
        seen, unlearned = (grad_cam(network, x, targets) for network in (subject.network, subject.untrained))
        cams = [("Grad-CAM", seen), ("the same,\nuntrained", unlearned)]
        figures["grad_cam"] = _agreement(seen, unlearned, np.ones_like(seen, dtype=bool))
    return Explanation(READING[True], (_picture(subject, lines, cams, figures),), figures)


def baseline(subject: Subject) -> Tensor:
    """(1, ...) what an input is compared with: a black image, or the mean of the training data, normalised."""
    if subject.spec.is_image:
        return subject.inputs(np.zeros((1, *subject.spec.shape), np.uint8))
    return torch.zeros(1, *subject.spec.shape, device=subject.device)


def integrated_gradients(network: nn.Module, x: Tensor, targets: Tensor, black: Tensor) -> Credits:
    """`credits` that add up to the difference of the logits, but for 1 % of it: in 64 steps, doubled up to 8,192 for
    samples in need."""
    found = credits(network, x, targets, black, np.full(len(x), STEPS))
    while len(short := np.flatnonzero((found.missing >= COMPLETE) & (found.steps < MOST_STEPS))):
        finer = credits(network, x[short], targets[short], black, found.steps[short] * 2)
        found.values[short], found.steps[short], found.missing[short] = finer.values, finer.steps, finer.missing
    return found


def credits(network: nn.Module, x: Tensor, targets: Tensor, black: Tensor, steps: NDArray[np.int64]) -> Credits:
    """The gradient of each sample's logit of its class, averaged over so many places on the way from `black` to `x`,
    times the difference (Sundararajan et al. 2017)."""
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(lambda inputs, k: _logit(network, inputs, k))
    values, at_once = torch.zeros_like(x), max(len(x), _layer_outputs.batch_size_for(x))
    with torch.no_grad():
        rise = (_logit(network, x, targets) - _logit(network, black.expand_as(x), targets)).double()
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no gradient of an RNN in evaluation
        for count in np.unique(steps):
            some = torch.from_numpy(np.flatnonzero(steps == count)).to(x.device)
            values[some] = method.attribute(
                x[some],
                black,
                additional_forward_args=targets[some],
                n_steps=int(count),
                method="riemann_middle",
                internal_batch_size=at_once,
            ).to(values.dtype)
    missing = (values.double().flatten(1).sum(1) - rise).abs() / rise.abs().clamp_min(1e-12)
    return Credits(values.detach().float().cpu().numpy(), steps.copy(), missing.cpu().numpy(), rise.cpu().numpy())


def grad_cam(network: nn.Module, x: Tensor, targets: Tensor) -> NDArray[Any]:
    """(N, H, W): where the last stage's maps speak for the class: each weighted by the mean gradient of the class's
    logit, summed, what is below zero left out (Selvaraju et al. 2017), and enlarged to the image."""
    from captum.attr import LayerGradCam

    maps = [name for name, output in _layer_outputs.layer_outputs(network, x[:1]).items() if output.ndim == 4]
    stage = _layer_outputs.layer_modules(network, x[:1])[maps[-1]]
    found: Tensor = LayerGradCam(lambda inputs, k: _logit(network, inputs, k), stage).attribute(
        x, additional_forward_args=targets, relu_attributions=True
    )
    return F.interpolate(found.detach(), x.shape[2:], mode="bilinear", align_corners=False)[:, 0].cpu().numpy()


def alike(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Spearman's rank correlation of two pictures, or None where one of them is all the same."""
    from scipy.stats import spearmanr

    one, other = one.ravel(), other.ravel()
    return float(spearmanr(one, other).statistic) if len(one) > 2 and np.ptp(one) and np.ptp(other) else None


def _logit(network: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """(N,) each sample's logit of the class; where there is one logit for two classes, it speaks for the second and
    against the first."""
    logits: Tensor = network(x)
    if logits.shape[1] == 1:
        logits = torch.cat([-logits, logits], dim=1)
    return logits.gather(1, targets[:, None])[:, 0]


def _agreement(ours: NDArray[Any], control: NDArray[Any], where: NDArray[Any]) -> dict[str, Any]:
    """How alike the pictures of the trained and of the untrained network are, as rank correlations (Adebayo et al.
    2018).

    `looks`: of magnitudes over the whole picture, which is how alike they look; high where both show little but the
    input. `says`: of the signed values where there is something to say, which is how alike they mean it.
    """
    looks = [alike(np.abs(a), np.abs(b)) for a, b in zip(ours, control, strict=True)]
    says = [alike(a[mask], b[mask]) for a, b, mask in zip(ours, control, where, strict=True)]
    return {"looks": _mean(looks), "says": _mean(says), "looks_each": looks, "says_each": says}


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


# ---------------------------------------------------------------- pictures


def _picture(
    subject: Subject,
    signed: list[tuple[str, NDArray[Any]]],
    warm: list[tuple[str, NDArray[Any]]],
    figures: dict[str, Any],
) -> Picture:
    """A column a sample; below each the credits of both networks, then Grad-CAM of both."""
    N = len(figures["samples"])
    figure = _draw.new_figure(
        max(3.0, 0.8 * N + 0.8), 0.3 + 0.82 * _draw.aspect_ratio(subject) * (1 + len(signed) + len(warm))
    )
    table = figure.subplots(1 + len(signed) + len(warm), N, squeeze=False)
    for n, axes in enumerate(table[0]):
        _draw.hide_axes(axes).imshow(_draw.sample_image(subject.images[n]), cmap="gray", vmin=0, vmax=1)
        axes.set_title(
            f"{_draw.shorten(subject.names[n], 10, tail=True)}\nsays {_draw.shorten(figures['classes'][n], 6)}",
            fontsize=8,
        )
    for line, (name, values) in zip(table[1:], [*signed, *warm], strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for n, axes in enumerate(line):
            if values.ndim == 4:
                flat = values[n].sum(0)
                _draw.show(
                    _draw.hide_axes(axes), flat, signed=True, limit=float(np.quantile(np.abs(flat), 0.995)) or None
                )
            else:
                _draw.draw_heatmap(_draw.hide_axes(axes), values[n], subject.images[n])
    says, looks = (figures["integrated_gradients"][key] for key in ("says", "looks"))
    caption = (
        "Integrated gradients from a black image: each pixel's share in the logit, so a black one has none. They add up to the "
        f"logit's difference to {100 * figures['completeness_error']:.2g} % in {max(figures['steps']):,} steps{_hardly(figures)}. Their "
        f"magnitudes look like the untrained network's (rank correlation {_number(looks)}), mostly because both show what is not "
        f"black; what they say of that agrees to {_number(says)}."
    )
    if warm:
        caption += f" Grad-CAM, of the last stage, agrees to {_number(figures['grad_cam']['says'])}."
        caption += (
            ""
            if all(values.any((1, 2)).all() for _, values in warm)
            else " Where it is dark all over, no map speaks for the class."
        )
    caption += " Each picture has its own scale."
    return Picture("saliency", caption, _draw.to_png(figure))


def _hardly(figures: dict[str, Any]) -> str:
    """Why more than a hundredth of the difference may be missing."""
    least = min(map(abs, figures["rise"]))
    return (
        f", as the least of these differences is only {least:.2g}" if figures["completeness_error"] >= COMPLETE else ""
    )


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.2f}"


def _features(subject: Subject, ours: Credits, control: Credits) -> Picture:
    credit, unlearned = (np.abs(found.values).mean(0) for found in (ours, control))
    order = np.argsort(-credit, kind="stable")[: _draw.MAX_BARS]
    series = {"trained": credit[order] / credit.sum(), "untrained": unlearned[order] / unlearned.sum()}
    figure = _draw.bar_chart([subject.features[n] for n in order], series, "share in the answers")
    few = f", the {len(order)} largest of {len(credit)}" if len(order) < len(credit) else ""
    caption = f"Mean magnitude of integrated gradients from the mean of the training data, over {len(ours.values)} samples{few}."
    return Picture("saliency", caption, _draw.to_png(figure))
