import json
import os
import shutil
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")
from a2os2a_jax import config as configs  # noqa: E402
from a2os2a_jax.analysis import plots, rates  # noqa: E402
from a2os2a_jax.commands import eval as evaluation  # noqa: E402
from a2os2a_jax.commands import figures, train  # noqa: E402
from a2os2a_jax.train import evaluate, loop, setup, trained  # noqa: E402

NAMES = ("training_curves", "any_time", "spike_raster", "rate_map", "token_activity")
BARS = {"operations": {"convolutions": 2.0, "head": 1.0}}


class Toy(nn.Module):
    """Compiles at once; sows layers of all shapes, in an order that is not sorted."""

    classes: int = 10
    timesteps: int = 4
    frozen = ()

    @nn.compact
    def __call__(self, x, train=False, per_step=False):
        self.variable("batch_stats", "none", lambda: np.zeros(1, np.float32))
        self.sow("potentials", "out", x)
        four = jax.image.resize(x, (len(x), 4, 4, x.shape[-1]), "linear")
        flat = four.reshape(len(x), -1)
        gain = jnp.arange(1, self.timesteps + 1, dtype=x.dtype)
        space = gain[None, :, None, None, None] * four[:, None]  # [B, T, 4, 4, C]
        self.sow("spikes", "stem", jnp.float32(space > 1))
        tokens = space.reshape(len(x), self.timesteps, 4, -1)
        self.sow("spikes", "block_v", jnp.sign(jnp.round(tokens)))
        self.sow(
            "spikes", "a_head", jnp.float32(flat[:, None] * gain[None, :, None] > 2)
        )
        scores = gain[None, :, None] * nn.Dense(self.classes)(flat)[:, None]
        return scores if per_step else scores.mean(1)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(
        setup, "build", lambda *_, **k: Toy(k["num_classes"], k["timesteps"])
    )


def _config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=4, channels=1)
    c.train.update(batch=64, log_steps=2, save_epochs=0.25)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@pytest.fixture(scope="module")
def _trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "build", lambda *_, **k: Toy(k["num_classes"]))
        loop.run(_config(), folder)
    return folder


@pytest.fixture
def workdir(_trained, tmp_path):
    """A copy of a finished run of four steps, without figures."""
    return shutil.copytree(_trained, tmp_path / "run")


@pytest.fixture
def no_scores(monkeypatch):
    monkeypatch.setattr(figures, "any_time", lambda *_: [0.5, 0.75])


@pytest.fixture
def drawn(monkeypatch):
    """{name of the function: its arguments but for the path}; nothing is written."""
    calls = {}
    names = ("rate_map", "token_activity", "spike_raster", "any_time", "energy_bars")
    for name in names:

        def spy(*args, _name=name, **options):
            calls[_name] = args, options

        monkeypatch.setattr(plots, name, spy)
    return calls


