"""The cache of decoded data: decoded once, anew when anything has changed, never trusted, never half."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import expected, listed, pixels, save, tree

from nnx.datasets import _cache, _mapped, folder
from nnx.errors import DataError, MachineError
from nnx.preprocessing import images

COUNTS = {"cat": 6, "dog": 6}
KEY = _cache.CacheKey("/the/source", {"size": [1, 2]}, "hash")
FORM = {"a": ("uint8", 2), "b": ("int64", 1)}
FACTS = {"bad": int}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """How many files were decoded."""
    calls = []
    real = images.measure
    monkeypatch.setattr(images, "measure", lambda *given, **named: calls.append(1) or real(*given, **named))
    return calls


def source(path, **options):
    return folder.load(folder.Config(path=str(path), test=2, **{"size": 8, **options}), Path("unused"))


def note(path, **options):
    return source(path, **options).notes[1]


def filled(writer):
    writer.add("a", np.arange(6, dtype=np.uint8).reshape(3, 2))
    writer.add("b", np.arange(2))
    writer.add("a", np.full((1, 2), 9, np.uint8))
    return {"bad": 3}


def kept(depends=KEY, decode=filled):
    return _cache.load_or_decode("test", depends, decode, FORM, FACTS)


def never(writer):
    raise AssertionError("it is there already")


def right(found):
    np.testing.assert_array_equal(found.arrays["a"], [[0, 1], [2, 3], [4, 5], [9, 9]])
    np.testing.assert_array_equal(found.arrays["b"], [0, 1])
    assert found.facts == {"bad": 3}
    return found.note.value


# ---------------------------------------------------------------- once


def test_the_second_run_decodes_nothing_and_opens_memory_mapped(tmp_path, decoded):
    tree(tmp_path / "p", COUNTS)
    first = source(tmp_path / "p")
    assert len(decoded) == 12
    second = source(tmp_path / "p")
    assert len(decoded) == 12
    assert (first.notes[1].value, second.notes[1].value) == ("decoded", "used")
    assert second.notes[1].reason == f"{tmp_path / 'p'} has not changed since an earlier run decoded it"
    for one, two in ((first.train, second.train), (first.test(), second.test())):
        assert isinstance(two.inputs.whole, np.memmap)
        np.testing.assert_array_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.labels, two.labels)
    with pytest.raises(ValueError, match="read-only"):
        second.train.inputs.whole[0] = 0


def later(path):
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


CHANGES = {
    "changed": lambda root: save(root / "cat/000.png", pixels(77)),
    "added": lambda root: save(root / "dog/extra.png", pixels(78)),
    "a class added": lambda root: save(root / "owl/extra.png", pixels(78)),
    "removed": lambda root: (root / "cat/000.png").unlink(),
    "touched": lambda root: later(root / "dog/011.png"),
    "renamed": lambda root: (root / "dog/011.png").rename(root / "dog/900.png"),
    "moved to another class": lambda root: (root / "dog/011.png").rename(root / "cat/011.png"),
    "swapped": lambda root: [
        (root / "cat/000.png").rename(root / "spare"),
        (root / "cat/002.png").rename(root / "cat/000.png"),
        (root / "spare").rename(root / "cat/002.png"),
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_and_the_old_entry_goes(change, tmp_path, decoded, cache):
    root = tree(tmp_path / "p", COUNTS)
    first = source(root)
    for path in root.glob("*/*.png"):  # a control: reading does not matter
        path.read_bytes()
    assert note(root).value == "used"
    decoded.clear()
    CHANGES[change](root)
    changed = note(root)
    assert (changed.value, changed.reason) == ("decoded anew", "the source has changed since it was decoded")
    assert len(decoded) >= 11
    found = source(root)
    assert found.notes[1].value == "used"
    assert [entry.source for entry in _cache.entries()].count(str(root)) == 1
    if change not in ("touched", "renamed"):
        same = found.train.inputs.shape == first.train.inputs.shape and np.array_equal(
            found.train.inputs, first.train.inputs
        )
        assert not same or not np.array_equal(found.train.labels, first.train.labels)


def test_what_a_list_says_is_looked_at_too(tmp_path):
    tree(tmp_path / "p", {"x": 8})
    rows = [("file", "label"), *((f"p/x/{n:03}.png", "ab"[n % 2]) for n in range(8))]
    path = listed(tmp_path / "list.csv", rows)
    assert [note(path).value, note(path).value] == ["decoded", "used"]
    os.utime(path, (0, 0))
    assert note(path).value == "used", "the list's own time says nothing"
    rows[1] = (rows[1][0], "b")
    listed(path, rows)
    assert note(path).value == "decoded anew"
    rows[1:3] = [rows[2], rows[1]]
    listed(path, rows)
    assert note(path).value == "decoded anew", "another order"


def test_other_options_are_another_entry_and_both_stay(tmp_path):
    root, other = tree(tmp_path / "p", COUNTS), tree(tmp_path / "q", COUNTS)
    variants = [{}, {"size": 9}, {"size": [8, 9]}, {"fit": "stretch"}, {"grayscale": False}, {"skip_bad": True}]
    assert {note(root, **options).value for options in variants} == {"decoded"}
    assert {note(root, **options).value for options in variants} == {"used"}

    def tested(path):
        return folder.load(folder.Config(path=str(root), test=str(path), size=8), Path()).notes[0].value

    assert [tested(other), tested(root), tested(other), tested(root)] == ["decoded", "decoded", "used", "used"]
    assert len(_cache.entries()) == len(variants) + 2


@pytest.mark.parametrize(
    "options", [{"validation": 3}, {"balance": "oversample"}, {"mean": [0.5]}, {"root": "/nowhere"}]
)
def test_options_that_change_no_pixel_are_none(options, tmp_path):
    root = tree(tmp_path / "p", COUNTS)
    assert [note(root).value, note(root, **options).value] == ["decoded", "used"]


def test_what_raises_leaves_nothing(tmp_path, cache):
    root = tree(tmp_path / "p", COUNTS)
    (root / "cat/000.png").write_bytes(b"bad")
    for _ in range(2):
        with pytest.raises(DataError, match="1 of 12 images"):
            source(root)
        assert list(cache.iterdir()) == []


# ---------------------------------------------------------------- damaged, cut, hostile


def only(cache):
    [entry] = [path for path in cache.iterdir() if path.is_dir()]
    return entry


def meta(entry, **changes):
    """Change the meta.json, with the checksum that it then needs."""
    path = entry / "meta.json"
    content = json.loads(path.read_text()) | changes
    del content["checksum"]
    path.write_text(json.dumps(content | {"checksum": _cache._meta_checksum(content)}))


DAMAGE = {
    "cut": lambda entry: os.truncate(entry / "a.bin", 7),
    "longer": lambda entry: (entry / "a.bin").write_bytes(bytes(9)),
    "emptied": lambda entry: os.truncate(entry / "b.bin", 0),
    "gone": lambda entry: (entry / "b.bin").unlink(),
    "a folder": lambda entry: [(entry / "b.bin").unlink(), (entry / "b.bin").mkdir()],
    "no meta": lambda entry: (entry / "meta.json").unlink(),
    "meta cut": lambda entry: os.truncate(entry / "meta.json", 50),
    "meta empty": lambda entry: os.truncate(entry / "meta.json", 0),
    "meta not text": lambda entry: (entry / "meta.json").write_bytes(b"\xff\xfe\0"),
    "meta deep": lambda entry: (entry / "meta.json").write_text("[" * 100_000),
    "meta large": lambda entry: (entry / "meta.json").write_text(json.dumps({"x": "y" * 2**21})),
    "meta a list": lambda entry: (entry / "meta.json").write_text("[]"),
    "meta a folder": lambda entry: [(entry / "meta.json").unlink(), (entry / "meta.json").mkdir()],
    "another format": lambda entry: meta(entry, format=1),
    "format true": lambda entry: meta(entry, format=True),
    "no source": lambda entry: meta(entry, source=None),
    "no shapes": lambda entry: meta(entry, shapes=None),
    "shapes a list": lambda entry: meta(entry, shapes=["a", "b"]),
    "other names": lambda entry: meta(entry, shapes={"../a": [4, 2], "/etc/passwd": [2]}),
    "a shape that is text": lambda entry: meta(entry, shapes={"a": "42", "b": [2]}),
    "a shape of text": lambda entry: meta(entry, shapes={"a": ["4", "2"], "b": [2]}),
    "a shape of fractions": lambda entry: meta(entry, shapes={"a": [4.0, 2], "b": [2]}),
    "a shape of truths": lambda entry: meta(entry, shapes={"a": [8, True], "b": [2]}),
    "a negative shape": lambda entry: meta(entry, shapes={"a": [-4, -2], "b": [2]}),
    "a huge shape": lambda entry: meta(entry, shapes={"a": [2**70, 2**70], "b": [2]}),
    "a huge empty shape": lambda entry: [
        os.truncate(entry / "a.bin", 0),
        meta(entry, shapes={"a": [0, 2**80], "b": [2]}),
    ],
    "more dimensions": lambda entry: meta(entry, shapes={"a": [4, 2, 1], "b": [2]}),
    "facts of another type": lambda entry: meta(entry, facts={"bad": "3"}),
    "facts that lack": lambda entry: meta(entry, facts={}),
    "facts a list": lambda entry: meta(entry, facts=[3]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_anew(damage, cache):
    assert right(kept()) == "decoded"
    assert right(kept(decode=never)) == "used", "the control"
    DAMAGE[damage](only(cache))
    calls = []
    assert right(kept(decode=lambda writer: calls.append(1) or filled(writer))) == "decoded"
    assert calls == [1]
    assert right(kept(decode=never)) == "used"
    assert len(_cache.entries()) == 1


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
trees = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "bad", "x"]), inner)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(key=st.sampled_from(["format", "source", "options", "shapes", "facts"]), value=trees)
def test_no_meta_breaks_it(key, value, cache):
    kept()
    meta(only(cache), **{key: value})
    assert right(kept()) in ("used", "decoded", "decoded anew")
    _cache.entries()


@pytest.mark.parametrize("value", [{"bad": 0, "skipped": 7}, {"bad": True, "skipped": ""}, {}])
def test_a_source_does_not_trust_the_facts_of_an_entry(value, tmp_path, cache):
    root = tree(tmp_path / "p", COUNTS)
    source(root)
    meta(only(cache), facts=value)
    assert note(root).value == "decoded"


IMPOSSIBLE = {  # arrays of an entry with 12 images
    "labels": {"all-labels": np.full(12, 7)},
    "huge labels": {"all-labels": np.full(12, 2**62)},
    "negative labels": {"all-labels": np.full(12, -1)},
    "files": {"all-files": np.full(12, 12)},
    "fewer labels": {"all-labels": np.zeros(6, np.int64)},
    "fewer images": {"all-inputs": np.zeros((6, 2, 8, 8), np.uint8)},
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_entry_of_impossible_values_is_decoded_again(name, tmp_path, cache):
    """Even if its checksums are right. Labels of 2^62 or -1 ended in a bug report."""
    root = tree(tmp_path / "p", COUNTS)
    source(root)
    entry = only(cache)
    content = json.loads((entry / "meta.json").read_text())
    for array, values in IMPOSSIBLE[name].items():
        (entry / f"{array}.bin").write_bytes(values.tobytes())
        content["checksums"][array] = zlib.crc32(values.tobytes())
        content["shapes"][array] = values.shape
    meta(entry, checksums=content["checksums"], shapes=content["shapes"])
    assert note(root).value == "decoded"


def test_damaged_facts_are_not_used(tmp_path, cache):
    """A single changed digit in meta.json was trusted, such as another white."""
    root = tree(tmp_path / "p", COUNTS)
    source(root)
    assert note(root).value == "used", "the control"
    path = only(cache) / "meta.json"
    path.write_text(path.read_text().replace('"white": 0', '"white": 9'))
    assert note(root).value == "decoded"


@pytest.mark.parametrize("large", [False, True])
def test_an_entry_of_other_bytes_is_not_used(tmp_path, cache, decoded, monkeypatch, large):
    root = tree(tmp_path / "p", COUNTS)
    source(root)
    source(root)
    assert len(decoded) == 12, "the control: an intact entry is used"
    images = only(cache) / "all-inputs.bin"
    images.write_bytes(bytes(images.stat().st_size))  # zeros of the right length
    if not large:
        source(root)
        assert len(decoded) == 24, "a small one is checked when it is opened, and decoded again"
        return
    monkeypatch.setattr(_cache, "LARGE", 0)
    source(root)
    assert len(decoded) == 12
    with pytest.raises(MachineError, match=r"inputs\.bin: is damaged, its content does not match its checksum"):
        _mapped.check_mapped_files()
    _mapped.check_mapped_files()


def test_a_source_changed_within_its_size_and_time_stamp_is_decoded_again(tmp_path, cache, decoded):
    root = tree(tmp_path / "p", COUNTS)
    source(root)
    image = sorted(root.rglob("*.png"))[0]
    before = image.stat()
    image.write_bytes(image.read_bytes())
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    source(root)
    assert len(decoded) == 24


# ---------------------------------------------------------------- where it can't be written


@pytest.mark.parametrize("where", ["file/cache", "/proc/nothing"])
def test_a_cache_that_can_not_be_written_is_done_without_and_said(where, tmp_path, monkeypatch, decoded):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / where))
    root = tree(tmp_path / "p", COUNTS)
    for time in (1, 2):
        found = source(root)
        assert len(decoded) == 12 * time
    note = found.notes[1]
    assert note.value == "none"
    assert note.reason.startswith(f"{tmp_path / where} can't be written (")
    assert note.reason.endswith("so every run decodes the data again; set NNX_CACHE_DIR to another folder")
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / "cache"))
    for one, two in ((source(root).train, found.train), (source(root).test(), found.test())):
        np.testing.assert_array_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.labels, two.labels)
    assert _cache.entries()


def test_a_drive_without_locks_is_done_without(monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert right(kept()) == "none"


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "mkdir"])
def test_a_full_disk_is_the_machines_fault_and_leaves_nothing(call, cache, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = {"write": _cache.json, "fsync": os, "replace": os, "mkdir": None}[call]
    if call == "mkdir":
        real = Path.mkdir
        monkeypatch.setattr(
            Path, "mkdir", lambda path, *a, **k: full() if path.name.endswith(".tmp") else real(path, *a, **k)
        )
    else:
        monkeypatch.setattr(owner, "dump" if call == "write" else call, full)
    with pytest.raises(MachineError) as caught:
        kept()
    assert str(caught.value) == (
        f"{cache}: can't be written (No space left on device); free some space, or set NNX_CACHE_DIR to another folder"
    )
    assert list(cache.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("NNX_CACHE_DIR", str(cache))
    assert right(kept()) == "decoded"


def run(code, *arguments):
    head = (
        "import sys, os, numpy as np\nfrom pathlib import Path\n"
        "from nnx.datasets import _cache, _mapped, folder\nfrom nnx.errors import NnxError\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_limit_of_the_system_in_the_middle_of_a_file(cache, tmp_path):
    """As on a disk that fills up: the first blocks are taken, the others are not."""
    process = run("""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def decode(writer):
    for _ in range(100):
        writer.add("a", np.zeros((1000, 10), np.uint8))
    raise AssertionError("never")
