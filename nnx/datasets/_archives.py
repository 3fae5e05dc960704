"""Where to download the datasets: https mirrors, lengths, and the SHA-256 that every download must have.

The hashes are those of torchvision's prototype datasets (torchvision/prototype/datasets/_builtin of pytorch/vision),
except for EMNIST, which they package differently: its hash, and the lengths, are from tensorflow/datasets
(tensorflow_datasets/url_checksums), which has the same hashes for MNIST, Fashion-MNIST, KMNIST and SVHN. The hashes of
QMNIST's label files were confirmed in a clone of facebookresearch/qmnist. The lengths of CIFAR's archives are those
that its server reports. A missing length means that no source was found.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Archive:
    """A file to download: its mirrors in the order to try, the SHA-256 of its content, its length in bytes if known."""

    urls: tuple[str, ...]
    sha256: str
    size: int | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.urls[0]).name


def _mirrored(mirrors: tuple[str, ...], files: Mapping[str, tuple[str, int | None]]) -> tuple[Archive, ...]:
    return tuple(Archive(tuple(mirror + name for mirror in mirrors), *pinned) for name, pinned in files.items())


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "mnist": _mirrored(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                9_912_422,
            ),
            "train-labels-idx1-ubyte.gz": ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
            "t10k-images-idx3-ubyte.gz": (
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                1_648_877,
            ),
            "t10k-labels-idx1-ubyte.gz": ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
        },
    ),
    "fashion_mnist": _mirrored(
        # torchvision uses the bucket's website, which has no https; the bucket itself has.
        (
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                26_421_880,
            ),
            "train-labels-idx1-ubyte.gz": ("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29_515),
            "t10k-images-idx3-ubyte.gz": (
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                4_422_102,
            ),
            "t10k-labels-idx1-ubyte.gz": ("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5_148),
        },
    ),
    "kmnist": _mirrored(
        ("https://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        {
            "train-images-idx3-ubyte.gz": (
                "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
                18_165_135,
            ),
            "train-labels-idx1-ubyte.gz": ("e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17", 29_497),
            "t10k-images-idx3-ubyte.gz": (
                "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
                3_041_136,
            ),
            "t10k-labels-idx1-ubyte.gz": ("20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c", 5_120),
        },
    ),
    "emnist": _mirrored(
        ("https://biometrics.nist.gov/cs_links/EMNIST/", "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/"),
        {"gzip.zip": ("fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e", 561_753_746)},
    ),
    "qmnist": _mirrored(
        (
            "https://raw.githubusercontent.com/facebookresearch/qmnist/master/",
            "https://raw.githubusercontent.com/facebookresearch/qmnist/main/",
        ),
        {
            "qmnist-train-images-idx3-ubyte.gz": (
                "9e26a7bf1683614e065d7b76460ccd52807165b3f22561fb782bd9f38c52b51d",
                None,
            ),
            "qmnist-train-labels-idx2-int.gz": (
                "2c05dc77f6b916b38e455e97ab129a42a444f3dbef09b278a366f82904e0dd9f",
                463_024,
            ),
            "qmnist-test-images-idx3-ubyte.gz": (
                "43fc22bf7498b8fc98de98369d72f752d0deabc280a43a7bcc364ab19e57b375",
                None,
            ),
            "qmnist-test-labels-idx2-int.gz": (
                "9fbcbe594c3766fdf4f0b15c5165dc0d1e57ac604e01422608bb72c906030d06",
                526_800,
            ),
        },
    ),
    "usps": _mirrored(
        ("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",),
        {
            "usps.bz2": ("3771e9dd6ba685185f89867b6e249233dd74652389f263963b3b741e994b034f", None),
            "usps.t.bz2": ("a9c0164e797d60142a50604917f0baa604f326e9a689698763793fa5d12ffc4e", None),
        },
    ),
    "svhn": _mirrored(
        # Its authors name plain http only. It comes last, should their server not speak https after all; the sum guards
        # the content.
        ("https://ufldl.stanford.edu/housenumbers/", "http://ufldl.stanford.edu/housenumbers/"),
        {
            "train_32x32.mat": ("435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8", 182_040_794),
            "test_32x32.mat": ("cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b", 64_275_384),
        },
    ),
    "cifar10": _mirrored(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-python.tar.gz": ("6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", 170_498_071)},
    ),
    "cifar100": _mirrored(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-100-python.tar.gz": ("85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7", 169_001_437)},
    ),
}
