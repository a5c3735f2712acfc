import json
import sys
import types

import numpy as np
import pytest

from a2os2a_jax.data import catalogue, images, prepare, recordings


def one_line(err, *needles):
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    for needle in needles:
        assert needle in line


def test_what_is_there_is_read_in_full(tfds_dir, capsys):
    root = tfds_dir("cifar100_small")
    assert prepare.main(["cifar100_small", f"--data_dir={root}"]) == 0
    out = capsys.readouterr().out
    assert "cifar100_small train: 3,000 records, 0 unreadable" in out
    assert "--config.data.name=tfds:cifar100_small" in out


def test_what_is_not_there_needs_tensorflow_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert prepare.main(["cifar10", f"--data_dir={tmp_path}"]) == 1
    one_line(capsys.readouterr().err, "'.[prepare]'", "cifar10 is not in")
    assert prepare.main(["cifar10", f"--data_dir={tmp_path}", "--check"]) == 1
    one_line(capsys.readouterr().err, "found no cifar10")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", prepare.WHERE)
def test_recordings_are_fetched_by_hand(name, tmp_path, capsys):
    assert prepare.main([name, f"--data_dir={tmp_path}"]) == 1
    one_line(capsys.readouterr().err, f"{tmp_path}/{name}", "Download", "Terms")


@pytest.fixture
def nmnist(tmp_path):
    """A set of one recording for each digit and part; capitals are as they may be."""
    for part in ("Train", "test"):
        for digit in range(10):
            folder = tmp_path / "N-MNIST" / part / str(digit)
            folder.mkdir(parents=True)
            t = 1000 * np.arange(40)
            event = np.stack([t % 7, t % 5, 128 | t >> 16, t >> 8 & 255, t & 255], 1)
            (folder / "00001.bin").write_bytes(event.astype(np.uint8).tobytes())
    return tmp_path


def test_checking_recordings_writes_nothing(nmnist, capsys):
    before = sorted(nmnist.rglob("*"))
    assert prepare.main(["nmnist", f"--data_dir={nmnist}", "--check"]) == 0
    out = capsys.readouterr().out
    assert "nmnist: 20 recordings, 0 unreadable" in out and "is ready" in out
    assert sorted(nmnist.rglob("*")) == before
    assert prepare.main(["nmnist", f"--data_dir={nmnist}", "--timesteps=4"]) == 0
    out = capsys.readouterr().out
    assert "10 + 10 recordings as frames [4, 34, 34, 2]" in out and "is ready" in out
    assert list((nmnist / "N-MNIST").glob(".frames-4-*"))


@pytest.mark.parametrize("check", [["--check"], []])
def test_a_recording_that_cannot_be_read_is_told(nmnist, capsys, check):
    path = nmnist / "N-MNIST" / "Train" / "3" / "00001.bin"
    path.write_bytes(path.read_bytes()[:-2])
    assert prepare.main(["nmnist", f"--data_dir={nmnist}", *check]) == 1
    said = capsys.readouterr()
    assert "ready" not in said.out and "next:" not in said.out
    assert said.err.splitlines()[-1].startswith("error: nmnist: not all of it can be")
    assert str(path) in said.out + said.err
    assert not check or "20 recordings, 1 unreadable" in said.out


@pytest.mark.parametrize("check", [["--check"], []])
def test_stray_events_and_litter_are_counted(nmnist, capsys, check):
    for part in ("Train", "test"):
        folder = nmnist / "N-MNIST" / part / "3"
        path = folder / "00001.bin"
        path.write_bytes(path.read_bytes() + bytes([99, 1, 0, 0, 0]))
        (folder / "._00001.bin").write_bytes(b"left by another system")
    assert prepare.main(["nmnist", f"--data_dir={nmnist}", *check]) == 0
    said = capsys.readouterr()
    assert "nmnist: passed over 2 files or folders that are no reco" in said.err
    assert said.err.count("passed over") == 1
    counted = "nmnist: 2 events outside" if check else "nmnist: left out 2 events outs"
    assert counted in said.out + said.err