def _bytes(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _energy(workdir, name="energy.json", **changes):
    of = {
        "another": {"plus": [0.3] * 4, "minus": [0.0] * 4, "alphabet": "{0, 1}"},
        "block_v": {"plus": [0.2] * 4, "minus": [0.0] * 4, "alphabet": "{-1, 0, 1}"},
        "stem": {"plus": [0.1] * 4, "minus": [0.0] * 4, "alphabet": "{0, 1}"},
    }
    record = {
        "weights": "weights of step 3, 4",
        "split": "test",
        "changed": {},
        "count": 9,
        "rates": of,
        "bars": BARS,
    }
    (workdir / name).write_text(json.dumps(record | changes))


def test_all_figures_are_written_once(workdir, capsys):
    before = _bytes(workdir)
    written = figures.run(_config(), workdir)
    expected = [workdir / "figures" / f"{n}.{e}" for n in NAMES for e in ("png", "svg")]
    assert written == expected
    out = capsys.readouterr().out.splitlines()
    assert out == [
        *(f"wrote {path}" for path in expected),
        "no energy bars: run --mode=energy first",
        "next: --mode=energy counts the whole split; then this again adds the bars",
    ]
    after = _bytes(workdir)
    assert {p: b for p, b in after.items() if p not in written} == before
    for path in written:
        assert len(after[path]) > 3000, path
        if path.suffix == ".svg":
            ElementTree.fromstring(after[path])
        else:
            assert after[path][:4] == b"\x89PNG", path
    written[1].unlink()
    assert figures.run(_config(), workdir) == [written[1]]
    out = capsys.readouterr().out
    assert f"kept  {written[0]}, which is there already" in out
    assert f"wrote {written[1]}" in out
    assert _bytes(workdir) == after  # an SVG is the same, byte by byte


def test_energy_is_drawn_when_it_is_there_and_again_when_newer(
    workdir, no_scores, capsys
):
    figures.run(_config(), workdir)
    stale = (workdir / "figures" / "rate_map.png").read_bytes()
    _energy(workdir, note="rate 12 %", count=100, weights="weights of step 4")
    later = (workdir / "figures" / "rate_map.svg").stat().st_mtime + 60
    os.utime(workdir / "energy.json", (later, later))
    written = figures.run(_config(), workdir)
    names = [f"{n}.{e}" for n in ("rate_map", "energy_bars") for e in ("png", "svg")]
    assert [p.name for p in written] == names
    assert written[0].read_bytes() != stale
    assert (
        "rate 12 %" in written[3].read_text()
        and "no energy" not in (capsys.readouterr().out.splitlines()[-2])
    )


OF_RUN = {"weights": "weights of step 4", "count": 100}


def _at(path, seconds):
    """Sets when the file was written."""
    os.utime(path, (seconds, seconds))


def test_an_energy_json_of_other_examples_makes_no_figure_due(
    workdir, no_scores, capsys
):
    _energy(workdir, **OF_RUN)
    _at(workdir / "energy.json", 1e9)
    written = figures.run(_config(), workdir)
    assert written[-1].name == "energy_bars.svg"
    before = _bytes(workdir / "figures")
    capsys.readouterr()
    # as --mode=energy --config.eval.examples=40 leaves it
    (workdir / "energy.json").rename(workdir / "energy.1.json")
    _energy(workdir, **OF_RUN | {"count": 40})
    _at(workdir / "energy.json", 4e9)
    assert figures.run(_config(), workdir) == []
    *_, kept, then = capsys.readouterr().out.splitlines()
    assert "kept" in kept and then.startswith("next: ")
    assert _bytes(workdir / "figures") == before
    path = workdir / "figures" / "energy_bars.png"
    path.unlink()
    assert figures.run(_config(), workdir) == [path]  # of all 100, again
    assert path.read_bytes() == before[path]
    _at(workdir / "energy.1.json", 4e9)  # what fits is newer
    names = {p.name for p in figures.run(_config(), workdir)}
    assert names == {
        f"{n}.{e}" for n in ("rate_map", "energy_bars") for e in ("png", "svg")
    }


def test_the_newest_that_fits_is_drawn(tmp_path):
    def found():
        return figures.counted(_config(), FOUND, tmp_path)

    assert found() == (None, {}, "run --mode=energy first")
    (tmp_path / "energy.old.json").write_text("no number: nothing of ours")
    (tmp_path / "energy.1.json").write_text("of no kind, but never read")
    _energy(tmp_path, "energy.2.json", note="older")
    _energy(tmp_path, "energy.10.json", note="newer")
    _energy(tmp_path, "energy.11.json", count=8)
    _energy(tmp_path, count=7)
    assert found().path == tmp_path / "energy.10.json"
    assert figures.bars(found())["note"] == "newer"
    (tmp_path / "energy.10.json").unlink()
    assert figures.bars(found())["note"] == "older"
    (tmp_path / "energy.2.json").unlink()
    with pytest.raises(ValueError, match="energy.1.json: got 'of no kind"):
        found()
    (tmp_path / "energy.1.json").unlink()
    assert found().path is None  # and the newest says why
    assert "energy.json is not of this run as asked (count is 7" in found().why


def test_titles_say_of_what(workdir, drawn, no_scores):
    _energy(workdir, **OF_RUN, timesteps=4, note="rate 12 %")
    figures.run(_config(), workdir)
    model = figures.model_of(_config())
    bars, _, title, note = drawn["energy_bars"][0]
    assert (bars, note) == (BARS, "rate 12 %")
    assert title == f"Estimated energy: {model}, on fake, T = 4; all 100 of test"
    about = drawn["spike_raster"][1]
    assert about["title"] == f"{model}, on fake; the first of test"
    assert drawn["any_time"][0][3] == 100  # examples
    assert drawn["token_activity"][0][3].endswith("on fake; 4 of test, drawn at random")
    figures.run(_config(eval__timesteps=6, eval__examples=40), workdir)
    about = drawn["spike_raster"][1]
    tag = "step4, test, T6, first40"
    assert about["title"] == f"{model}, on fake, {tag}; the first of test"
    assert drawn["any_time"][0][3] == 40


def test_the_raster_is_the_one_of_the_training(tmp_path, no_scores):
    config = _config()
    train.run(config, str(tmp_path))
    raster = tmp_path / "figures" / "spike_raster.png"
    trained_one = raster.read_bytes()
    raster.unlink()
    assert raster in figures.run(config, tmp_path)
    assert raster.read_bytes() == trained_one
    raster.unlink()
    config.eval.update(split="train", batch=9)  # not what the run ended with
    assert train.draw(config, tmp_path) == [raster]
    assert raster.read_bytes() == trained_one


SPLITS = {"test": SimpleNamespace(size=9), "train": SimpleNamespace(size=30)}
PARTS = SimpleNamespace(
    dataset=SimpleNamespace(split=SPLITS.get),
    total_steps=4,
    layers=lambda _: [SimpleNamespace(name=n) for n in ("stem", "conv", "block_v")],
)
FOUND = trained.Trained(PARTS, {}, (3, 4), trained.PLAIN, {})  # nothing is computed


def _seen():
    pytest.fail("energy.json has the rates")


def test_rates_of_energy_json_have_two_signs_where_the_alphabet_has(tmp_path):
    _energy(tmp_path)
    energy = figures.counted(_config(), FOUND, tmp_path)
    table, over = figures.rate_table(_config(), FOUND, energy, _seen)
    signed = {"plus": [0.2] * 4, "minus": [0.0] * 4}
    assert table == {"stem": [0.1] * 4, "block_v": signed, "another": [0.3] * 4}
    assert list(table) == ["stem", "block_v", "another"]  # as in the network
    assert over == "all 9 of test"


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "weights of step 4"},
        {"split": "train"},
        {"changed": {"timesteps": 8}},
        {"count": 8},
        {"count": None},
    ],
)
def test_energy_of_something_else_is_not_drawn(tmp_path, changes):
    _energy(tmp_path, **changes)
    energy = figures.counted(_config(), FOUND, tmp_path)
    ((key, value),) = changes.items()
    with pytest.raises(figures.Missing) as why:
        figures.bars(energy)
    expected = f"energy.json is not of this run as asked ({key} is {value}, expected "
    assert str(why.value).startswith(expected)
    rate = np.array([0.5, 0.25])
    here = figures.Seen(
        None, None, None, {}, {"n": rates.Rates(rate, rate, 0 * rate)}, 7
    )
    table, over = figures.rate_table(_config(), FOUND, energy, lambda: here)
    assert table == {"n": rate} and over == "7 of test, drawn at random"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": {"stem": [0.1]}}, r"rates of stem are \[0.1\], expected an object"),
        ({"rates": None}, "got no rates, expected an object"),
        ({"bars": 3}, "got no bars, expected an object"),
    ],
)
def test_an_energy_json_that_is_none(tmp_path, changes, message):
    _energy(tmp_path, **changes)
    energy = figures.counted(_config(), FOUND, tmp_path)
    with pytest.raises(ValueError, match=f"energy.json: {message}"):
        figures.rate_table(_config(), FOUND, energy, _seen)
        figures.bars(energy)


