"""The readers of MNIST's format: every relative, every way that a file can be wrong, and no torch to read them."""

import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_idx import MNIST, idx, tiny

from nnx import datasets
from nnx.datasets import _idx, emnist, fashion_mnist, kmnist, mnist, qmnist
from nnx.errors import DataError, MachineError


@pytest.mark.parametrize(("module", "folder"), [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST"), (kmnist, "KMNIST")])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_like(tmp_path, write_idx, module, folder, packed):
    train, test = tiny(40), tiny(20, seed=1)
    for name, array in zip(MNIST, (*train, *test), strict=True):
        write_idx(tmp_path / folder / "raw" / name, array, packed=packed)
    source = module.load(module.Config(), tmp_path)
    assert len(source.classes) == 10
    for split, (images, labels) in ((source.train, train), (source.test(), test)):
        assert split.inputs.shape == (len(labels), 1, 6, 5)
        assert split.inputs.dtype == np.uint8
        assert split.inputs.flags.c_contiguous
        assert split.inputs.flags.writeable  # torch.from_numpy warns otherwise
        assert (split.inputs[:, 0] == images).all()
        assert split.labels.dtype == np.int64
        assert (split.labels == labels).all()


@pytest.mark.parametrize(
    ("split", "classes", "first", "last"),
    [
        ("byclass", 62, "0", "z"),
        ("bymerge", 47, "0", "t"),
        ("balanced", 47, "0", "t"),
        ("letters", 26, "a", "z"),
        ("digits", 10, "0", "9"),
        ("mnist", 10, "0", "9"),
    ],
)
def test_emnist(tmp_path, write_idx, split, classes, first, last):
    images, labels = tiny(2 * classes, classes, first_label=1 if split == "letters" else 0)
    for half in ("train", "test"):
        write_idx(
            tmp_path / f"EMNIST/raw/emnist-{split}-{half}-images-idx3-ubyte", images.swapaxes(1, 2)
        )  # as its files hold them
        write_idx(tmp_path / f"EMNIST/raw/emnist-{split}-{half}-labels-idx1-ubyte", labels)
    source = emnist.load(emnist.Config(split=split), tmp_path)
    assert (len(source.classes), source.classes[0], source.classes[-1]) == (classes, first, last)
    for part in (source.train, source.test()):
        assert (part.inputs[:, 0] == images).all()
        assert part.inputs.flags.c_contiguous
        assert (part.labels == np.arange(2 * classes) % classes).all()


def test_qmnist(tmp_path, write_idx):
    images, labels = tiny(20)
    columns = np.random.default_rng(0).integers(-(2**31), 2**31, (20, 8)).astype(np.int32)
    columns[:, 0] = labels
    for half in ("train", "test"):
        write_idx(tmp_path / f"QMNIST/raw/qmnist-{half}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"QMNIST/raw/qmnist-{half}-labels-idx2-int", columns)
    source = qmnist.load(qmnist.Config(), tmp_path)
    for part in (source.train, source.test()):
        assert (part.inputs[:, 0] == images).all()
        assert (part.labels == labels).all()


def test_torchvision_is_not_imported_for_files_that_are_there(tiny_mnist):
    code = (
        "import sys; from nnx import datasets; from nnx.datasets import mnist, digits\n"
        "datasets.load(mnist.Config(), seed=0).test(); datasets.load(digits.Config(), seed=0).test()\n"
        "print(sorted({'torchvision', 'sklearn', 'scipy', 'rich'} & set(sys.modules)))"
    )
    environment = {**os.environ, "NNX_DATA_DIR": str(tiny_mnist)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout == "[]\n"


def test_the_test_data_is_not_opened_before_it_is_asked_for(tiny_mnist):
    broken = tiny_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    broken.write_bytes(b"not opened yet")
    dataset = datasets.load(mnist.Config(), seed=0, data_dir=str(tiny_mnist))
    with pytest.raises(DataError) as caught:
        dataset.test()
    assert str(broken) in str(caught.value)


def test_test_images_of_another_size(tiny_mnist, write_idx):
    write_idx(tiny_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte", np.zeros((20, 7, 7), np.uint8))
    dataset = datasets.load(mnist.Config(), seed=0, data_dir=str(tiny_mnist))
    with pytest.raises(
        DataError,
        match=r"dataset mnist in .*has inputs of shape \(1, 7, 7\), but the training inputs have shape \(1, 6, 5\)",
    ):
        dataset.test()


# ---------------------------------------------------------------- broken files

WHOLE = idx(tiny(20)[0])
BROKEN = {
    "empty": (b"", "not an IDX file of 3-dimensional uint8"),
    "three bytes": (WHOLE[:3], "not an IDX file"),
    "a web page": (
        b"<!DOCTYPE html><html>",
        "not an IDX file of 3-dimensional uint8 data; it starts with the bytes 3c 21 44 4f",
    ),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not an IDX file"),
    "labels": (idx(tiny(20)[1]), "it starts with the bytes 00 00 08 01"),
    "other type": (idx(np.zeros((2, 3, 3), np.float32)), "it starts with the bytes 00 00 0d 03"),
    "cut in the header": (WHOLE[:10], "cut short: only 10 bytes"),
    "cut": (WHOLE[:-1], "cut short: its header declares 600 bytes"),
    "long": (WHOLE + b"\0", "too long: data follows the 600 bytes"),
    "no images": (WHOLE[:4] + bytes(4) + WHOLE[8:16], "empty: its header declares 0 x 6 x 5 values"),
    "no pixels": (idx(np.zeros((20, 6, 0), np.uint8)), "empty: its header declares 20 x 6 x 0 values"),
    "a terabyte promised": (
        WHOLE[:4] + b"\0\0\x10\0" * 2 + b"\0\1\0\0" + WHOLE[16:],
        "cut short: its header declares 1,099,511,627,776",
    ),
    "a vast promise": (WHOLE[:4] + b"\xff" * 12 + WHOLE[16:], "cut short: its header declares 79,228,162,"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("content", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_images(tiny_mnist, content, words, packed):
    path = tiny_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.unlink()
    path = path.with_name(f"{path.name}.gz") if packed else path
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=words) as caught:
        mnist.load(mnist.Config(), tiny_mnist)
    assert "delete it and run again" in str(caught.value)
    assert str(path) in str(caught.value)


def test_broken_gzip(tiny_mnist):
    path = tiny_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.unlink()
    packed = path.with_name(f"{path.name}.gz")
    whole = gzip.compress(WHOLE)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (b"not gzip at all", whole[: len(whole) // 2], whole[:-4], bytes(flipped)):
        packed.write_bytes(content)
        with pytest.raises(DataError, match="delete it and run again to download it again") as caught:
            mnist.load(mnist.Config(), tiny_mnist)
        assert str(packed) in str(caught.value)


def test_a_gzip_bomb_is_not_inflated(tiny_mnist):
    path = tiny_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.unlink()
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(WHOLE) + gzip.compress(bytes(1 << 20)) * 10_000)  # 10 GB, packed to 10 MB
    with pytest.raises(DataError, match="too long: data follows the 600 bytes"):
        mnist.load(mnist.Config(), tiny_mnist)


def test_more_than_the_memory_holds(tiny_mnist, monkeypatch):
    def refuse(size, dtype):
        raise MemoryError(f"Unable to allocate {size} bytes")

    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(
        MachineError,
        match=r"train-images-idx3-ubyte: can't be read \(Unable to allocate 1200 bytes\); free some memory",
    ):
        mnist.load(mnist.Config(), tiny_mnist)


def test_every_single_cut_is_noticed(tmp_path):
    path = tmp_path / "labels"
    whole = idx(np.arange(5, dtype=np.uint8))
    path.write_bytes(whole)
    assert _idx.read(path, np.uint8).tolist() == [0, 1, 2, 3, 4]  # the control
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="labels"):
            _idx.read(path, np.uint8)


# ---------------------------------------------------------------- pinned files


@pytest.fixture
def pinned(tiny_mnist, monkeypatch) -> Path:
    """The folder of the tiny MNIST, whose files are pinned as those of the real one are."""
    raw = tiny_mnist / "MNIST" / "raw"
    whole = {name: (raw / name).read_bytes() for name in MNIST}
    monkeypatch.setattr(
        mnist, "PINNED", {name: _idx.Pin(len(file), hashlib.sha256(file).hexdigest()) for name, file in whole.items()}
    )
    return raw


def damage(path: Path, *, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def load_pinned(raw: Path) -> datasets.Dataset:
    return datasets.load(mnist.Config(), seed=0, data_dir=str(raw.parent.parent))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", MNIST[:2])
def test_damaged_training_files(pinned, name, packed):
    load_pinned(pinned)  # the control
    path = pinned / name
    damage(path)
    if packed:
        path = path.with_name(f"{name}.gz")
        path.write_bytes(gzip.compress((pinned / name).read_bytes()))
        (pinned / name).unlink()
    with pytest.raises(DataError) as caught:
        load_pinned(pinned)
    assert str(caught.value).startswith(f"{path}: damaged: the SHA-256 of its content is ")
    assert str(caught.value).endswith(f"not {mnist.PINNED[name].sha256}; delete it and run again to download it again")


@pytest.mark.parametrize("name", MNIST[2:])
def test_damaged_test_files_are_noticed_when_they_are_opened(pinned, name):
    dataset = load_pinned(pinned)
    assert len(dataset.test()) == 20  # the control
    damage(pinned / name)
    with pytest.raises(DataError, match=f"{name}: damaged"):
        dataset.test()


def test_images_of_another_shape_but_as_many_bytes(pinned, write_idx):
    write_idx(pinned / MNIST[0], tiny(40)[0].reshape(40, 5, 6))
    with pytest.raises(DataError, match=f"{MNIST[0]}: damaged"):
        load_pinned(pinned)


def test_files_of_another_length_are_the_users_own(pinned, write_idx):
    images, labels = tiny(30)
    write_idx(pinned / MNIST[0], images)
    write_idx(pinned / MNIST[1], labels)
    assert len(load_pinned(pinned).train) == 27


@pytest.mark.mnist
@pytest.mark.parametrize("name", MNIST[1::2])
def test_damage_to_the_real_mnist(real_mnist, tmp_path, name):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for other in MNIST:
        (raw / other).symlink_to(Path(real_mnist) / "MNIST" / "raw" / other)
    load_pinned(raw).test()  # the control
    content = (raw / name).read_bytes()
    (raw / name).unlink()
    (raw / name).write_bytes(content)
    damage(raw / name, at=1000)  # one label becomes its neighbour's, in range as before
    with pytest.raises(DataError, match=f"{name}: damaged"):
        load_pinned(raw).test()


# ---------------------------------------------------------------- labels and permissions


@pytest.mark.parametrize(
    ("count", "value", "words"), [(39, 0, "40 inputs but 39 labels"), (40, 10, "labels from 0 to 10")]
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_wrong_labels(tiny_mnist, write_idx, count, value, words, packed):
    path = tiny_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels = tiny(40)[1][:count]
    labels[5] = value
    path.unlink()
    write_idx(path, labels, packed=packed)
    path = path.with_name(f"{path.name}.gz") if packed else path
    with pytest.raises(DataError, match=words) as caught:
        mnist.load(mnist.Config(), tiny_mnist)
    assert str(path) in str(caught.value)
    assert "run again" in str(caught.value)


def test_unreadable(tiny_mnist, monkeypatch):
    def refuse(path, mode="r"):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # rather than chmod, which root may ignore
    with pytest.raises(
        MachineError,
        match=r"train-images-idx3-ubyte: can't be read \(Permission denied\); check the file's permissions",
    ):
        mnist.load(mnist.Config(), tiny_mnist)