@pytest.mark.parametrize("check", [["--check"], []])
def test_a_picture_that_cannot_be_read_is_told(tiny_tfds, encode, capsys, check):
    rows = [(encode(np.full((4, 4, 3), i, np.uint8)), i % 4) for i in range(8)]
    rows[3] = (rows[3][0][:40], 3)
    root = tiny_tfds("made", {"train": rows[:4], "test": rows[4:]})
    assert prepare.main(["made", f"--data_dir={root}", *check]) == 1
    said = capsys.readouterr()
    assert "made train: 4 records, 1 unreadable\n  record 3 of made train:" in said.out
    assert "made test: 4 records, 0 unreadable" in said.out
    assert "ready" not in said.out and "next:" not in said.out
    one_line(said.err, "made: not all of it can be read", "data.corrupt=skip")


def test_a_split_without_labels_is_no_part_of_a_set(tiny_tfds, encode, capsys):
    rows = [(encode(np.zeros((4, 4, 3), np.uint8)), i % 4) for i in range(8)]
    splits = {"train": rows, "validation": rows, "test": [(rows[0][0], -1)]}
    root = tiny_tfds("imagenet2012", splits)
    assert prepare.main(["imagenet2012", f"--data_dir={root}"]) == 0
    out = capsys.readouterr().out
    assert "imagenet2012 validation: 8 records, 0 unreadable" in out
    assert "imagenet2012 test: 1 records, of no use here" in out


def test_another_format_is_there_and_not_written_over(tiny_tfds, encode, capsys):
    rows = [(encode(np.zeros((4, 4, 3), np.uint8)), 0)] * 8
    root = tiny_tfds("mnist", {"train": rows})
    (path,) = tiny_info(root)
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"})
    )
    for check in ([], ["--check"]):
        assert prepare.main(["mnist", f"--data_dir={root}", *check]) == 1
        one_line(capsys.readouterr().err, "in another format, tfrecord", "move it away")


def tiny_info(root):
    return list(prepare.Path(root).glob("*/*/dataset_info.json"))


@pytest.mark.parametrize("instructions", ["two tars:\n  train.tar, val.tar", None])
def test_what_is_to_be_downloaded_by_hand_is_said(
    tmp_path, monkeypatch, capsys, instructions
):
    def download_and_prepare():
        raise AssertionError(f"nothing there\n{instructions}")

    made = types.SimpleNamespace(
        MANUAL_DOWNLOAD_INSTRUCTIONS=instructions,
        download_and_prepare=download_and_prepare,
    )
    stub = types.SimpleNamespace(builder=lambda name, **_: made)
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stub)
    assert prepare.main(["imagenet2012", f"--data_dir={tmp_path}"]) == 1
    if instructions is None:  # a fault of another kind
        one_line(capsys.readouterr().err, "AssertionError: nothing there")
        return
    one_line(capsys.readouterr().err, f"{tmp_path}/downloads/manual", "val.tar")


def test_a_set_with_configs_is_written_and_named_with_its_own(
    tiny_tfds, encode, tmp_path, monkeypatch, capsys
):
    import tensorflow_datasets

    rows = [(encode(np.zeros((4, 4, 3), np.uint8)), i % 4) for i in range(8)]
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))

    def download_and_prepare():
        monkeypatch.delitem(sys.modules, "tensorflow")
        tiny_tfds("sat", {"train": rows}, config="rgb")

    made = types.SimpleNamespace(
        name="sat",
        builder_config=types.SimpleNamespace(name="rgb"),
        download_and_prepare=download_and_prepare,
    )
    monkeypatch.setattr(tensorflow_datasets, "builder", lambda name, **_: made)
    root = tmp_path / "tfds"
    assert prepare.main(["sat", f"--data_dir={root}"]) == 0
    out = capsys.readouterr().out
    assert "sat/rgb train: 8 records, 0 unreadable" in out
    assert "--config.data.name=tfds:sat/rgb" in out
    for check in ([], ["--check"]):  # written once
        assert prepare.main(["sat", f"--data_dir={root}", *check]) == 1
        one_line(capsys.readouterr().err, "got sat, which has configs", "sat/rgb")
        assert prepare.main(["sat/rgb", f"--data_dir={root}", *check]) == 0
        capsys.readouterr()


