import errno
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("PIL")
from a2os2a_jax import main  # noqa: E402
from a2os2a_jax.commands import certify, export  # noqa: E402
from a2os2a_jax.data import pipeline  # noqa: E402
from a2os2a_jax.interop import export as exports  # noqa: E402
from a2os2a_jax.train import inference, workdir  # noqa: E402
from tests import forged  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The DIR of a run whose data are gone."""
    root = tmp_path_factory.mktemp("forged")
    c = forged.config(forged.pictures(root / "photos"))
    forged.run(root / "run", c)
    (root / "photos").rename(root / "elsewhere")
    return root / "run"


@pytest.fixture(scope="module")
def about(run):
    """model.json of its export."""
    return export.run(inference.config_of(str(run)), str(run))


def call(*flags):
    return main.main(["main", *map(str, flags)])


def test_it_describes_the_run(run, about):
    assert about == json.loads((run / "export" / "model.json").read_text())
    assert about["metrics"] == {"split": "test", **forged.SCORES}
    assert (about["step"], about["weights"], about["seed"]) == (6, "plain", 0)
    assert about["trained_by"]["commit"] == "abc"
    assert about["versions"] == workdir.versions()
    assert about["terms"] == {"data": "not known", "weights": export.UNSTATED}
    assert about["data"]["class_names"] == list(forged.NAMES)
    assert about["config"]["model"]["variant"] == "1-16"
    # names of folders stay at home
    text = (run / "export" / "model.json").read_text()
    assert str(run.parent) not in text + (run / "export" / "README.md").read_text()
    assert about["config"]["data"]["name"] == "folder:photos" == about["data"]["name"]


def test_the_certificate_is_that_of_the_folded_model(run, about):
    ready = inference.load(inference.config_of(str(run)), str(run))
    folded = inference.folded(ready.model, ready.spec, ready.variables)
    report = certify.certify(*folded, (1, 8, 8, 3))
    found = about["certificate"]
    assert found["addition_only"] and found["summary"] == report.summary()
    assert found["counts"] == report.counts


def test_the_card_says_what_it_takes(run, about):
    card = (run / "export" / "README.md").read_text()
    mean = ", ".join(f"{m:.4g}" for m in about["data"]["mean"])
    for words in (
        f"x = (pixel / 255 - ({mean})) / (",
        "float32 `[b, 8, 8, 3]`",
        "Height 8, width 8, 3 channels (red, green, blue)",
        "0.875 of its shorter side",
        "classes, 3: blue, green, red",
        "test accuracy 50.00 % of 9, loss 1.2500, seed 0",
        "addition-only: multiplication-free",
        "- data: not known",
        f"- weights: {export.UNSTATED}",
        'model = load(".")',
    ):
        assert words in card, words


def test_odd_names_stay_on_their_line_of_the_card(about):
    names = ["a\n\n## b", "caf\udce9", "x" * 200, *about["data"]["class_names"][3:]]
    odd = {**about["data"], "class_names": names, "name": "folder:caf\udce9\n# x"}
    card = export.card({**about, "data": odd})
    (line,) = (x for x in card.splitlines() if x.startswith("- classes, "))
    assert r"a ## b, caf\xe9, xxx" in line and len(line) < 300
    assert card.startswith("# ") and r"trained on folder:caf\xe9 # x" in card
    assert card.encode() and "\n# x" not in card


@pytest.mark.parametrize("kind", ["a2os2a", "vssa"])
def test_the_card_says_a2os2a_of_a_model_that_has_it(about, kind):
    about = json.loads(json.dumps(about))
    about["config"]["model"]["attention"]["kind"] = kind
    text = export.card(about)
    assert ("addition-only attention (A2OS2A" in text) == (kind == "a2os2a")
    if kind != "a2os2a":
        assert "\nA spiking transformer, exported by a2os2a_jax. It stands" in text


def test_the_next_commands_are_whole_and_quoted():
    place = Path("my runs") / "export"
    pictures = pipeline.Spec("x", (8, 8, 1), 2)
    assert export._next(place, pictures) == [
        "python -m a2os2a_jax.main --mode=predict --workdir='my runs/export' "
        "--image=FILE_OR_FOLDER",
        "python 'my runs/export/load.py'",
    ]
    assert len(export._next(place, pictures._replace(shape=(5, 6)))) == 1


def test_a_folder_that_cannot_be_written_is_found_before_the_model_is_loaded(
    run, capsys, monkeypatch
):
    monkeypatch.setattr(inference, "load", None)

    def read_only(**_):
        raise OSError(errno.EROFS, "Read-only file system", "somewhere")

    monkeypatch.setattr(exports.tempfile, "TemporaryFile", read_only)
    assert call(f"--workdir={run}", "--mode=export") == 1
    want = f"error: export: cannot write {run}/export: Read-only file system, expected"
    assert capsys.readouterr().err.startswith(want)


def test_the_command_again_keeps_it_and_another_step_has_its_own(run, about, capsys):
    before = {p: p.read_bytes() for p in (run / "export").iterdir()}
    capsys.readouterr()
    assert call(f"--workdir={run}", "--mode=export") == 0
    out = capsys.readouterr().out
    assert "holds the same already" in out and "next: " in out
    flags = ["--mode=export", "--config.eval.checkpoint=4"]
    assert call(f"--workdir={run}", *flags) == 0
    assert f"wrote {run / 'export_step4'}: " in capsys.readouterr().out
    other = exports.read(run / "export_step4")
    assert other["step"] == 4 and other["metrics"] is None
    card = (run / "export_step4" / "README.md").read_text()
    assert "scores: none on record of these weights" in card
    assert {p: p.read_bytes() for p in (run / "export").iterdir()} == before


def test_what_is_there_and_differs_is_refused_in_one_line(run, about, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    result = workdir.read_json(copy / "result.json")
    workdir.write_json(copy / "result.json", result | {"commit": "def"})
    assert call(f"--workdir={copy}", "--mode=export") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: export: ") and err.count("\n") == 1
    assert "holds another export, which differs in trained_by" in err


def test_no_run_is_one_line_and_leaves_nothing(tmp_path, capsys):
    assert call(f"--workdir={tmp_path / 'new'}", "--mode=export") == 1
    err = capsys.readouterr().err
    assert "got neither config.json nor model.json, expected the DIR" in err
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_not_exported_again(run, about, capsys):
    assert call(f"--workdir={run / 'export'}", "--mode=export") == 1
    assert "expected the DIR of a trained run" in capsys.readouterr().err


def test_scores_are_those_of_just_these_weights(run, tmp_path):
    config = inference.config_of(str(run))
    ready = inference.load(config, str(run))
    assert export.scores(ready, run)["accuracy"] == 0.5
    lines = [
        {"steps": [6], "changed": {"timesteps": 4}, "split": "a"},
        {"steps": [4, 6], "changed": {"average": 2}, "split": "b"},
        {"steps": [6], "changed": {}, "split": "c", "accuracy": 0.7, "count": 3},
        {"steps": [6], "changed": {"size": 9}, "split": "d"},
        {"steps": [4], "changed": {}, "split": "e"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "evaluations.jsonl").write_text(text)
    assert export.scores(ready, tmp_path)["split"] == "c"
    averaged = ready._replace(about=ready.about | {"weights": "average"})
    assert export.scores(averaged, tmp_path)["split"] == "c"
    config.eval.ema = False
    without = ready._replace(config=config)  # of a run that had an average
    (tmp_path / "evaluations.jsonl").write_text(
        json.dumps({"steps": [6], "changed": {"ema": False}, "split": "f"}) + "\n"
    )
    assert export.scores(without, tmp_path)["split"] == "f"
    assert export.scores(averaged, tmp_path) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits", "CC BY 4.0 at UCI"),
        ("cifar10_dvs", "CC BY 4.0"),
        ("fake", "made up"),
        ("folder:photos", "not known"),
    ],
)
def test_terms_are_told_as_far_as_they_are_known(name, words):
    assert words in export.terms(name)


def test_names_of_folders_are_cut():
    assert export._without_folders("folder:/home-of/me/photos") == "folder:photos"
    assert export._without_folders("tfds:eurosat/rgb") == "tfds:eurosat/rgb"
    assert export._without_folders("digits") == "digits"


def test_pixels_become_numbers_as_the_formula_says():
    spec = pipeline.Spec("x", (8, 8, 1), 2, mean=(0.25,), std=(0.5,))
    assert export.formula(spec) == "(pixel / 255 - 0.25) / 0.5"
    three = spec._replace(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 0.5))
    assert export.formula(three) == "(pixel / 255 - (0.1, 0.2, 0.3)) / (1, 1, 0.5)"
