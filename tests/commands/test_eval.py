import json
import shutil
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax.commands import eval as evaluation
from a2os2a_jax.interop import weights
from a2os2a_jax.train import finetune, loop, metrics, setup
from a2os2a_jax.train import trained as trained_runs
from a2os2a_jax.train.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Toy(nn.Module):
    """Compiles at once; any image size and T; better from step to step."""

    classes: int = 10
    timesteps: int = 4
    frozen = ()

    @nn.compact
    def __call__(self, x, train=False, per_step=False):
        self.variable("batch_stats", "none", lambda: np.zeros(1, np.float32))
        self.sow("spikes", "out", x)
        self.sow("potentials", "out", x)
        four = jax.image.resize(x, (len(x), 4, 4, x.shape[-1]), "linear")
        scores = nn.Dense(self.classes)(four.reshape(len(x), -1))
        gain = jnp.arange(2 - self.timesteps, 2 + self.timesteps, 2)  # of mean 1
        scores = gain[None, :, None] * scores[:, None]
        return scores if per_step else scores.mean(1)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(
        setup, "build", lambda *_, **k: Toy(k["num_classes"], k["timesteps"])
    )


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def _config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=4, channels=1)
    c.train.update(batch=64, log_steps=2)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@pytest.fixture(scope="module")
def _trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "build", lambda *_, **k: Toy(k["num_classes"]))
        return folder, loop.run(_config(train__save_epochs=0.25), folder)


@pytest.fixture
def trained(_trained, tmp_path):
    """(copy of a finished run, its result)."""
    folder, result = _trained
    return shutil.copytree(folder, tmp_path / "run"), result


def test_each_evaluation_adds_a_line_and_changes_nothing_else(trained, no_figures):
    workdir, result = trained
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    for options in (
        {},
        {"eval__batch": 7},
        {"eval__examples": 30},
        {"eval__split": "train"},
    ):
        evaluation.run(_run_config(**options), workdir)
    log = workdir / "evaluations.jsonl"
    first, again, few, train = metrics.read_lines(log)
    for name, value in result["test"].items():
        assert first[name] == pytest.approx(value, rel=1e-5), name
    for name in ("accuracy", "any_time", "confusion", "count", "per_class"):
        assert first[name] == again[name]
    assert few["count"] == 30
    assert (train["split"], train["count"]) == ("train", 256)
    assert (train["step"], train["device"]) == (4, result["device"])
    after = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p != log}
    assert after == before


def _run_config(**changes):
    """That of the finished run."""
    return _config(train__save_epochs=0.25, **changes)


def test_a_line_says_what_was_scored(trained, no_figures):
    workdir, _ = trained
    got = evaluation.run(
        _run_config(eval__timesteps=6, eval__size=12, eval__average=2), workdir
    )
    (line,) = metrics.read_lines(workdir / "evaluations.jsonl")
    assert line.keys() == got.keys()
    for name, value in {
        "step": 4,
        "steps": [3, 4],
        "checkpoint": "last",
        "weights": "weights",
        "split": "test",
        "data": "fake",
        "size": 12,
        "timesteps": 6,
        "changed": {"average": 2, "timesteps": 6, "size": 12},
        "count": 100,
    }.items():
        assert line[name] == value, name
    assert line["device"] and "commit" in line
    assert len(line["any_time"]) == 6 and line["any_time"][-1] == line["accuracy"]
    assert np.sum(line["confusion"]) == 100 and len(line["per_class"]) == 10
    assert 0 <= line["ece"] <= 1 and sum(line["bins"]["count"]) == 100


def test_a_run_prints_what_it_found_and_what_is_next(trained, no_figures, capsys):
    workdir, _ = trained
    got = evaluation.run(_run_config(eval__average=2), workdir)
    out, err = capsys.readouterr()
    for words in (
        f"step 4, test: accuracy {100 * got['accuracy']:.2f} %, top-5",
        "weights, mean of 2 checkpoints: steps 3, 4; fake at 4x4, T = 4",
        f"ECE {100 * got['ece']:.2f} %",
        ", ".join(f"{100 * a:.2f}" for a in got["any_time"]) + " %",
        "after 1..4 steps",
        f"wrote a line to {workdir / 'evaluations.jsonl'}",
        "next: ",
        "--config.data.validation=N",
    ):
        assert words in out, words
    assert err == "no figures: matplotlib is not installed (pip install matplotlib)\n"
    assert max(map(len, out.replace(str(workdir), "").splitlines())) < 110


