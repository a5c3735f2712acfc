"""Whose a directory is, and what a result says of where it comes from."""

import dataclasses
import json
import shutil
import subprocess

import jax
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax.data import pipeline
from a2os2a_jax.train import parallel, workdir


def test_an_empty_or_new_folder_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "deep", tmp_path / "empty"):
        assert workdir.claim(folder, configs.default()) is None
        assert [p.name for p in folder.iterdir()] == ["config.json"]
        written = json.loads((folder / "config.json").read_text())
        assert written == configs.to_json(configs.default())


def test_a_folder_that_no_run_made_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no config.json"):
        workdir.claim(tmp_path, configs.default())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_same_config_finds_its_result_and_another_is_refused(tmp_path):
    config = configs.default()
    workdir.claim(tmp_path, config)
    assert workdir.claim(tmp_path, config) is None
    workdir.write_json(tmp_path / "result.json", {"steps": 3})
    config.eval.batch = 7  # may differ
    assert workdir.claim(tmp_path, config) == {"steps": 3}
    config.seed = 5
    with pytest.raises(ValueError, match="seed was 0, is 5. Take another --workdir"):
        workdir.claim(tmp_path, config)


LITTER = [
    *(".DS_Store", "nohup.out", "slurm-1.out", "slurm-1.err", "train.log", "job.o123"),
    *("._x", "Thumbs.db", "__MACOSX/a/._b", "@eaDir/x@SynoEAStream", "logs/a.log"),
    *(".ipynb_checkpoints/a-checkpoint.ipynb", ".nfs0001", ".config.json.tmp"),
]


def test_common_litter_is_passed_over_with_a_count(tmp_path, capsys):
    for name in LITTER:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert workdir.claim(tmp_path, configs.default()) is None
    assert (tmp_path / "config.json").exists()
    for name in LITTER[:-1]:
        assert (tmp_path / name).exists()
    out = capsys.readouterr().out
    assert "passed over 13 of no run's files: .DS_Store, ._b, ._x" in out


@pytest.mark.parametrize("name", ["thesis.tex", "a.log/thesis.tex", "logs/a.py", "a"])
def test_what_somebody_made_is_not_litter(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / "nohup.out").touch()
    with pytest.raises(ValueError, match="is not empty and holds no config.json"):
        workdir.claim(tmp_path, configs.default())


# ---- a workdir in which nothing was trained


def _other(seed=5):
    config = configs.default()
    config.seed = seed
    return config


def _first_try(folder, seed=0, step=None):
    """What a run leaves that failed in its first steps."""
    workdir.claim(folder, _other(seed))
    (folder / "data.json").write_text('{"name": "a"}')
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "tensorboard").mkdir()
    if step is not None:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)


@pytest.mark.parametrize("step", [None, 0], ids=["none", "that of init_from"])
def test_where_nothing_was_trained_another_config_may_begin(tmp_path, capsys, step):
    for number, seed in enumerate((5, 6), 1):
        _first_try(tmp_path, seed - 1, step)
        assert workdir.claim(tmp_path, _other(seed)) is None
        out = capsys.readouterr().out
        assert f"nothing was trained: seed was {seed - 1}, is {seed}. " in out
        found = _contents(tmp_path)
        assert json.loads(found["config.json"])["seed"] == seed
        assert json.loads(found[f"config.{number}.json"])["seed"] == seed - 1
        assert found[f"data.{number}.json"] == '{"name": "a"}'
        assert found[f"metrics.{number}.jsonl"] == '{"step": 1}\n'
        for name in ("data.json", "metrics.jsonl", "tensorboard", "checkpoints"):
            assert not (tmp_path / name).exists()
        kept = f"checkpoints.{number}" in {p.name for p in tmp_path.iterdir()}
        assert kept == (step == 0)
    assert workdir.claim(tmp_path, _other(6)) is None  # and is this config's alone


def _contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_text() for p in files}


@pytest.mark.parametrize("what", ["checkpoint", "result"])
def test_where_something_was_trained_no_other_config_may(tmp_path, what):
    _first_try(tmp_path, step=3 if what == "checkpoint" else None)
    if what == "result":
        workdir.write_json(tmp_path / "result.json", {})
    before = _contents(tmp_path)
    with pytest.raises(ValueError, match="seed was 0, is 5. Take another --workdir"):
        workdir.claim(tmp_path, _other())
    assert _contents(tmp_path) == before


