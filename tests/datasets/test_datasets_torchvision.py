"""What goes through torchvision (5 s to import): its readers of CIFAR, SVHN and USPS, and it as a second opinion on
IDX."""

import bz2
import hashlib
import inspect
import pickle  # noqa: TID251 (CIFAR's own format, written here)
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_idx import MNIST, tiny

from nnx import datasets
from nnx.config import registry
from nnx.datasets import cifar10, cifar100, mnist, qmnist, svhn, usps
from nnx.datasets._archives import ARCHIVES
from nnx.errors import DataError

torchvision_datasets = pytest.importorskip("torchvision.datasets")


def load(module, folder: Path) -> datasets.Dataset:
    return datasets.load(module.Config(validation=10), seed=0, data_dir=str(folder))


def training(dataset: datasets.Dataset) -> list[tuple[int, bytes]]:
    """All training samples, in no order."""
    splits = (dataset.train, dataset.validation)
    return sorted(
        (int(label), image.tobytes())
        for split in splits
        for image, label in zip(split.inputs, split.labels, strict=True)
    )


def samples(images, labels) -> list[tuple[int, bytes]]:
    return sorted((int(label), image.tobytes()) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_table_names_the_files_that_torchvisions_does(name):
    cls = getattr(torchvision_datasets, {"fashion_mnist": "FashionMNIST"}.get(name, name.upper()))
    if hasattr(cls, "split_list"):
        theirs = {cls.split_list[half][1] for half in ("train", "test")}
    elif hasattr(cls, "url"):
        theirs = {cls.url.rpartition("/")[2]}
    else:
        halves = cls.resources if isinstance(cls.resources, list) else cls.resources["train"] + cls.resources["test"]
        theirs = {file.rpartition("/")[2] for file, _ in halves}
    assert {archive.name for archive in ARCHIVES[name]} == theirs


def test_the_table_is_pinned_and_over_https():
    code = {name: inspect.getsource(registry.module("dataset", name)) for name in registry.names("dataset")}
    assert set(ARCHIVES) == {
        name for name in code if re.search(r"ensure_files\(|_idx\.source|_torchvision\.", code[name])
    }
    archives = [archive for archives in ARCHIVES.values() for archive in archives]
    assert all(len(bytes.fromhex(archive.sha256)) == 32 for archive in archives)
    assert len({archive.sha256 for archive in archives}) == len(archives)
    assert all(url.rpartition("/")[2] == archive.name for archive in archives for url in archive.urls)
    plain = [url for archive in archives for url in archive.urls if not url.startswith("https://")]
    assert plain == [
        f"http://ufldl.stanford.edu/housenumbers/{half}_32x32.mat" for half in ("train", "test")
    ]  # as the table says


def test_idx_as_torchvision_reads_it(tiny_mnist, write_idx):
    ours, theirs = mnist.load(mnist.Config(), tiny_mnist), torchvision_datasets.MNIST(tiny_mnist, train=True)
    assert (ours.train.inputs[:, 0] == theirs.data.numpy()).all()
    assert (ours.train.labels == theirs.targets.numpy()).all()
    columns = np.random.default_rng(0).integers(0, 10, (20, 8)).astype(np.int32)
    for half in ("train", "test"):
        write_idx(tiny_mnist / f"QMNIST/raw/qmnist-{half}-images-idx3-ubyte", tiny(20)[0])
        write_idx(tiny_mnist / f"QMNIST/raw/qmnist-{half}-labels-idx2-int", columns)
    ours, theirs = qmnist.load(qmnist.Config(), tiny_mnist).test(), torchvision_datasets.QMNIST(tiny_mnist, what="test")
    assert (ours.inputs[:, 0] == theirs.data.numpy()).all()
    assert (ours.labels == theirs.targets[:, 0].numpy()).all()


@pytest.mark.mnist
def test_real_mnist_as_torchvision_reads_it(real_mnist):
    source = mnist.load(mnist.Config(), Path(real_mnist))
    for ours, train in ((source.train, True), (source.test(), False)):
        theirs = torchvision_datasets.MNIST(real_mnist, train=train)
        assert (ours.inputs[:, 0] == theirs.data.numpy()).all()
        assert (ours.labels == theirs.targets.numpy()).all()
    for name in MNIST:
        content = (Path(real_mnist) / "MNIST/raw" / name).read_bytes()
        assert mnist.PINNED[name] == (len(content), hashlib.sha256(content).hexdigest())


def test_usps(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (30, 16, 16)), np.arange(30) % 10
    rows = (
        f"{label + 1} " + " ".join(f"{i + 1}:{v / 127.5 - 1 + 1e-4:.6f}" for i, v in enumerate(image.flat))
        for image, label in zip(images, labels, strict=True)
    )
    packed = bz2.compress("\n".join(rows).encode())
    (tmp_path / "usps").mkdir()
    (tmp_path / "usps/usps.bz2").write_bytes(packed)
    (tmp_path / "usps/usps.t.bz2").write_bytes(b"not opened yet")
    dataset = load(usps, tmp_path)
    assert dataset.spec.shape == (1, 16, 16)
    assert dataset.train.inputs.dtype == np.uint8
    assert training(dataset) == samples(images.astype(np.uint8), labels)
    check_broken_test(dataset, tmp_path / "usps")
    (tmp_path / "usps/usps.t.bz2").write_bytes(packed)
    assert (dataset.test().labels == labels).all()


def test_svhn(tmp_path, monkeypatch):
    from scipy.io import savemat

    images, labels = np.random.default_rng(0).integers(0, 256, (30, 3, 32, 32), dtype=np.uint8), np.arange(30) % 10
    mat = tmp_path / "svhn" / "train_32x32.mat"
    mat.parent.mkdir()
    savemat(mat, {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)})
    checksum = hashlib.md5(mat.read_bytes()).hexdigest()
    table = {half: ["http://x/", f"{half}_32x32.mat", checksum] for half in ("train", "test")}
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", table)
    (mat.parent / "test_32x32.mat").write_bytes(b"not opened yet")
    dataset = load(svhn, tmp_path)
    assert dataset.spec.shape == (3, 32, 32)
    assert dataset.train.inputs.flags.c_contiguous
    assert training(dataset) == samples(images, labels)
    check_broken_test(dataset, mat.parent)
    (mat.parent / "test_32x32.mat").write_bytes(mat.read_bytes())
    assert (dataset.test().inputs == images).all()