def test_scores_are_kept_before_they_are_told(trained, no_figures, monkeypatch):
    workdir, _ = trained

    def fail(*_):
        raise UnicodeEncodeError("ascii", "\u9ce5", 0, 1, "ordinal not in range")

    monkeypatch.setattr(evaluation, "table", fail)
    with pytest.raises(UnicodeEncodeError):
        evaluation.run(_run_config(), workdir)
    assert len(metrics.read_lines(workdir / "evaluations.jsonl")) == 1


def test_scores_that_cannot_be_kept_are_told(trained, monkeypatch, capsys):
    workdir, _ = trained

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "_write", fail)
    with pytest.raises(OSError, match="No space left"):
        evaluation.run(_run_config(), workdir)
    assert "step 4, test: accuracy " in capsys.readouterr().out


def test_the_last_checkpoint_of_a_stopped_run_is_scored(tmp_path, no_figures, capsys):
    loop.run(_config(train__stop_after=2, data__validation=50), tmp_path)
    config = _config(eval__split="validation", data__validation=50)
    got = evaluation.run(config, tmp_path)
    assert (got["step"], got["count"]) == (2, 50)
    out = " ".join(capsys.readouterr().out.split())
    assert "step 2, validation: accuracy" in out
    assert "Nothing is chosen on test: choose on --config.eval.split=validation" in out


RECORD = {
    "step": 12,
    "split": "test",
    "steps": [12],
    "weights": "weights",
    "data": "recall",
    "size": None,
    "timesteps": 25,
    "accuracy": 0.98765,
    "top5": 1.0,
    "loss": 0.25,
    "count": 3600,
    "ece": 0.0123,
    "any_time": [i / 25 for i in range(1, 26)],
    "per_class": [0.5, None, 0.25, 1.0, 0.25],
    "per_class_count": [4, 0, 4, 4, 8],
    "confusion": np.diag([4, 0, 4, 4, 8]).tolist(),
}


def test_the_table_by_hand():
    lines = evaluation.table(RECORD, ["ant", "bee", "cow", "dog", "eel"]).splitlines()
    assert lines[0] == (
        "step 12, test: accuracy 98.77 %, top-5 100.00 %, loss 0.2500, 3,600 examples"
    )
    rest = {line[:20].strip(): line[20:].strip() for line in lines[1:]}
    assert rest["scored"] == "weights; recall, T = 25"
    assert rest["calibration"] == "ECE 1.23 %"
    assert rest["worst classes"] == (
        "cow (25.00 % of 4), eel (25.00 % of 8), ant (50.00 % of 4)"
    )
    after = rest["after 1..25 steps"].removesuffix(" %").split(", ")
    assert len(after) == 12 and after[0] == "1: 4.00" and after[-1] == "25: 100.00"


def test_figures_are_named_for_what_differs_and_never_overwritten(trained, capsys):
    pytest.importorskip("matplotlib")
    workdir, _ = trained
    config = _run_config(eval__timesteps=6, eval__examples=40)
    evaluation.run(config, workdir)
    tag = "step4-test-T6-first40.png"
    figures = {p.name: p for p in (workdir / "figures").iterdir()}
    assert sorted(figures) == [
        f"{name}_{tag}" for name in ("any_time", "confusion", "reliability")
    ]
    out = capsys.readouterr().out
    assert all(f"wrote {path}" in out for path in figures.values())
    before = {p: p.read_bytes() for p in figures.values()}
    figures[f"any_time_{tag}"].unlink()
    evaluation.run(config, workdir)
    out = capsys.readouterr().out
    assert f"wrote {figures[f'any_time_{tag}']}" in out
    assert f"kept  {figures[f'confusion_{tag}']}, which is there already" in out
    assert before == {p: p.read_bytes() for p in figures.values()}
    assert len(metrics.read_lines(workdir / "evaluations.jsonl")) == 2


def test_a_tag_names_all_that_differs_and_is_a_file_name():
    changed = {
        "average": 2,
        "ema": False,
        "data": "folder:a/b c",
        "timesteps": 8,
        "size": 16,
    }
    found = trained_runs.Trained(None, {}, (3, 4), trained_runs.PLAIN, changed)
    assert evaluation.tag(_config(eval__split="validation"), found) == (
        "step4-validation-mean_of_2-without_ema-folder_a_b_c-T8-16px"
    )
    assert evaluation.tag(_config(), found._replace(changed={})) == "step4-test"


