"""What people type is answered with what does it."""

import pytest


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (("--epochs", "5"), "--set train.epochs=5"),
        (("--epochs=5",), "--set train.epochs=5"),
        (("--lr", "0.1"), "--set optimizer.lr=0.1"),
        (("--batch-size", "64"), "--set train.batch_size=64"),
        (("--hidden", "[8, 8]"), "--set 'model.hidden=[8, 8]'"),
        (("--epochs",), "--set train.epochs=VALUE"),
    ],
)
def test_an_option_that_is_a_setting_names_the_setting(nnx, words, setting):
    result = nnx("train", "digits_mlp", *words)
    assert (result.code, result.err) == (2, f"error: No such option: {words[0].partition('=')[0]}. Use {setting}\n")


@pytest.mark.parametrize(
    ("line", "key"),
    [("epochs: 3", "train.epochs"), ("batch_size: 8", "train.batch_size"), ("lr: 0.1", "optimizer.lr")],
)
def test_a_key_at_the_top_level_names_its_section(nnx, tmp_path, line, key):
    (tmp_path / "a.yaml").write_text(f"dataset: digits\nmodel: mlp\n{line}\n")
    result = nnx("train", "a.yaml")
    assert result.code == 2
    assert f"unknown key, did you mean '{key}'?" in result.err


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_missing_target_lists_the_columns(nnx, tmp_path, delimiter):
    (tmp_path / "t.csv").write_text(delimiter.join(["width", '"height"', "species"]) + "\n")
    (tmp_path / "a.yaml").write_text("dataset: {name: table, path: t.csv}\nmodel: mlp\n")
    result = nnx("train", "a.yaml")
    assert result.code == 2
    assert "dataset.target: is missing; name the column with the class, one of: width, height, species\n" in result.err


def test_runs_and_checkpoints_are_found_by_what_people_call_them(nnx, tmp_path):
    assert nnx("train", "digits_mlp", "--set", "train.epochs=1", "--set", "train.report=false", "--out", "r").code == 0
    assert nnx("train", "r").err == "error: r: is a run; resume it with: nnx train --resume r\n"
    assert nnx("eval", "r/checkpoint").err == "error: r/checkpoint: no such file, did you mean 'r/checkpoint.pt'?\n"
    for words in (("r", "x.png"), ("x.png", "r"), ("r/checkpoint.pt", "x.png")):
        assert nnx("doctor", *words).err == "error: x.png: no such file; check the name\n"
    assert "named twice" in nnx("doctor", "x.png", "r", "--checkpoint", "r").err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("train a.yaml --batchsize 8", "Use --set train.batch_size=8"),
        ("train a.yaml -b 8", "Use --set train.batch_size=8"),
        ("train a.yaml --n-epochs=3", "Use --set train.epochs=3"),
        ("train a.yaml --lr -0.1", "Use --set optimizer.lr=-0.1"),
        ("train a.yaml --weight-decay 0.1", "Use --set optimizer.weight_decay=0.1"),
        ("train a.yaml --scheduler cosine", "Use --set schedule=cosine"),
        ("train a.yaml --train.epochs 3", "Use --set train.epochs=3"),
        ("train a.yaml --compile", "Use --set compile=true"),
        ("train a.yaml --gpu", "Use --device cuda"),
        ("train a.yaml --cpu", "Use --device cpu"),
        ("train a.yaml -o x", "Use --out"),
        ("train a.yaml --overwrite", "Use --force"),
        ("train a.yaml --quite", "Did you mean --quiet?"),
        ("train a.yaml --zzz", "See nnx train --help"),
        ("train --config a.yaml", "CONFIG is an argument: nnx train a.yaml"),
        ("train a.yaml epochs=3", "a setting needs --set: --set train.epochs=3"),
        ("train a.yaml --set train.epochs 3", "expected key=value, as in --set train.epochs=3"),
        ("train a.yaml b.yaml", "b.yaml: is one argument too many; nnx train takes CONFIG only"),
        ("train a.yaml --seed abc", "--seed abc: expected a whole number"),
        ("train a.yaml --seed", "Option '--seed' requires an argument. See nnx train --help"),
        ("--epochs 3", "Use nnx train CONFIG --set train.epochs=3"),
        ("eval r --lr 3", "The checkpoint fixes this setting"),
        ("eval r --validation 0.2", "Use --set dataset.validation=0.2"),
        ("eval r --split val", "--split val: did you mean 'validation'?"),
        ("eval r --split all", "--split all: expected one of: test, validation, train"),
        ("eval r --test", "Use --split test"),
        ("eval r --fail-under 95", "--fail-under 95: must be at most 1"),
        ("eval", "Missing argument 'CHECKPOINT'. See nnx eval --help"),
        ("eval --checkpoint r", "CHECKPOINT is an argument: nnx eval r"),
        ("predict r a.png --topk 3", "Use --top"),
        ("export r --onnx", "Use --format onnx"),
        ("list model", "model: did you mean 'models'?"),
        ("schema x", "x: is one argument too many; nnx schema takes no argument"),
        ("resume runs/mlp", "Use nnx train --resume runs/mlp"),
        ("test r", "Use nnx eval r"),
        ("help train", "Use nnx train --help"),
        ("version", "Use nnx --version"),
        ("Train a.yaml", "Did you mean train?"),
        ("digits_mlp", "Use nnx train digits_mlp"),
        ("train digits", "one of: digits_cnn, digits_mlp, digits_rnn, digits_transformer"),
        ("train DIGITS_MLP", "did you mean 'digits_mlp'?"),
        ("init digits_mlp --out x.yaml", "--out x.yaml: names the folder"),
        ("eval digits_mlp", "digits_mlp: is a recipe, not a run; train it first: nnx train digits_mlp"),
        ("eval nothing", "nothing: no such file; name a run folder, or a checkpoint in one"),
    ],
)
def test_a_wrong_command_line_is_answered_with_what_does_it(nnx, tmp_path, words, answer):
    result = nnx(*words.split())
    assert result.code == 2
    assert answer in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") <= 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("train.lr=0.1", "'optimizer.lr'"),
        ("optimizer.learning_rate=0.1", "'optimizer.lr'"),
        ("model.epochs=3", "'train.epochs'"),
        ("dataset.batch_size=3", "'train.batch_size'"),
        ("train.optimizer=sgd", "'optimizer'"),
        ("train.flip=horizontal", "'train.augment.flip'"),
        ("flip=horizontal", "'train.augment.flip'"),
        ("train.dropout=0.1", "'model.dropout'"),
        ("Seed=1", "'seed'"),
        ("train.Epochs=1", "'epochs'"),
        ("model.hiden=3", "'hidden'"),
    ],
)
def test_a_key_in_the_wrong_section_names_the_right_one(nnx, setting, answer):
    result = nnx("check", "digits_mlp", "--set", setting)
    assert result.code == 2
    assert f"unknown key, did you mean {answer}?" in result.err


