"""What setup, demo, check and test do, and that each shell script calls one of them."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def tasks(monkeypatch, tmp_path):
    """scripts/tasks.py, in an empty folder; `commands` are those that it would run."""
    spec = importlib.util.spec_from_file_location("tasks", SCRIPTS / "tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for name, value in (("ROOT", tmp_path), ("VENV", programs.parent), ("PROGRAMS", programs)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "PYTHON", Path(sys.executable))
    module.commands = []
    return module


@pytest.fixture
def recorded(tasks, monkeypatch):
    monkeypatch.setattr(tasks, "run", lambda command: tasks.commands.append(" ".join(map(str, command[1:]))))
    return tasks


def test_setup_installs_once_and_extras_include_the_rest(recorded):
    for extras in (["dev"], ["dev"], []):
        recorded.setup(extras)
    assert [command.split()[-1] for command in recorded.commands] == [".[dev]"]
    recorded.setup(["serve"])
    assert recorded.commands[-1].endswith(".[serve]")
    (recorded.ROOT / "pyproject.toml").write_text("[project] # changed\n")
    recorded.setup(["serve"])
    assert len(recorded.commands) == 3


def test_demo_trains_and_names_the_newest_run(recorded, capsys):
    (recorded.ROOT / "runs" / "digits_mlp-1").mkdir(parents=True)
    recorded.demo(["--seed", "1"])
    assert recorded.commands[-1] == "-m nnx train configs/digits_mlp.yaml --seed 1"
    assert f"nnx eval {Path('runs/digits_mlp-1')} " in capsys.readouterr().out


@pytest.mark.parametrize("windows", [False, True])
def test_test_runs_every_step(recorded, windows, monkeypatch, capsys):
    monkeypatch.setattr(recorded, "WINDOWS", windows)
    monkeypatch.setattr(recorded, "check", lambda arguments: recorded.commands.append("check"))
    monkeypatch.setattr(recorded, "find_browser", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recorded.test(["--slow", "-k", "locks"])
    assert [command.split()[0] for command in recorded.commands[1:3]] == ["check", "scripts/bench"]
    assert any("scripts/torture" in command for command in recorded.commands) is not windows
    assert recorded.commands[-1] == "-m pytest -n 2 -m  -k locks"
    assert (recorded.WITHOUT_FORK in capsys.readouterr().out) is windows


def test_check_prints_what_failed_and_fails(tasks, monkeypatch, capsys):
    works, fails = f"{sys.executable} -c print(1)", f"{sys.executable} -c exit('wrong')"
    monkeypatch.setattr(tasks, "CHECKS", (works,))
    tasks.check([])
    monkeypatch.setattr(tasks, "CHECKS", (works, fails))
    with pytest.raises(SystemExit, match="1"):
        tasks.check([])
    assert f"wrong\nFAILED: {fails} (exit code 1)" in capsys.readouterr().out


def test_a_command_that_fails_ends_the_task(tasks):
    with pytest.raises(SystemExit, match="7"):
        tasks.run([sys.executable, "-c", "exit(7)"])


@pytest.mark.parametrize("script", ["setup", "demo", "check", "test", "demo.ps1", "test.ps1"])
def test_each_script_calls_its_task(script, tasks):
    text = (SCRIPTS / script).read_text()
    (called,) = re.findall(r"tasks(?:\.ps1')?[\")]* (\w+)", text)
    assert called == script.partition(".")[0]
    assert called in tasks.TASKS