try:
    _cache.load_or_decode("test", _cache.CacheKey("s", {}, "h"), decode, {"a": ("uint8", 2)})
except NnxError as error:
    print(error.exit_code, error)
""")
    out, err = process.communicate()
    assert (
        out
        == f"3 {cache}: can't be written (File too large); free some space, or set NNX_CACHE_DIR to another folder\n"
    ), err
    assert list(cache.iterdir()) == []


# ---------------------------------------------------------------- several processes

SLOWLY = """
import time
def decode(writer):
    with open(sys.argv[1], "a") as log:
        log.write("decoded\\n")
    print("begun", flush=True)
    sys.stdin.readline() if sys.argv[2] == "until told" else time.sleep(float(sys.argv[2]))
    writer.add("a", np.full((3, 2), 7, np.uint8))
    return {}
kept = _cache.load_or_decode("test", _cache.CacheKey("s", {}, "h"), decode, {"a": ("uint8", 2)})
print(kept.note.value, kept.arrays["a"].sum(), type(kept.arrays["a"]).__name__)
"""


def test_two_processes_at_once_decode_once(tmp_path, cache):
    first = run(SLOWLY, tmp_path / "log", "until told")
    assert first.stdout.readline() == "begun\n"
    others = [run(SLOWLY, tmp_path / "log", 0) for _ in range(2)]
    waiting = [process.stderr.readline() for process in others]
    outputs = [process.communicate("\n" if process is first else None, timeout=60) for process in (first, *others)]
    assert [out for out, _ in outputs] == ["decoded 42 memmap\n", "used 42 memmap\n", "used 42 memmap\n"]
    assert (tmp_path / "log").read_text() == "decoded\n"
    assert waiting == [f"waiting for another process that is decoding the same data ({only(cache)})\n"] * 2
    assert [err for _, err in outputs[1:]] == ["", ""]
    assert [path.name[:5] for path in cache.iterdir()] == ["test-"]


def test_a_process_that_waits_takes_over_from_one_that_is_killed(tmp_path, cache):
    first = run(SLOWLY, tmp_path / "log", 60)
    assert first.stdout.readline() == "begun\n"
    second = run(SLOWLY, tmp_path / "log", 0)
    assert "waiting" in second.stderr.readline()
    first.kill()
    out, err = second.communicate(timeout=30)
    first.communicate()
    assert out == "begun\ndecoded 42 memmap\n", err
    assert [path.name[:5] for path in cache.iterdir()] == ["test-"]


def test_what_another_process_is_making_is_left_alone(tmp_path, cache):
    first = run(SLOWLY, tmp_path / "log", 60)
    assert first.stdout.readline() == "begun\n"
    kept()
    _cache.clear()
    left = sorted(path.name for path in cache.iterdir())
    assert [name.rpartition(".")[2] for name in left] == ["lock", "tmp"], "it holds the lock, whatever machine it is on"
    first.kill()
    first.communicate()
    _cache.clear()
    assert list(cache.iterdir()) == []


# ---------------------------------------------------------------- what there is


def test_entries_and_clear(tmp_path, cache):
    assert _cache.entries() == []
    _cache.clear()
    small, large = tree(tmp_path / "small", COUNTS), tree(tmp_path / "large", COUNTS)
    source(small)
    found = source(large, size=100).train
    before = np.array(found.inputs)
    listed = _cache.entries()
    assert [entry.source for entry in listed] == [str(large), str(small)]
    assert listed[0].size >= 12 * 100 * 100
    os.utime(listed[0].path, (5, 5))
    assert _cache.entries()[0].used == 5
    source(large, size=100)
    assert _cache.entries()[0].used > 10**9, "when it was last used"
    (listed[1].path / "meta.json").write_text("?")
    (cache / "mine").mkdir()
    (cache / "folder-notes").mkdir()
    (cache / "file").write_text("")
    assert [entry.source for entry in _cache.entries()] == [str(large), "(can't be read any more)"]
    _cache.clear()
    assert sorted(path.name for path in cache.iterdir()) == ["file", "folder-notes", "mine"], (
        "what is not the cache's stays"
    )
    np.testing.assert_array_equal(found.inputs, before, "what is open stays so")
    assert note(large).value == "decoded"


def test_where_it_is(monkeypatch, tmp_path):
    assert _cache.folder() == tmp_path / "cache"
    monkeypatch.setenv("NNX_CACHE_DIR", "~/x")
    assert _cache.folder() == Path.home() / "x"
    monkeypatch.setenv("NNX_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _cache.folder() == tmp_path / "nnx" / "arrays"


def test_memory_and_files_hold_the_same(cache, monkeypatch):
    filed = kept()
    monkeypatch.setenv("NNX_CACHE_DIR", "/proc/nothing")
    memory = kept()
    assert right(memory) == "none"
    for name, array in filed.arrays.items():
        assert array.dtype == memory.arrays[name].dtype
        np.testing.assert_array_equal(array, memory.arrays[name])


def test_an_empty_array(cache):
    form = {"a": ("float32", 2)}
    found = [
        _cache.load_or_decode("test", KEY, lambda writer: writer.add("a", np.zeros((0, 3), np.float32)) or {}, form)
        for _ in range(2)
    ]
    assert [(one.note.value, one.arrays["a"].shape) for one in found] == [("decoded", (0, 3)), ("used", (0, 3))]


def test_decoding_may_start_over():
    def decode(writer):
        writer.add("a", np.zeros((3, 2, 2), np.uint8))
        writer.restart()
        return filled(writer)

    assert right(kept(decode=decode)) == "decoded"
    assert right(kept(decode=never)) == "used"


def test_a_stamp_is_of_names_and_numbers_in_their_order():
    stamps = {
        _cache.hash_stats(names, numbers)
        for names in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], [os.fsdecode(b"\xff")])
        for numbers in ([1, 2], [2, 1], [], [2**62, -1])
    }
    assert len(stamps) == 20
    assert _cache.hash_stats(iter(["a"]), iter([1])) == _cache.hash_stats(["a"], [1])


def test_expected_is_what_is_kept(tmp_path):
    """The helper's pictures are those of the cache, padded to 8 x 8: a control for all of the above."""
    tree(tmp_path / "p" / "train", COUNTS)
    tree(tmp_path / "p" / "test", {"cat": 1})
    found = folder.load(folder.Config(path=str(tmp_path / "p")), Path())
    np.testing.assert_array_equal(found.train.inputs, expected(12))
