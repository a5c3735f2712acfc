import io
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image  # noqa: E402

from a2os2a_jax import main  # noqa: E402
from a2os2a_jax.commands import export, predict  # noqa: E402
from a2os2a_jax.data import pipeline  # noqa: E402
from a2os2a_jax.interop import loader  # noqa: E402
from a2os2a_jax.train import inference, setup, workdir  # noqa: E402
from tests import forged  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def x64(quick_compilation):
    """Numbers that no rounding moves from one spike to another."""
    with jax.enable_x64(True):
        yield


class Forged:
    """A run in float64, its export, its pictures, what its evaluation sees, and what
    predicting them gave: answers, lines of the file."""

    def __init__(self, root):
        self.photos = forged.pictures(root / "photos")
        self.config = forged.config(self.photos, dtype="float64")
        self.run, self.root = root / "run", root
        forged.run(self.run, self.config)
        parts = setup.prepare(self.config)
        split = parts.dataset.test
        batch = split.gather(split.resident, split.fetch(np.arange(split.size)))
        self.labels = np.asarray(batch["label"])
        self.ready = ready = inference.load(self.config, str(self.run))
        run = jax.jit(lambda v, x: ready.model.apply(v, x, per_step=True))
        self.per_step = np.asarray(run(ready.variables, batch["image"]))
        self.answers, answers = [], predict.answers
        self.spikes, spikes_of = [], predict.spikes_of

        def recorded(*args):
            for answer in answers(*args):
                self.answers.append(answer)
                yield answer

        def seen(*args):
            see = spikes_of(*args)

            def one(pixels):
                self.spikes.append(see(pixels))
                return self.spikes[-1]

            return one

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predict, "answers", recorded)
            patch.setattr(predict, "spikes_of", seen)
            self.lines = predict.run(
                self.config,
                str(self.run),
                image=str(self.photos / "test"),
                out=str(root / "out"),
                figures=2,
            )
        export.run(self.config, str(self.run))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Forged(tmp_path_factory.mktemp("forged"))


def call(*flags):
    return main.main(["main", "--mode=predict", *map(str, flags)])