def test_of_many_classes_there_is_no_matrix(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    bins = {"count": [3600], "accuracy": [0.9], "confidence": [0.8]}
    names = [str(i) for i in range(101)]
    record = RECORD | {"bins": bins}
    evaluation._write(record, names, tmp_path)
    evaluation._draw(record, names, "step12-test", tmp_path)
    (line,) = metrics.read_lines(tmp_path / "evaluations.jsonl")
    assert line == {k: v for k, v in RECORD.items() if k != "confusion"} | {
        "bins": bins
    }
    assert "no confusion matrix of 101 classes, at most 100" in capsys.readouterr().out
    figures = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert figures == ["any_time_step12-test.png", "reliability_step12-test.png"]


def test_scores_that_are_not_finite_are_an_error(trained, monkeypatch):
    workdir, _ = trained
    genuine = Checkpoints.restore

    def broken(self, *args, **options):
        step, state = genuine(self, *args, **options)
        return step, state._replace(
            params=jax.tree.map(lambda x: x * np.nan, state.params)
        )

    monkeypatch.setattr(Checkpoints, "restore", broken)
    with pytest.raises(FloatingPointError, match="step 4, test: loss is nan, expected"):
        evaluation.run(_run_config(), workdir)
    assert not (workdir / "evaluations.jsonl").exists()


def test_weights_of_no_run_here_are_scored_where_there_is_none(
    trained, tmp_path, no_figures, capsys
):
    workdir, result = trained
    variables, about = finetune.source(str(workdir))
    path = tmp_path / "theirs.npz"
    weights.save(path, variables, about)
    config = _config(init_from=str(path))
    record = evaluation.run(config, tmp_path / "fresh")
    assert record["accuracy"] == result["test"]["accuracy"]
    assert record["init_from"]["path"] == str(path) and record["steps"] == [0]
    assert "weights of" in capsys.readouterr().out
    (line,) = (tmp_path / "fresh" / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(line)["init_from"]["sha256"] == record["init_from"]["sha256"]
    assert not (tmp_path / "fresh" / "config.json").exists()
    with pytest.raises(ValueError, match="eval.average: got 2, expected 1.*theirs.npz"):
        evaluation.run(_config(init_from=str(path), eval__average=2), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_another_config_is_refused(trained):
    with pytest.raises(ValueError, match="another config: optim.lr was 0.001, is 0.5"):
        evaluation.run(_run_config(optim__lr=0.5), trained[0])
    assert not (trained[0] / "evaluations.jsonl").exists()


def test_a_run_without_a_checkpoint_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(configs.to_json(_config())))
    with pytest.raises(ValueError, match="got no checkpoint, expected one that loads"):
        evaluation.run(_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_other_data_are_scored_on_purpose_alone_and_the_line_says_so(
    trained, no_figures, capsys
):
    """A class folder that was renamed scored 0 %, and nothing was said."""
    workdir, result = trained
    path = workdir / "data.json"
    names = json.loads(path.read_text()) | {"class_names": [*"abcdefghij"]}
    path.write_text(json.dumps(names))
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"other data: class_names\[0\] was 'a', is "):
        evaluation.run(_config(train__save_epochs=0.25), workdir)
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
    config = _config(train__save_epochs=0.25, data__changed=True)
    record = evaluation.run(config, workdir)
    assert record["accuracy"] == result["test"]["accuracy"]
    (line,) = metrics.read_lines(workdir / "evaluations.jsonl")
    assert line["changed"]["data.changed"][0] == "class_names[0] was 'a', is '0'"
    assert "It goes on with them, as data.changed says" in capsys.readouterr().out
    found = trained_runs.load(config, workdir)
    assert evaluation.tag(config, found).endswith("-test-changed_data")
    assert path.read_text() == json.dumps(names)


def test_odd_names_of_classes_stay_on_their_line():
    names = ["x" * 199 + "y", "a\nb", "caf\udce9"]
    record = {"confusion": [[1, 1, 0]] * 3, "per_class": [0.1, 0.5, 0.0]}
    record["per_class_count"] = [2, 2, 2]
    told = evaluation._worst(record, names)
    assert "a b (50.00 % of 2)" in told and r"caf\xe9 (" in told
    assert len(told.encode()) < 120 and "y (10.00 %" in told
