"""Augmentation compared with torchvision's affine, SciPy's rotation and slicing; the random draws."""

import pytest
import torch
from scipy import ndimage, stats
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from nnx.config import Augment
from nnx.loader.augment import augment, elastic_displacement, mixup, shift_pixels, warp

EACH = [
    {"shift": 2.0},
    {"shift": 1.5},
    {"rotate": 15.0},
    {"scale": 0.2},
    {"shear": 10.0},
    {"elastic": 3.0},
    {"erase": 0.5},
    {"flip": True},
]
ALL = {"shift": 2.0, "rotate": 15.0, "scale": 0.2, "shear": 10.0, "elastic": 3.0, "erase": 0.5, "flip": True}


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def batch(B: int = 6, C: int = 1, H: int = 28, W: int = 28) -> Tensor:
    return torch.rand(B, C, H, W, generator=generator(1))


def warped(images: Tensor, *, shift=(0.0, 0.0), angle=0.0, scale=1.0, shear=0.0) -> Tensor:
    each = torch.ones(len(images))
    return warp(
        images, shift=each[:, None] * torch.tensor(shift), angle=angle * each, scale=scale * each, shear=shear * each
    )


@pytest.mark.parametrize("size", [(28, 28), (20, 33), (33, 20)])
@pytest.mark.parametrize(
    "change",
    [
        {"angle": 30.0},
        {"scale": 1.3},
        {"shear": 20.0},
        {"shift": (3, -2)},
        {"angle": -50.0, "scale": 0.7, "shear": 12.0, "shift": (1, 4)},
    ],
    ids=str,
)
def test_warp_is_torchvisions_affine(size, change):
    images = batch(3, 2, *size)
    known = {"angle": 0.0, "shift": (0, 0), "scale": 1.0, "shear": 0.0} | change
    theirs = affine(
        images,
        known["angle"],
        list(known["shift"]),
        known["scale"],
        [known["shear"], 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    torch.testing.assert_close(warped(images, **change), theirs, atol=1e-4, rtol=0)


def test_warp_uses_the_parameters_of_each_image():
    images = batch(4)
    angle, scale = torch.tensor([0.0, 10, -20, 90]), torch.tensor([1.0, 0.8, 1.2, 1])
    shift, shear = torch.tensor([[0.0, 0], [1, 2], [-3, 0.5], [0, 0]]), torch.tensor([0.0, 5, -9, 0])
    together = warp(images, shift=shift, angle=angle, scale=scale, shear=shear)
    one = [slice(i, i + 1) for i in range(4)]
    alone = [warp(images[i], shift=shift[i], angle=angle[i], scale=scale[i], shear=shear[i]) for i in one]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("size", [(28, 28), (12, 30), (30, 12), (1, 9)])
def test_quarter_turns_move_pixels_whole(size):
    images = batch(2, 1, *size)
    torch.testing.assert_close(warped(images, angle=180.0), images.rot90(2, (2, 3)), atol=1e-4, rtol=0)
    if min(size) % 2 == 0:  # the centres of image and turned image then coincide
        side = min(size)
        rows, columns = (slice((n - side) // 2, (n + side) // 2) for n in size)
        turned, middle = warped(images, angle=90.0)[..., rows, columns], images[..., rows, columns]
        torch.testing.assert_close(turned, middle.rot90(-1, (2, 3)), atol=1e-4, rtol=0)


def test_rotation_is_scipys_with_zeros_outside():
    images = batch(1, 1, 24, 31)
    theirs = ndimage.rotate(
        images[0, 0].numpy(), -25, reshape=False, order=1, mode="grid-constant"
    )  # SciPy turns the other way
    torch.testing.assert_close(warped(images, angle=25.0)[0, 0], torch.from_numpy(theirs), atol=1e-4, rtol=0)


def test_shift_of_whole_pixels_is_exact():
    images = batch(3, 2, 7, 9)
    moved = shift_pixels(images, torch.tensor([[0, 0], [3, 1], [-2, -5]]), limit=5)
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1, :, 1:, 3:], images[1, :, :-1, :-3])
    assert torch.equal(moved[2, :, :-5, :-2], images[2, :, 5:, 2:])
    assert not moved[1, :, :1].any()
    assert not moved[1, :, :, :3].any()
    torch.testing.assert_close(moved[1:2], warped(images[1:2], shift=(3, 1)), atol=1e-5, rtol=0)


def test_whole_shift_alone_reaches_every_offset_evenly():
    dot = torch.zeros(5000, 1, 9, 9)
    dot[:, :, 4, 4] = 1
    moved = augment(dot, Augment(shift=2.0), generator())
    counts = moved.sum((0, 1))
    assert counts[2:7, 2:7].sum() == 5000
    assert stats.chisquare(counts[2:7, 2:7].flatten().numpy()).pvalue > 1e-3


def test_shift_beyond_the_image_blanks_it_and_nothing_breaks():
    assert augment(batch(), Augment(shift=64.0), generator()).shape == batch().shape


def test_flip_is_exact_and_half_of_the_time():
    images = batch(2000, 1, 4, 5)
    flipped = augment(images, Augment(flip=True), generator())
    changed = (flipped != images).flatten(1).any(1)
    assert torch.equal(torch.where(changed[:, None, None, None], images.flip(-1), images), flipped)
    assert 0.45 < changed.float().mean() < 0.55


@pytest.mark.parametrize("size", [(28, 28), (16, 40)])
def test_elastic_displacements_are_smooth_and_have_the_stated_spread(size):
    field = elastic_displacement(torch.empty(3000, 1, *size), 3.0, generator())
    spread = field.std(0)  # of each pixel, so that the rim is seen to move as far as the middle
    assert field.shape == (3000, 2, *size)
    assert 1.35 < spread.min() <= spread.max() < 1.65
    assert field.abs().le(3.0).float().mean() == pytest.approx(0.954, abs=0.01)
    assert field.diff(dim=3).std() < 0.3 * field.std()


def test_a_constant_displacement_is_a_shift():
    images = batch(2, 1, 10, 14)
    still = {"shift": torch.zeros(2, 2), "angle": torch.zeros(2), "scale": torch.ones(2), "shear": torch.zeros(2)}
    constant = torch.tensor([2.0, -1.0])[:, None, None].expand(2, 2, 10, 14)
    torch.testing.assert_close(
        warp(images, **still, displacement=constant), warped(images, shift=(-2, 1)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size", [(28, 28), (14, 60)])
def test_erase_blanks_one_rectangle_with_the_stated_probability_and_area(size):
    erased = augment(torch.ones(4000, 1, *size), Augment(erase=0.3), generator())[:, 0] == 0
    hit = erased[erased.flatten(1).any(1)]
    height, width = hit.any(2).sum(1), hit.any(1).sum(1)
    assert torch.equal(hit.sum((1, 2)), height * width)  # nothing but a rectangle
    assert len(hit) / 4000 == pytest.approx(0.3, abs=0.03)
    area = height * width / (size[0] * size[1])
    assert 0.01 < area.min() <= area.max() < 0.23  # 2 to 20 %, in whole pixels
    assert hit.any(0).all()  # every pixel is reached
    if size == (28, 28):
        aspect = (height / width).log()
        assert aspect.mean().abs() < 0.05
        assert aspect.abs().max() < 1.6


@pytest.mark.parametrize("on", [*EACH, ALL], ids=str)
def test_same_state_same_bits_and_images_differ(on):
    images = batch(1, 2, 12, 17).expand(64, 2, 12, 17)
    once, again, other = (augment(images, Augment(**on), generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len(once.unique(dim=0)) > 1
    assert once.shape == images.shape
    assert not once.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("on", [*EACH, ALL], ids=str)
def test_dtype_and_range_are_kept(on, dtype):
    images = batch(200, 1, 12, 12).to(dtype)
    kept = images.clone()
    changed = augment(images, Augment(**on), generator())
    assert changed.dtype == dtype
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6
    assert torch.equal(images, kept)  # the data set lies behind it


def test_off_draws_no_random_numbers():
    images, state = batch(), generator()
    assert augment(images, Augment(), state) is images
    assert torch.equal(state.get_state(), generator().get_state())


@pytest.mark.parametrize("alpha", [0.3, 1.0, 8.0])
def test_mixup_weight_is_beta(alpha):
    state, targets = generator(), torch.eye(16)
    weights = [
        float(mixup(targets, targets, alpha, state)[1].diagonal().min()) for _ in range(1500)
    ]  # a sample may meet itself: 1
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixup_blends_images_and_targets_alike():
    labels = torch.arange(10)
    targets = torch.eye(10)
    images = labels[:, None, None, None].float().expand(10, 1, 3, 3)
    mixed, blended = mixup(images, targets, 1.0, generator())
    torch.testing.assert_close(blended.sum(1), torch.ones(10))
    torch.testing.assert_close(mixed[:, 0, 0, 0], blended @ labels.float())  # the image says which labels went into it
    assert ((blended > 0).sum(1) > 1).any()
    again = mixup(images, targets, 1.0, generator())
    assert torch.equal(again[0], mixed)
    assert torch.equal(again[1], blended)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 100.0])
def test_mixup_weight_is_finite_at_the_ends(alpha):
    state = generator()
    for _ in range(200):
        _, targets = mixup(torch.zeros(2, 1), torch.eye(2), alpha, state)
        assert targets.isfinite().all()
        assert targets.min() >= 0