def lines_of(folder):
    text = (folder / "predictions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def quick(made, monkeypatch):
    """The model is loaded already, and answers anything with the same numbers."""
    monkeypatch.setattr(inference, "load", lambda *_: made.ready)
    one = made.answers[0]

    def answers(ready, readable):
        for path, pixels in readable:
            yield one._replace(path=path, pixels=pixels)

    monkeypatch.setattr(predict, "answers", answers)
    monkeypatch.setattr(predict, "spikes_of", lambda _: lambda _: made.spikes[0])


def test_pictures_of_a_folder_get_the_logits_of_its_evaluation(made):
    want, got = made.per_step, made.answers
    assert np.ptp(want, axis=0).max() > 1e-2
    # the order of files is that of the folder's split
    assert [a.path.parent.name for a in got] == [forged.NAMES[i] for i in made.labels]
    np.testing.assert_allclose([a.per_step for a in got], want, rtol=0, atol=1e-5)
    np.testing.assert_allclose([a.logits for a in got], want.mean(1), rtol=0, atol=1e-5)


def test_spikes_are_those_of_the_pictures_that_are_drawn(made):
    assert len(made.spikes) == 2  # of 9 pictures, which got the same answers
    for spikes in made.spikes:
        rates = [np.mean(s != 0) for s in spikes.values()]
        assert all(0.02 < rate < 0.9 for rate in rates), rates
        assert {len(s) for s in spikes.values()} == {2}
    first, *_, last = made.spikes[0]
    assert (first, last) == ("stem/neuron_0", "block_0/out_neuron")
    # the head is linear: the steps follow from the last spikes
    head = made.ready.variables["params"]["head"]
    for spikes, answer in zip(made.spikes, made.answers, strict=False):
        features = spikes[last].mean(1)
        want = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        np.testing.assert_allclose(answer.per_step, want, atol=1e-5)


def test_lines_hold_classes_and_probabilities(made):
    assert made.lines == lines_of(made.root / "out") and len(made.lines) == 9
    p = predict.softmax(made.per_step.mean(1))
    np.testing.assert_allclose(p, jax.nn.softmax(made.per_step.mean(1)))
    for line, row in zip(made.lines, p, strict=True):
        np.testing.assert_allclose(line["probabilities"], row, atol=1e-5)
        order = np.argsort(-row)
        assert line["label"] == order[0]
        assert line["class"] == forged.NAMES[order[0]]
        assert [name for name, _ in line["top"]] == [forged.NAMES[i] for i in order]
        assert line["probability"] == line["top"][0][1] == max(line["probabilities"])
        # the last step is the answer
        np.testing.assert_allclose(
            line["per_step"][-1], [q for _, q in line["top"]], atol=1e-12
        )
        assert np.shape(line["per_step"]) == (2, 3)
    assert [line["file"] for line in made.lines[:4]] == [
        "blue/0.png",
        "blue/1.jpg",
        "blue/2.png",
        "green/0.png",
    ]
    about = workdir.read_json(made.root / "out" / "predictions.json")
    assert about["model"]["step"] == 6 and about["read"] == 9
    assert about["finished"] is True


def test_confidence_over_time_is_of_the_mean_so_far():
    per_step = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.2, 0.2, 0.6]])
    first, second, third = predict.any_time(per_step)
    np.testing.assert_allclose(first, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(second, predict.softmax(per_step[:2].mean(0)))
    np.testing.assert_allclose(third, predict.softmax(per_step.mean(0)))


def test_figures_are_drawn_of_the_first(made):
    pytest.importorskip("matplotlib")
    drawn = sorted(p.name for p in (made.root / "out").glob("*.png"))
    assert drawn == ["blue_0.png", "blue_1.png"]
    assert (made.root / "out" / "blue_0.png").stat().st_size > 20_000


def test_an_export_answers_by_its_program_and_stays_as_it_is(
    made, tmp_path, monkeypatch, capsys
):
    folder, load = made.run / "export", loader.load
    before = {p: p.read_bytes() for p in folder.iterdir()}
    # twice the logits: the same classes, other probabilities
    monkeypatch.setattr(loader, "load", lambda where: lambda x: 2 * load(where)(x))
    flags = [f"--workdir={folder}", f"--image={made.photos / 'test'}", "--figures=0"]
    assert call(*flags, f"--out={tmp_path / 'o'}", "--top=2") == 0
    out, err = capsys.readouterr()
    assert err == "" and "disagree" not in out
    got = lines_of(tmp_path / "o")
    for line, want in zip(got, made.lines, strict=True):
        assert (line["file"], line["class"]) == (want["file"], want["class"])
        assert len(line["top"]) == 2 and len(line["probabilities"]) == 3
    np.testing.assert_allclose(
        [line["probabilities"] for line in got],
        predict.softmax(2 * made.per_step.mean(1)),
        atol=1e-6,
    )
    assert {p: p.read_bytes() for p in folder.iterdir()} == before
    (row,) = (line.split() for line in out.splitlines() if line[:11] == "green/1.jpg")
    assert row[1:3] == [got[4]["class"], f"{100 * got[4]['probability']:.1f}"]
    assert "wrote " in out and "next: " in out


def test_a_disagreement_with_the_program_is_told(made, quick, monkeypatch, capsys):
    exported = made.ready._replace(exported=len)
    monkeypatch.setattr(inference, "load", lambda *_: exported)
    wrong = [a._replace(logits=-a.logits) for a in made.answers[:2]]
    right = made.answers[2:]
    monkeypatch.setattr(predict, "answers", lambda *_: iter(wrong + right))
    for out in ("a", "b"):
        lines = predict.run(
            made.config,
            str(made.run),
            image=str(made.photos / "test"),
            out=str(made.root / "disagreeing" / out),
            figures=0,
        )
        # of a run of its own there is nothing to disagree with
        monkeypatch.setattr(inference, "load", lambda *_: made.ready)
    assert lines[0]["class"] != made.lines[0]["class"]
    told = [s for s in capsys.readouterr().out.splitlines() if "disagree in" in s]
    assert len(told) == 1 and "the class of 2: blue/0.png, blue/1.jpg;" in told[0]


def test_nothing_is_overwritten(made, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [f"--workdir={made.run}", "--figures=0"]
    flags += [f"--image={made.photos / 'test' / 'red' / '0.png'}"]
    assert call(*flags) == 0 and call(*flags) == 0
    assert sorted(p.name for p in (tmp_path / "predictions").iterdir()) == [
        "run",
        "run-2",
    ]
    assert call(*flags, "--out=predictions/run") == 1
    out, err = capsys.readouterr()
    assert "--out: predictions/run is not empty, expected a new folder" in err
    (tmp_path / "predictions" / "empty").mkdir()
    assert call(*flags, "--out=predictions/empty") == 0


def test_what_cannot_be_read_is_named_and_left_out(made, quick, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(made.photos / "test" / "red" / "0.png", photos / "b.png")
    (photos / "a.png").write_bytes(b"no picture")
    flags = [f"--workdir={made.run}", f"--image={photos}", "--figures=0"]
    assert call(*flags, f"--out={tmp_path / 'o'}") == 0
    out, err = capsys.readouterr()
    assert "a.png: not a whole picture" in err and "1 of 2 pictures, unread" in err
    assert [line["file"] for line in lines_of(tmp_path / "o")] == ["b.png"]
    about = workdir.read_json(tmp_path / "o" / "predictions.json")
    assert len(about["not_read"]) == 1

    (photos / "b.png").unlink()
    assert call(*flags, f"--out={tmp_path / 'p'}") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: --image: got no readable picture of 1; the first: ")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--image: got none, expected a picture"),
        (["--image=nowhere"], "--image: found no file or folder nowhere"),
        (["--image="], "--image: got none, expected a picture"),
        (["--image=x.png", "--out="], "--out: got none, expected a new or empty"),
        (["--image=x.png", "--top=0"], "--top, --figures: got 0 and 8"),
        (["--image=x.png", "--figures=-1"], "--top, --figures: got 5 and -1"),
    ],
)
def test_what_is_wrong_is_one_line(made, flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(f"--workdir={made.run}", *flags) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_is_found_before_the_model_is_loaded(
    made, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(inference, "load", None)
    monkeypatch.chdir(tmp_path)
    Path("predictions").touch()
    flags = [f"--workdir={made.run}", f"--image={made.photos / 'test'}"]
    for out, words in {
        "--out=predictions": "--out: predictions is a file, expected a new folder",
        "--out=predictions/a": "--out: cannot write predictions/a: Not a directory, "
        "expected a folder that can be written",
        "--top=5": "--out: cannot write predictions: Not a directory",
    }.items():
        assert call(*flags, out) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: {words}") and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["predictions"]


def test_pixels_that_are_not_finite_are_named(made):
    class Arrays(list):
        files = range(3)

    pictures = Arrays((f"{i}", made.answers[i].pixels / 1.0) for i in range(3))
    pictures[1][1][2, 3] = np.nan
    with pytest.raises(
        ValueError, match=r"predict: got NaN or .* pictures\[1\], expec"
    ):
        next(predict.answers(made.ready, pictures))


def test_what_stops_on_the_way_keeps_its_answers(made, quick, tmp_path, capsys):
    answers = predict.answers

    def stopping(ready, readable):
        for i, answer in enumerate(answers(ready, readable)):
            if i == 3:
                raise KeyboardInterrupt
            yield answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "answers", stopping)
        flags = [f"--workdir={made.run}", f"--image={made.photos / 'test'}"]
        assert call(*flags, f"--out={tmp_path / 'o'}", "--figures=0") == 130
    assert len(lines_of(tmp_path / "o")) == 3
    about = workdir.read_json(tmp_path / "o" / "predictions.json")
    assert about["finished"] is False and about["model"]["step"] == 6
    assert "answered before: 3 of 9 pictures, in " in capsys.readouterr().err


def test_a_figure_that_fails_costs_that_figure_alone(
    made, quick, tmp_path, capsys, monkeypatch
):
    plots = pytest.importorskip("a2os2a_jax.analysis.plots")
    calls = []

    def prediction(*args, **_):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("out of\nmemory")
        return args[4]

    monkeypatch.setattr(plots, "prediction", prediction)
    flags = [f"--workdir={made.run}", f"--image={made.photos / 'test'}"]
    assert call(*flags, f"--out={tmp_path / 'o'}", "--figures=2") == 0
    out, err = capsys.readouterr()
    assert err == "no figure of blue/0.png: RuntimeError: out of memory\n"
    assert len(lines_of(tmp_path / "o")) == 9 and len(calls) == 2
    assert "blue_1.png" in out and "blue_0.png" not in out and "7 more are" in out


def test_large_folders_say_how_far_they_are(made, quick, tmp_path, capsys, monkeypatch):
    flags = [f"--workdir={made.run}", f"--image={made.photos / 'test'}", "--figures=0"]
    monkeypatch.setattr(predict, "EVERY", 0.0)
    assert call(*flags, f"--out={tmp_path / 'small'}") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(predict, "BATCH", 4)
    assert call(*flags, f"--out={tmp_path / 'large'}") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{i} of 9 pictures" for i in range(1, 9)]


def test_a_second_run_does_not_read_the_figures_of_the_first(
    made, quick, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    shutil.copy(made.photos / "test" / "red" / "0.png", "0.png")
    flags = [f"--workdir={made.run}", "--image=."]
    assert call(*flags, "--figures=1") == 0 and call(*flags, "--figures=0") == 0
    assert Path("predictions/run/0.png").is_file()
    assert [line["file"] for line in lines_of(Path("predictions/run-2"))] == ["0.png"]


def test_names_of_files_stay_on_their_line(made, quick, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in (b"a\nb.png", b"c\xff.png"):
        path = os.fsdecode(os.fsencode(photos) + b"/" + name)
        shutil.copy(made.photos / "test" / "red" / "0.png", path)
    (photos / "d\ne.png").touch()
    flags = [f"--workdir={made.run}", f"--image={photos}", "--figures=0"]
    assert call(*flags, f"--out={tmp_path / 'o'}") == 0
    out, err = capsys.readouterr()
    assert "\na b.png " in out and "d e.png: not a whole" in err
    names = [line["file"] for line in lines_of(tmp_path / "o")]
    assert names == ["a\nb.png", "c\ufffd.png"]


def test_the_next_command_is_whole_and_quoted(made, tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "config.json").touch()
    assert predict._next(made.ready, str(folder)) == (
        f"python -m a2os2a_jax.main --mode=export --workdir='{folder}'"
    )


def ready(spec):
    return inference.Ready("m", None, spec, None, {}, {"source": "m", "step": 1})


def test_tokens_and_events_are_one_line(monkeypatch, tmp_path):
    (tmp_path / "a.png").touch()
    for shape in ((5, 6), (2, 8, 8, 2)):
        spec = pipeline.Spec("other", shape, 10)
        monkeypatch.setattr(inference, "load", lambda *_, s=spec: ready(s))
        with pytest.raises(ValueError, match="--image: other has examples of"):
            predict.run(None, "m", image=str(tmp_path / "a.png"))


def test_white_paper_is_hinted_at_for_dark_sets(capsys):
    spec = pipeline.Spec("digits", (8, 8, 1), 10, mean=(0.3,), std=(0.4,))
    predict._notes(predict._Readable([], spec), [], 3, 5, ready(spec))
    out = capsys.readouterr().out
    assert out.startswith("hint: 3 pictures more bright than dark") and "invert" in out
    predict._notes(predict._Readable([], spec), [], 0, 5, ready(spec))
    assert capsys.readouterr().out == ""


def test_a_long_table_is_cut_and_long_names_too():
    spec = pipeline.Spec("s", (8, 8, 1), 2)
    line = {
        "file": "f" * 90,
        "class": "c" * 90,
        "probability": 0.75,
        "top": [["c" * 90, 0.75], ["d", 0.25]],
    }
    text = predict.table([line] * 60, ready(spec), 2).splitlines()
    assert len(text) == 2 + predict.LINES + 1 and "10 more" in text[-1]
    assert max(map(len, text)) < 100 and text[2].endswith("75.0 %  d 25.0 %")


def test_files_of_one_name_have_figures_of_their_own(tmp_path, made, quick):
    pytest.importorskip("matplotlib")
    for end in ("png", "jpg"):
        buffer = io.BytesIO()
        image = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
        image.save(buffer, "PNG" if end == "png" else "JPEG")
        (tmp_path / f"a.{end}").write_bytes(buffer.getvalue())
    predict.run(
        made.config, str(made.run), image=str(tmp_path), out=str(tmp_path / "o")
    )
    drawn = sorted(p.name for p in (tmp_path / "o").glob("*.png"))
    assert drawn == ["a-2.png", "a.png"]