@pytest.mark.parametrize(
    ("module", "cls", "base"), [(cifar10, "CIFAR10", "cifar-10-batches-py"), (cifar100, "CIFAR100", "cifar-100-python")]
)
def test_cifar(tmp_path, monkeypatch, module, cls, base):
    table = getattr(torchvision_datasets, cls)
    classes = [f"class {number}" for number in range(10)]
    key = "labels" if cls == "CIFAR10" else "fine_labels"
    rng = np.random.default_rng(0)
    folder = tmp_path / base
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    batches = {
        name: {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), key: [i % 10 for i in range(20)]}
        for name, _ in table.train_list
    }
    monkeypatch.setattr(table, "train_list", [write(name, batch) for name, batch in batches.items()])
    test = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), key: list(range(10))}
    monkeypatch.setattr(table, "test_list", [write(table.test_list[0][0], test)])
    _, checksum = write(table.meta["filename"], {table.meta["key"]: classes})
    monkeypatch.setattr(table, "meta", {**table.meta, "md5": checksum})

    test_file = folder / table.test_list[0][0]
    whole = test_file.read_bytes()
    test_file.write_bytes(b"not opened yet")
    dataset = load(module, tmp_path)
    assert dataset.spec.classes == tuple(classes)
    assert dataset.spec.shape == (3, 32, 32)
    assert dataset.train.inputs.flags.c_contiguous
    images = np.concatenate([batch["data"] for batch in batches.values()]).reshape(
        -1, 3, 32, 32
    )  # red, green, blue planes
    assert training(dataset) == samples(images, [i % 10 for i in range(len(images))])
    check_broken_test(dataset, tmp_path)
    test_file.write_bytes(whole)
    assert (dataset.test().inputs == test["data"].reshape(-1, 3, 32, 32)).all()


def test_a_pickle_that_is_not_cifars_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it ran",))

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps(Payload()))
    pickle.loads((folder / "train").read_bytes())
    assert (tmp_path / "it ran").exists()  # the control
    (tmp_path / "it ran").unlink()
    with pytest.raises(DataError, match=r"the files of CIFAR100 can't be read .*delete them and run again"):
        cifar100.load(cifar100.Config(), tmp_path)
    assert not (tmp_path / "it ran").exists()


def check_broken_test(dataset: datasets.Dataset, folder: Path) -> None:
    """The test data, broken so far, was not opened until now."""
    with pytest.raises(DataError, match=r"can't be read .*delete them and run again to download them again") as caught:
        dataset.test()
    assert str(folder) in str(caught.value)
