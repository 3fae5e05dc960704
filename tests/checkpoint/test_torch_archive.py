"""torch's zip: written anew where torch lays it out in another way, so that saving never depends on its layout."""

import io
import zipfile

import pytest
import torch
from test_checkpoint import assert_same, kept

from nnx import checkpoint
from nnx.checkpoint import torch_archive
from nnx.errors import CheckpointError

CONTENT = {"a": torch.arange(5.0), "b": torch.zeros(0), "c": {"x": [1, None, True, "text"]}, "d": torch.arange(70)}
real_save = torch.save


def saved(content=CONTENT) -> bytes:
    buffer = io.BytesIO()
    real_save(content, buffer)
    return buffer.getvalue()


def contents(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def relaid(data: bytes, *, root: str, compression: int) -> bytes:
    """The same members as Python's zipfile lays them out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in contents(data).items():
            archive.writestr(name.replace("archive/", f"{root}/", 1), content)
    return buffer.getvalue()


LAYOUTS = [("archive", zipfile.ZIP_STORED), ("other", zipfile.ZIP_STORED), ("archive", zipfile.ZIP_DEFLATED)]


def test_our_layout_is_torchs_to_the_byte():
    data = saved()
    assert torch_archive.archive_of(contents(data)) == data
    assert torch_archive.canonical(data) is data, "nothing is written anew where it need not be"


@pytest.mark.parametrize(("root", "compression"), LAYOUTS)
def test_another_layout_becomes_ours(root, compression):
    other = relaid(saved(), root=root, compression=compression)
    with pytest.raises(CheckpointError):
        torch_archive.members(io.BytesIO(other), len(other))  # the control: it is another layout
    assert torch_archive.canonical(other) == saved()


@pytest.mark.parametrize(("root", "compression"), LAYOUTS)
def test_a_checkpoint_is_saved_sealed_and_read_whatever_the_layout(tmp_path, monkeypatch, root, compression):
    checkpoint.write(tmp_path / "torch.pt", kept())

    def save(content, buffer):
        buffer.write(relaid(saved(content), root=root, compression=compression))

    monkeypatch.setattr(torch, "save", save)
    checkpoint.write(tmp_path / "other.pt", kept())
    assert (tmp_path / "other.pt").read_bytes() == (tmp_path / "torch.pt").read_bytes()
    assert_same(checkpoint.read(tmp_path / "other.pt").model, kept().model)
    damaged = bytearray((tmp_path / "other.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "other.pt").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        checkpoint.read(tmp_path / "other.pt")