def test_only_training_takes_it_over(tmp_path):
    _first_try(tmp_path)
    before = _contents(tmp_path)
    with pytest.raises(ValueError, match="another config: seed was 0, is 5"):
        workdir.open_run(_other(), tmp_path)
    assert _contents(tmp_path) == before


def test_one_that_is_killed_while_it_takes_over_leaves_a_config(tmp_path, monkeypatch):
    _first_try(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(workdir.Path, "rename", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            workdir.claim(tmp_path, _other())
    assert workdir.claim(tmp_path, _other()) is None
    assert _contents(tmp_path)["metrics.2.jsonl"]


# ---- the data of a run


def _dataset(train=9, test=4, **changes):
    def split(size):
        return pipeline.resident_split(np.zeros((size, 4, 4, 3)), np.zeros(size, int))

    made = pipeline.Dataset(
        name="folder:pictures",
        shape=(4, 4, 3),
        classes=3,
        class_names=("ape", "bat", "cat"),
        mean=(0.1, 0.2, 0.3),
        std=(0.1, 0.2, 0.3),
        train=split(train),
        test=split(test),
        about="9 pictures",
        stamp="13 files, 0a",
    )
    return dataclasses.replace(made, **changes)


def _settle(folder, changed=False, trained=True, **changes):
    config = configs.default()
    config.data.changed = changed
    workdir.settle_data(folder, config, _dataset(**changes))
    if trained:
        (folder / "checkpoints" / "3").mkdir(parents=True, exist_ok=True)


OTHER_DATA = {  # changes -> how it is named
    "sizes.train was 9, is 10": dict(train=10),
    "sizes.test was 4, is 5": dict(test=5),
    "sizes.validation was None, is 4": dict(validation=_dataset().test),
    "stamp was '13 files, 0a', is '13 files, 0b'": dict(stamp="13 files, 0b"),
    "class_names[1] was 'bat', is 'bee'.": dict(class_names=("ape", "bee", "cat")),
    "class_names[0] was 'ape', is 'cat'; class_names[1] was 'bat', is 'ape'; and 1 "
    "more of class_names.": dict(class_names=("cat", "ape", "bat")),
    "classes was 3, is 4; class_names[3] was None, is 'dog'.": dict(
        classes=4, class_names=("ape", "bat", "cat", "dog")
    ),
    "mean[0] was 0.1, is 0.1001.": dict(mean=(0.1001, 0.2, 0.3)),
    "shape[0] was 4, is 8.": dict(shape=(8, 4, 3)),
    "stored was None, is [4, 4]": dict(stored=(4, 4)),
}


@pytest.mark.parametrize("named", OTHER_DATA)
def test_other_data_are_named_and_refused(tmp_path, named):
    _settle(tmp_path)
    before = _contents(tmp_path)
    with pytest.raises(ValueError) as error:
        _settle(tmp_path, **OTHER_DATA[named])
    text = str(error.value)
    assert f"holds a run of other data: {named}" in text and "\n" not in text
    assert text.endswith("--config.data.changed=True") and len(text) < 400
    assert _contents(tmp_path) == before


def test_the_same_data_elsewhere_are_the_same(tmp_path):
    _settle(tmp_path)
    before = _contents(tmp_path)
    mean = (0.1 * (1 + 1e-8), 0.2, 0.3)
    _settle(tmp_path, name="folder:copy", about="pictures", note="new", mean=mean)
    assert _contents(tmp_path) == before


def test_on_purpose_it_goes_on_and_keeps_what_it_knew(tmp_path, capsys):
    _settle(tmp_path)
    before = _contents(tmp_path)["data.json"]
    capsys.readouterr()
    _settle(tmp_path, changed=True, train=10)
    out = capsys.readouterr().out
    assert "other data: sizes.train was 9, is 10. It goes on with them" in out
    assert _contents(tmp_path)["data.1.json"] == before
    _settle(tmp_path, train=10)  # which is what it is bound to now
    with pytest.raises(ValueError, match="sizes.train was 10, is 9"):
        _settle(tmp_path)


def test_a_finished_run_keeps_what_it_knew(tmp_path):
    _settle(tmp_path)
    workdir.write_json(tmp_path / "result.json", {})
    before = _contents(tmp_path)
    with pytest.raises(ValueError, match="sizes.train was 9, is 10"):
        _settle(tmp_path, train=10)
    _settle(tmp_path, changed=True, train=10)
    assert _contents(tmp_path) == before


def test_before_the_first_checkpoint_no_data_bind(tmp_path):
    _settle(tmp_path, trained=False)
    before = _contents(tmp_path)["data.json"]
    _settle(tmp_path, trained=False, train=10)
    found = _contents(tmp_path)
    assert json.loads(found["data.json"])["sizes"] == {"train": 10, "test": 4}
    assert found["data.1.json"] == before


def test_an_older_run_is_held_to_what_it_knows_and_learns_the_rest(tmp_path):
    _settle(tmp_path)
    path = tmp_path / "data.json"
    whole = json.loads(path.read_text())
    older = {k: v for k, v in whole.items() if k not in ("sizes", "stamp", "about")}
    workdir.write_json(path, older | {"about": "as it was"})
    with pytest.raises(ValueError, match="other data: classes was 3, is 4"):
        _settle(tmp_path, classes=4)
    _settle(tmp_path, train=10)
    assert json.loads(path.read_text()) == whole | {
        "about": "as it was",
        "sizes": {"train": 10, "test": 4},
    }
    with pytest.raises(ValueError, match="sizes.train was 10, is 9"):
        _settle(tmp_path)
    assert pipeline.Spec.from_json(json.loads(path.read_text())).classes == 3


def test_a_stamp_that_came_later_is_no_difference(tmp_path):
    _settle(tmp_path, stamp="")
    _settle(tmp_path)
    with pytest.raises(ValueError, match="stamp was '13 files, 0a', is 'none'"):
        _settle(tmp_path, stamp="none")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00\x01"])
@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_broken_file_is_named(tmp_path, name, text):
    workdir.claim(tmp_path, configs.default())
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: got .* expected one JSON object"):
        workdir.claim(tmp_path, configs.default())
    assert (tmp_path / name).read_text() == text


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be made: Not a directory"):
        workdir.claim(tmp_path / "file" / "run", configs.default())


def test_nothing_is_loaded_where_no_run_is(tmp_path):
    with pytest.raises(ValueError, match="got no config.json, expected a run to load"):
        workdir.load_trained(configs.default(), tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    workdir.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        workdir.write_json(path, {"a": float("nan")})
    assert workdir.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


# --- the commit: of a copy of the package, in a process of its own


def _git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    line = ["git", "-C", str(folder), *who, *words]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A package within a repository, of which `commit` then speaks."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    package = tmp_path / "a2os2a_jax"
    (package / "train").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train" / "workdir.py").touch()
    (tmp_path / "README").touch()
    _git(tmp_path, "init", "-q")
    monkeypatch.setattr(workdir, "__file__", str(package / "train" / "workdir.py"))
    return tmp_path


def test_commit_names_the_commit_and_whether_files_differ(copy):
    _git(copy, "add", ".")
    _git(copy, "commit", "-qm", "All")
    name = _git(copy, "rev-parse", "HEAD")
    assert workdir.commit() == name
    (copy / "README").write_text("a result depends on the package alone")
    assert workdir.commit() == name
    new = copy / "a2os2a_jax" / "new.py"
    new.touch()
    assert workdir.commit() == name + "+changes"
    new.unlink()
    (copy / "a2os2a_jax" / "__init__.py").write_text("1")
    assert workdir.commit() == name + "+changes"


def test_a_repository_that_does_not_hold_the_package_names_no_commit(copy):
    _git(copy, "add", "README")
    _git(copy, "commit", "-qm", "A package installed below it is not its own")
    assert workdir.commit() is None


def test_without_git_there_is_no_commit(copy, monkeypatch):
    monkeypatch.setenv("PATH", str(copy))
    assert workdir.commit() is None


def test_device_counts_those_of_the_mesh():
    text = workdir.device(parallel.make_mesh(1))
    assert text.startswith("1 x ") and jax.devices()[0].device_kind in text


def test_versions_are_those_installed():
    assert workdir.versions()["jax"] == jax.__version__
    assert workdir.versions().keys() == set(workdir.PACKAGES)