def test_accuracies_are_those_of_the_evaluation(workdir, drawn):
    config = _config(eval__batch=33)
    figures.run(config, workdir)
    scored = drawn["any_time"][0][0]
    line = evaluation.run(config, workdir)
    assert scored == line["any_time"] and len(scored) == 4
    log = workdir / "evaluations.jsonl"
    others = {"split": "train", "steps": [3], "count": 7, "changed": {"size": 8}}
    lines = [line | {"any_time": [0.5]}, line | {"any_time": [0.25, 0.5]}]
    lines += [line | {key: value, "any_time": [0.0]} for key, value in others.items()]
    lines.append({"probe": 1.0})
    log.write_text("".join(json.dumps(x) + "\n" for x in lines))
    figures.run(config, workdir)
    assert drawn["any_time"][0][0] == [0.25, 0.5]  # the last of the same


def test_what_is_drawn_is_what_the_model_does(workdir, drawn, no_scores):
    config = _config(eval__batch=30)
    figures.run(config, workdir)
    found = trained.load(config, workdir)
    split = found.parts.dataset.test
    some = evaluate.sample(split.size, 30)
    batch = split.gather(split.resident, split.fetch(some))
    first = split.gather(split.resident, split.fetch(np.arange(1)))
    _, sown = found.parts.model.apply(
        found.variables, batch["image"], mutable=["spikes"]
    )
    spikes = {
        name: np.asarray(sown["spikes"][name][0])
        for name in ("stem", "block_v", "a_head")
    }
    (table, _, title), _ = drawn["rate_map"]
    assert list(table) == list(spikes)  # in the order of the network
    assert title.endswith("on fake; 30 of test, drawn at random")
    for name, s in spikes.items():
        over = tuple(i for i in range(s.ndim) if i != 1)
        plus, minus = ((sign * s > 0).mean(over) for sign in (1, -1))
        got = table[name]
        if name == "block_v":
            assert got["minus"].min() > 0
            np.testing.assert_allclose(got["minus"], minus, rtol=1e-6)
            got = got["plus"]
        np.testing.assert_allclose(got, plus, rtol=1e-6)
    (images, layers, _, _), _ = drawn["token_activity"]
    np.testing.assert_array_equal(images, batch["image"][:4])
    assert list(layers) == ["stem", "block_v"]
    np.testing.assert_array_equal(
        layers["stem"], spikes["stem"][:4].reshape(4, 4, 16, 1)
    )
    np.testing.assert_array_equal(layers["block_v"], spikes["block_v"][:4])
    (one, image, _), about = drawn["spike_raster"]
    logits, sown = found.parts.model.apply(
        found.variables, first["image"], mutable=["spikes"]
    )
    for name in spikes:
        np.testing.assert_array_equal(one[name], sown["spikes"][name][0][0])
    np.testing.assert_array_equal(image, first["image"][0])
    assert about["label"] == first["label"][0]
    assert about["prediction"] == logits[0].argmax()


