"""Photographs of more than 16 megapixels: JPEGs are decoded smaller, for others dataset.max_pixels is the cure."""

import io
from pathlib import Path

import numpy as np
import pytest
from pictures import save
from PIL import Image
from pydantic import ValidationError

from nnx import datasets
from nnx.datasets import _decode, folder
from nnx.errors import DataError
from nnx.preprocessing import images
from nnx.preprocessing.spec import Spec


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / ".cache"))


def photograph(width=5000, height=3400, **options):
    """A JPEG of a smooth picture: red grows to the right, green downwards."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, :, 0] = np.linspace(0, 255, width)
    picture[:, :, 1] = np.linspace(0, 255, height)[:, None]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def load(path, **options):
    return folder.load(folder.Config(path=str(path), **options), Path("unused"))


@pytest.fixture(scope="module")
def large():
    return photograph()


def folder_of(path, data, ending="jpg"):
    for n in range(8):
        file = path / "ab"[n % 2] / f"{n}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_jpeg_is_decoded_at_half_its_size(large, progressive):
    data = photograph(progressive=True) if progressive else large
    pixels = images.decode(data, reduce=True)
    assert pixels.shape == (1700, 2500, 3)
    whole = images.decode(data, max_pixels=20_000_000)
    assert whole.shape == (3400, 5000, 3)
    small, expected = (images.to_size(image, 32, 32, "stretch").astype(int) for image in (pixels, whole))
    assert abs(small - expected).max() <= 2


@pytest.mark.parametrize(("max_pixels", "shape"), [(10**6, (425, 625)), (10**5, None), (17 * 10**6, (3400, 5000))])
def test_it_is_decoded_as_large_as_is_allowed(large, max_pixels, shape):
    if shape:
        assert images.decode(large, reduce=True, max_pixels=max_pixels).shape[:2] == shape
    else:  # an eighth has 265,625 pixels
        with pytest.raises(DataError, match=r"has 5,000 x 3,400 pixels, more than 0\.1 megapixels"):
            images.decode(large, reduce=True, max_pixels=max_pixels)


def test_the_exif_orientation_is_applied_to_what_is_decoded_smaller():
    exif = Image.Exif()
    exif[0x112] = 6
    pixels = images.decode(photograph(exif=exif.tobytes()), reduce=True)
    assert pixels.shape == (2500, 1700, 3)
    assert pixels[0, -1].tolist() == pytest.approx([0, 0, 0], abs=4), "the top left corner, now at the top right"


def test_a_jpeg_that_would_take_much_memory_is_refused():
    image = Image.new("L", (10_000, 6000))
    for options, decoded in (({}, True), ({"progressive": True}, False)):
        file = io.BytesIO()
        image.save(file, "JPEG", **options)
        if decoded:
            assert images.decode(file.getvalue(), reduce=True).shape == (3000, 5000, 1)
        else:
            with pytest.raises(DataError, match=r"has 10,000 x 6,000 pixels, more than 16 megapixels; save a smaller"):
                images.decode(file.getvalue(), reduce=True)
    scan = file.getvalue()
    scan = scan[:-2] + scan[scan.rindex(b"\xff\xda") : -2] * 1000 + scan[-2:]
    with pytest.raises(DataError, match=r"is a JPEG of 1,006 scans; save it as a baseline JPEG"):
        images.decode(scan, reduce=True)


def test_a_large_jpeg_may_have_more_bytes(large):
    assert len(large) < images.MAX_BYTES
    padded = large[:2] + b"".join(b"\xff\xfe\xff\xff" + bytes(65533) for _ in range(170)) + large[2:]
    assert images.decode(padded, reduce=True).shape == (1700, 2500, 3)
    with pytest.raises(DataError, match="is larger than 10 MiB"):
        images.decode(padded)
    with pytest.raises(DataError, match="is larger than 32 MiB"):
        images.decode(padded * 3, reduce=True)


def test_a_folder_of_large_photographs_trains_at_any_size(large, tmp_path):
    path = folder_of(tmp_path / "pics", large)
    source = load(path, size=32, fit="stretch")
    assert source.train.inputs.shape[1:] == (3, 32, 32)
    expected = images.to_size(images.decode(large, max_pixels=20_000_000), 32, 32, "stretch").transpose(2, 0, 1)
    assert abs(np.asarray(source.train.inputs[0]).astype(int) - expected).max() <= 2
    assert load(path, size=32).max_pixels == images.MAX_PIXELS


def test_without_size_or_as_png_the_error_names_the_key(large, tmp_path):
    with pytest.raises(DataError, match=r"a/0.jpg: has 5,000 x 3,400 pixels, more than 16 megapixels; .*max_pixels"):
        load(folder_of(tmp_path / "pics", large))
    file = io.BytesIO()
    Image.new("L", (5000, 3400), 7).save(file, "PNG")
    path = folder_of(tmp_path / "png", file.getvalue(), "png")
    cure = "save a smaller image, or train with a higher dataset.max_pixels"
    with pytest.raises(DataError, match=f"a/0.png: has 5,000 x 3,400 pixels, more than 16 megapixels; {cure}"):
        load(path, size=16)
    source = load(path, size=16, max_pixels=17_000_000)
    assert (np.asarray(source.train.inputs[0]) == 7).all()
    spec = datasets.load(folder.Config(path=str(path), size=16, max_pixels=17_000_000), seed=0).spec
    assert spec.max_pixels == 17_000_000
    assert Spec.from_dict(spec.to_dict()) == spec
    assert "max_pixels" in spec.to_dict()


@pytest.mark.parametrize("pixels", [0, -1, 10**9, 1.5, "many"])
def test_a_limit_that_is_none(pixels):
    with pytest.raises(ValidationError):
        folder.Config(path="x", max_pixels=pixels)


def test_the_limit_reaches_the_decoder(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((10, 10), np.uint8))
    options = _decode.DecodeOptions((10, 10), None, 1, max_pixels=99)
    with pytest.raises(DataError, match="has 10 x 10 pixels"):
        _decode.decode(str(path), options)
    assert _decode.decode(str(path), options._replace(max_pixels=100)).pixels.shape == (10, 10, 1)


def test_the_cure_of_a_file_of_too_many_bytes_works(tmp_path):
    """An uncompressed photograph is refused for its bytes; max_pixels allows more of both."""
    path = tmp_path / "photograph.bmp"
    Image.fromarray(np.zeros((2000, 2000, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match="is larger than 10 MiB; save a smaller image, or train with a higher dataset"):
        images.decode(path)
    assert images.decode(path, max_pixels=20_000_000).shape == (2000, 2000, 3)