def test_a_key_that_a_component_lacks_is_not_suggested_for_it(nnx):
    result = nnx("check", "digits_mlp", "--set", "optimizer.momentum=0.9")  # adam has none
    assert "unknown key, one of: beta1, " in result.err


@pytest.fixture
def trained(nnx, tmp_path):
    """A run in runs/mlp, a config and an image that only exists by name."""
    settings = ("train.epochs=1", "train.report=false", "model.hidden=[8]")
    words = [word for setting in settings for word in ("--set", setting)]
    assert nnx("train", "digits_mlp", *words, "--out", "runs/mlp").code == 0
    (tmp_path / "own.yaml").write_text("dataset: digits\nmodel: mlp\n")
    (tmp_path / "a.png").write_bytes(b"")
    return nnx


def test_a_run_in_the_wrong_place_is_answered_with_the_right_one(trained):
    for words, answer in (
        ("eval mlp", "mlp: no such file, did you mean 'runs/mlp'?"),
        ("eval runs/mlp/config.yaml", "is not a checkpoint; did you mean 'runs/mlp'?"),
        ("eval own.yaml", "own.yaml: is a config, not a checkpoint; train it first: nnx train own.yaml"),
        ("predict a.png runs/mlp", "the checkpoint comes first: nnx predict runs/mlp a.png"),
        ("explain a.png runs/mlp/last.pt", "the checkpoint comes first: nnx explain runs/mlp/last.pt a.png"),
        ("explain runs/mlp filters", "filters: no such image; it is an explainer: --only filters"),
        ("predict runs/mlp a.png --csv out.csv", "--csv prints the result, and the shell writes it: > out.csv"),
        ("trace runs/mlp/checkpoint", "did you mean 'runs/mlp/checkpoint.pt'?"),
        ("train runs/mlp/checkpoint.pt", "resume its run with: nnx train --resume runs/mlp"),
        ("train --resume runs", "runs: has no last.pt to resume from"),
        ("runs/mlp", "Use nnx eval runs/mlp"),
        ("export runs/mlp", "Missing option '--format': html, numpy, onnx"),
        ("export runs/mlp --format ONNX", "did you mean 'onnx'?"),
    ):
        result = trained(*words.split())
        assert (result.code, answer in result.err) == (2, True), (words, result.err)


def test_resume_may_follow_its_run(trained):
    result = trained("train", "runs/mlp", "--resume", "--json")
    assert (result.code, '"run": "runs/mlp"' in result.out) == (0, True)