def test_a_file_that_is_missing_or_cut_is_told_once(tiny_tfds, encode, capsys):
    rows = [(encode(np.zeros((4, 4, 3), np.uint8)), i % 4) for i in range(8)]
    root = tiny_tfds("made", {"train": rows, "test": rows})
    (path,) = prepare.Path(root).rglob("*train.array_record*")
    content = path.read_bytes()
    path.unlink()
    for reason in ("No such file", "it is cut or damaged"):
        assert prepare.main(["made", f"--data_dir={root}", "--check"]) == 1
        said = capsys.readouterr()
        assert f"made train: 1 files, 1 unreadable\n  {path}: " in said.out
        assert reason in said.out and "record 0" not in said.out
        assert "made test: 8 records, 0 unreadable" in said.out
        one_line(said.err, "made: got 1 files that are not whole; copy the set anew")
        path.write_bytes(content[:-1000])


def test_cuts_are_not_offered(tmp_path, capsys):
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    offered = capsys.readouterr().out
    assert "imagenet2012" in offered and "ncaltech101" in offered
    for name in catalogue.CUTS:
        assert name not in offered
        assert prepare.main([name, f"--data_dir={tmp_path}"]) == 1
        one_line(capsys.readouterr().err, f"found no {name}", "a cut, which nothing")
    assert set(catalogue.KNOWN) == {*prepare.STOCK, *prepare.WHERE, *catalogue.CUTS}
    assert set(prepare.WHERE) <= set(recordings.KINDS)


def test_a_cut_of_recordings_is_read(tfds_dir, capsys):
    root = tfds_dir("nmnist_sample")
    argv = ["nmnist_sample", f"--data_dir={root}", "--timesteps=2", "--check"]
    assert prepare.main(argv) == 0
    out = capsys.readouterr().out
    assert "600 + 100 recordings" in out
    assert "--config.data.name=nmnist_sample" in out


def test_the_unreadable_are_listed(encode):
    class Made:
        rows = [encode(np.zeros((4, 4, 3), np.uint8)), b"", b"\x89PNG"]

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return images.Record(self.rows[index], 0)

        def name(self, index):
            return f"row {index}"

    found = prepare.unreadable(Made(), images.Target(4, 3, 1, (4, 4)))
    assert [text[:6] for text in found] == ["row 1:", "row 2:"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("pw_name"), "KeyError: 'pw_name'; --traceback shows"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines; --traceback shows"),
        (MemoryError(), "out of memory on the host; --traceback shows"),
        (OSError(28, "No space left on device"), "expected room on the disk"),
    ],
)
def test_whatever_goes_wrong_is_one_line(error, words, monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise error

    monkeypatch.setattr(prepare, "there", fail)
    line = ["mnist", f"--data_dir={tmp_path}"]
    assert prepare.main(line) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert words in err
    with pytest.raises(type(error)):
        prepare.main([*line, "--traceback"])


def test_it_can_be_stopped(monkeypatch, capsys, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "there", stop)
    assert prepare.main(["mnist", f"--data_dir={tmp_path}"]) == 130
    assert capsys.readouterr() == ("interrupted\n", "")


def test_a_home_directory_is_looked_up_at_the_door(monkeypatch, tmp_path, capsys):
    given = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(prepare, "there", lambda name, place, check: name)
    monkeypatch.setattr(prepare, "pictures", lambda *of: given.append(of) or True)
    assert prepare.main(["mnist", "--data_dir", "~/sets"]) == 0
    assert given == [("mnist", str(tmp_path / "sets"), None)]
    assert f"data_dir={tmp_path / 'sets'}" in capsys.readouterr().out
