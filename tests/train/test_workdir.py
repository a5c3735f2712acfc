"""Whose a directory is, and what a result says of where it comes from."""

import json
import shutil
import subprocess

import jax
import pytest

from a2os2a_jax import config as configs
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
