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