def test_names_say_what_is_not_as_the_run_ended(workdir, drawn, capsys):
    figures.run(_config(eval__timesteps=6, eval__examples=40), workdir)
    out = capsys.readouterr().out
    for name in NAMES[1:]:
        assert f"{name}_step4-test-T6-first40.png" in out, name
    assert f"{workdir / 'figures' / 'training_curves.png'}" in out
    assert "no energy bars: run" in out
    assert len(drawn["any_time"][0][0]) == 6


@pytest.mark.parametrize(
    ("options", "steps", "changed", "tag"),
    [
        ({}, (4,), {}, ""),
        ({"eval__batch": 7}, (4,), {}, ""),
        ({}, (4,), {"timesteps": 6}, "step4-test-T6"),
        ({}, (3, 4), {}, "step4-test"),
        ({}, (3,), {}, "step3-test"),
        ({"eval__split": "train"}, (4,), {}, "step4-train"),
        ({"eval__examples": 9}, (4,), {}, "step4-test-first9"),
    ],
)
def test_a_tag_for_all_but_what_the_run_ended_with(
    tmp_path, options, steps, changed, tag
):
    (tmp_path / "config.json").write_text(json.dumps(configs.to_json(_config())))
    found = FOUND._replace(steps=steps, changed=changed)
    assert figures._tag(_config(**options), found, tmp_path) == tag


def test_a_stopped_run_is_drawn_as_it_is(workdir, drawn, no_scores, capsys):
    shutil.rmtree(workdir / "checkpoints" / "4")
    (workdir / "result.json").unlink()
    (workdir / "metrics.jsonl").write_text("")
    figures.run(_config(), workdir)
    out = capsys.readouterr().out
    assert "no training curves: metrics.jsonl is not there, or empty" in out
    assert "token_activity_step3-test.svg" in out


def test_frames_are_shown_as_their_mean_and_tokens_have_no_places():
    def of(images, **spikes):
        return figures.Seen(images, None, None, spikes, {}, 2)

    square, other = np.zeros((2, 3, 9, 5)), np.zeros((2, 3, 8, 5))
    space, flat = np.zeros((2, 3, 4, 4, 5)), np.zeros((2, 3, 7))
    picture = np.zeros((2, 8, 8, 1))
    found = figures.token_layers(of(picture, a=square, b=other, c=space, d=flat))
    assert {k: v.shape for k, v in found.items()} == {
        "a": (2, 3, 9, 5),
        "c": (2, 3, 16, 5),
    }
    for seen in (of(picture, b=other, d=flat), of(np.zeros((2, 9, 6)), a=square)):
        with pytest.raises(figures.Missing, match="no layer has tokens that are"):
            figures.token_layers(seen)


def test_without_matplotlib_it_says_so(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        figures.run(_config(), workdir)
    assert not (workdir / "figures").exists()


def test_another_config_is_refused(workdir):
    with pytest.raises(ValueError, match="another config: optim.lr was 0.001, is 0.5"):
        figures.run(_config(optim__lr=0.5), workdir)
