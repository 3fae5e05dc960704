"""The documentation is true: its commands and its Python code run, its tables are current, its links exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nnx import config, datasets, explain, models
from nnx.cli import run_command
from nnx.config import registry
from nnx.run.pipeline import run

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "configs/README.md", "scripts/README.md"]
LINKED = [*PAGES, "CHANGELOG.md"]
GUIDE = "CONTRIBUTING.md"


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, languages):
    """The code blocks of a page that are marked with a language, or one of "a|b": (language, text)."""
    return re.findall(rf"^```({languages})\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def shell_lines(page):
    """What a reader would type, in order: each line of an sh block, and what follows a `$` in a console block."""
    lines = []
    for language, block in blocks(page, "sh|console"):
        if language == "sh":
            lines += block.splitlines()
        else:
            lines += [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def python_block(page, first_words):
    """The one Python block of a page that starts with these words."""
    (code,) = (block for _, block in blocks(page, "python") if block.startswith(first_words))
    return code


# ---------------------------------------------------------------- commands


def has_mnist():
    folder = os.environ.get("NNX_DATA_DIR")
    return bool(folder) and (Path(folder) / "MNIST/raw/train-images-idx3-ubyte").is_file()


def shortened(words):
    """A training command with few epochs: one, or two where it resumes a run of one."""
    if words[1] == "train":
        words = [*words, "--set", "train.epochs=2" if "--resume" in words else "train.epochs=1"]
    return words


@pytest.mark.parametrize("page", PAGES)
def test_every_nnx_command_runs(page, tmp_path, monkeypatch):
    """As typed, in order, in one folder, with few epochs. Commands on MNIST need NNX_DATA_DIR; elsewhere they are
    skipped, together with what uses their runs."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNX_OFFLINE", "1")
    commands = [line for line in shell_lines(page) if line.startswith("nnx ")]
    if page == "README.md":
        assert len(commands) >= 10
    for command in commands:
        if "mnist" in command and not has_mnist():
            continue
        monkeypatch.setattr(sys, "argv", shortened(shlex.split(command, comments=True)))
        expected = re.search(r"exit code (\d+)", command)
        assert run_command() == (int(expected[1]) if expected else 0), command


@pytest.mark.parametrize("page", PAGES)
def test_every_torchrun_command_runs(page, tmp_path):
    for command in [line for line in shell_lines(page) if line.startswith("torchrun ")]:
        if "mnist" in command and not has_mnist():
            continue
        words = [*shlex.split(command, comments=True)[1:], "--set", "train.epochs=1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NNX_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_script_exists_and_takes_the_flags_shown(page):
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if not words or not words[0].startswith("scripts/"):
            continue
        script = ROOT / words[0]
        assert os.access(script, os.X_OK), line
        flags = [word for word in words[1:] if word.startswith("--")]
        source = script.read_text(encoding="utf-8")
        assert all(flag in source for flag in flags), line


# ---------------------------------------------------------------- tables, length


def test_the_tables_of_the_config_keys_are_current():
    done = subprocess.run([sys.executable, ROOT / "scripts/reference", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 220


def test_every_command_is_in_the_readme():
    folder = ROOT / "nnx/cli"
    commands = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert commands == set(re.findall(r"^\| `nnx (\w+)", text_of("README.md"), re.MULTILINE))


def test_every_effect_on_the_process_is_listed():
    section = text_of("CONTRIBUTING.md").partition("## Effects on the whole process")[2].partition("\n## ")[0]
    functions = re.findall(r"^def ([a-z]\w*)", text_of("nnx/cli/_start.py"), re.MULTILINE)
    assert functions
    assert not [name for name in functions if f"`{name}`" not in section]


def test_every_package_is_on_the_maps():
    packages = {path.parent.name for path in ROOT.glob("nnx/*/__init__.py")}
    names = packages | {path.stem for path in ROOT.glob("nnx/*.py") if not path.stem.startswith("_")}
    (package_map,) = (block for _, block in blocks("README.md", "text") if "datasets" in block)
    assert names <= set(re.findall(r"\w+", package_map))
    table = text_of("CONTRIBUTING.md").partition("## The map")[2].partition("\n## ")[0]
    assert names <= set(re.findall(r"`(\w+)`", table))


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED)
def test_every_link_and_picture_exists(page):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_function_named_exists(page):
    """Paths in backticks, such as `nnx/cli/_start.py`; not the files that the examples add."""
    added = {"nnx/models/maxout.py", "nnx/datasets/stripes.py", "nnx/explain/weights.py"}
    paths = set(re.findall(r"`((?:nnx|scripts|configs|tests|\.github)/[\w./]*)`", text_of(page))) - added
    assert not [path for path in paths if not (ROOT / path).exists()]


# ---------------------------------------------------------------- Python


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    code = python_block("README.md", "import nnx\n")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    accuracy, checkpoint = capsys.readouterr().out.splitlines()[0].split()
    assert float(accuracy) > 0.9
    assert Path(checkpoint).is_file()


@pytest.fixture
def add_file(tmp_path, monkeypatch):
    """Puts a file of the documentation into a package of nnx, until the test ends."""
    added = []

    def add(package, name, code):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        added.append(f"{package.__name__}.{name}")

    yield add
    for module in added:
        sys.modules.pop(module, None)


def test_the_example_of_an_architecture_trains(tmp_path, add_file):
    add_file(models, "maxout", python_block(GUIDE, '"""Maxout'))
    assert "maxout" in registry.names("model")
    *_, finished = run(config.load("digits_mlp", ["model=maxout", "train.epochs=5"]), out=tmp_path / "run")
    assert finished.summary["test_accuracy"] > 0.9


def test_the_example_of_a_dataset_is_learned(tmp_path, add_file):
    add_file(datasets, "stripes", python_block(GUIDE, '"""Stripes'))
    assert "stripes" in registry.names("dataset")
    chosen = config.load("digits_mlp", ["dataset=stripes", "train.epochs=5"])
    *_, finished = run(chosen, out=tmp_path / "run")
    assert finished.summary["test_accuracy"] > 0.9
    assert finished.summary["test_samples"] == 200


def test_the_example_of_an_explainer_draws(tmp_path, add_file, monkeypatch):
    add_file(explain, "weights", python_block(GUIDE, '"""Weights'))
    monkeypatch.chdir(tmp_path)
    list(run(config.load("digits_mlp", ["train.epochs=1"]), out=tmp_path / "run"))
    monkeypatch.setattr(sys, "argv", ["nnx", "explain", "run", "--only", "weights", "--out", "pictures"])
    assert run_command() == 0
    assert (tmp_path / "pictures/weights.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "configs/README.md", "scripts/README.md", "scripts/tasks.py"]
)
def test_every_example_can_be_typed_in_zsh(name):
    """zsh expands brackets and braces that are not quoted, and stops where no file matches."""
    options = re.findall(r"(?<!error: )--set (\S+)", text_of(name))
    assert [option for option in options if set(option) & set("[]{}*?") and option[0] not in "'\""] == []
