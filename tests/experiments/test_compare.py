"""The comparison of attentions: what is run, what is left out and why, its rows."""

import json
import sys
from pathlib import Path

import pytest

from a2os2a_jax import config as configs
from a2os2a_jax.modules.attention import KINDS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("compare", "sweep", "result_tables")


@pytest.fixture
def compare(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    for name in SCRIPTS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import compare

    monkeypatch.setattr(compare.sweep, "ROOT", tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    yield compare
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def kinds_of(compare, found, task):
    return [r.settings[-1][1] for r in found if compare.task_of(r) == task]


def test_every_attention_is_run_or_has_a_reason(compare):
    found = compare.runs(3)
    assert len({run.name for run in found}) == len(found)
    for task in compare.TASKS:
        run, out = kinds_of(compare, found, task), compare.left_out(task)
        assert sorted([*run, *(kind for kind in out for _ in range(3))]) == sorted(
            kind for kind in KINDS for _ in range(3)
        )
        assert all(out.values()) and out["vssa"].endswith("ssa")
    square = {name for name, kind in KINDS.items() if kind.square}
    assert square and square.isdisjoint(kinds_of(compare, found, "recall"))
    assert square <= set(kinds_of(compare, found, "fashion"))
    assert {compare.left_out("recall")[kind] for kind in square} == {
        compare.NEEDS_A_MAP
    }
    assert [run.seed for run in found] == sorted(run.seed for run in found)


def test_vssa_is_ssa(compare):
    assert KINDS["vssa"][:2] == KINDS["ssa"][:2]


def test_a_run_is_the_ordinary_command(compare):
    run, *_ = compare.runs(1, ["recall"], ["ssa"])
    assert run.command == (
        "python -m a2os2a_jax.main --config=configs/recall.py "
        "'--workdir=runs/sweeps/compare/recall,pairs=24,steps=400,kind=ssa,seed=0' "
        "--config.data.pairs=24 --config.train.steps=400 "
        "--config.model.attention.kind=ssa --config.seed=0"
    )
    run, *_ = compare.runs(1, ["fashion"], ["dssa"])
    assert run.flags[0] == "--config=configs/fashion_mnist.py:subset"
    assert run.name == "fashion_mnist-subset,kind=dssa,seed=0"


def test_the_recipe_is_one(compare):
    """Of one task and seed nothing differs but the kind; the neuron is the paper's."""
    for task in compare.TASKS:
        first, *others = (
            configs.to_json(compare.config_of(run)) for run in compare.runs(1, [task])
        )
        of = first["model"]
        assert (of["name"], of["residual"]) == ("columnar", "membrane")
        assert of["neuron"]["rule"] == "paper" and not of["neuron"]["decay_input"]
        assert others
        for other in others:
            (only,) = configs.differences(first, other)
            assert only.startswith("model.attention.kind was")


def test_the_subset_is_scored_on_images_it_was_not_trained_on(compare):
    c = compare.config_of(compare.runs(1, ["fashion"])[0])
    assert 60_000 - c.data.validation == 10_000 == c.eval.examples
    assert c.eval.split == "validation"
    assert c.eval.epochs == c.train.save_epochs == c.train.epochs  # scored once


def test_what_is_wrong_is_said(compare, capsys):
    for line, words in (
        (["--attentions=sssa"], "got 'sssa', expected some of ('a2os2a'"),
        (["--task=recall", "--attentions=dssa"], "needs a map"),
        (["--attentions=vssa"], "the same function as ssa"),
        (["--seeds=0"], "expected at least 1"),
        (["--measure", "--task=recall"], "expected all tasks"),
    ):
        assert compare.main(line) == 1
        assert words in capsys.readouterr().err


def test_a_rate_weighs_every_neuron_alike(compare):
    rates = {
        "b/attention/q_neuron": {"plus": [0.1, 0.3], "minus": [0, 0], "neurons": 10},
        "b/attention/v_neuron": {
            "plus": [0.2, 0.2],
            "minus": [0.1, 0.3],
            "neurons": 30,
        },
        "b/out_neuron": {"plus": [1, 1], "minus": [0, 0], "neurons": 99},
    }
    got = compare.rate_of(rates, "attention/")
    assert got == pytest.approx((0.2 * 10 + 0.4 * 30) / 40)
    assert compare.rate_of({}, "attention/") is None


def folded(rate, addition_only=True):
    refused = [] if addition_only else [["block_0", "data times data"]]
    keys = ("accuracy", "sops", "macs", "attention_share")
    return {
        "verdict": "addition-only" if addition_only else "not addition-only",
        "addition_only": addition_only,
        "refused": refused,
        "count": 200,
        "firing_rate": rate,
        "attention_firing_rate": rate if addition_only else None,
        "nj": {"float32: spiking, all of it": 1000 * rate},
        **dict.fromkeys(keys, 0.5),
    }


def file(compare, run, value):
    """As `execute` and `count` would have filed it."""
    config = configs.to_json(compare.config_of(run))
    split = config["eval"]["split"]
    layers = {"firing_rate": {"a": 0.1}, "near_threshold": {"a": 0.2}}
    result = {"config": config, "seed": run.seed, "parameters": 7}
    result |= {"steps": config["train"]["steps"] or 234, "effective_batch": 64}
    accuracy = {"accuracy": 0.5 + 0.1 * run.seed, "count": 4096}
    result |= {split: accuracy, "activity": layers}
    result |= {"commit": "abc", "device": "d", "train_seconds": 1.0, "cpu_seconds": 1.0}
    run.result.parent.mkdir(parents=True, exist_ok=True)
    run.result.write_text(json.dumps(result | {"folded": value}))


def test_rows_and_tables_come_from_the_runs_that_are_there(
    compare, tmp_path, monkeypatch
):
    for run in compare.runs(2, only=["a2os2a", "dssa", "none", "sasa"]):
        file(compare, run, folded(0.2 + 0.1 * run.seed, run.settings[-1][1] != "dssa"))
    assert compare.main(["--collect", "--seeds=2"]) == compare.sweep.OUT_OF_TIME
    value = json.loads((tmp_path / "experiments/results/compare.json").read_text())
    found = {(row["task"], row["kind"]): row for row in value["rows"]}
    assert len(found) == 6 and ("recall", "dssa") not in found
    row = found["fashion", "dssa"]
    assert row["mark"] == KINDS["dssa"].parity and row["n"] == 2
    assert row["validation_accuracy"]["mean"] == pytest.approx(0.55)
    assert row["folded"]["firing_rate"] == pytest.approx(0.25)
    assert row["folded"]["attention_firing_rate"] is None
    speed = {
        "command": "c",
        "commit": "abcdefgh",
        "device": "d",
        "gflops": 100.0,
        "rows": [
            {"task": task, "kind": kind, "batch": 64}
            | {
                what: {"median": 12345.6, "min": 1e4, "max": 2e4}
                for what in ("training", "inference")
            }
            for task, kind in found
        ],
    }
    path = tmp_path / "experiments/results/compare_speed.json"
    path.write_text(json.dumps(speed))
    import result_tables

    monkeypatch.setattr(result_tables, "RESULTS", tmp_path / "experiments/results")
    text = result_tables.comparison()
    mark = KINDS["a2os2a"].parity
    assert f"| `a2os2a` | {mark} | 55.00 ± 7.07 (2) | 55.00" in text
    mark = KINDS["dssa"].parity
    assert f"| `dssa` | {mark} | needs a map | 55.00" in text
    assert (
        "| `dssa` | 7 | 25.0 | none | 250 | **no**: data times data (`block_0`) "
        + 2 * "| 12,346 (10,000 to 20,000) "
        + "|"
        in text
    )
    assert "| `sasa` | *from the text* | needs" in text
    assert text.count("| `dssa` |") == 2 and "| `none` | a control |" in text
    assert "`vssa` is not run: the same function as ssa" in text
    assert "| `sasa`, *from the text* | 7 |" in text
    assert "Recall: `columnar` 1-128, 2 heads, T = 2; 400 steps of 64 examples" in text
    assert "Chance is 10 %; who" in text and "gets 20.9 % by" in text
    assert "trained on 10,000 of the 60,000 training images" in text


def test_a_table_loses_neither_rows_nor_seeds(compare, capsys):
    for run in compare.runs(2, only=["ssa", "none"]):
        file(compare, run, folded(0.2))
    for line in ([], ["--task=recall"], ["--attentions=none"]):
        assert compare.main(["--collect", "--seeds=2", *line]) in (
            0,  # of what was asked for nothing is to come
            compare.sweep.OUT_OF_TIME,
        )
        rows = json.loads(compare.sweep.table_path("compare").read_text())["rows"]
        assert [len(rows), *{row["n"] for row in rows}] == [4, 2]
    assert compare.main(["--collect", "--seeds=1"]) == 1
    assert "would be lost" in capsys.readouterr().err


def test_two_verdicts_of_one_attention_are_refused(compare):
    with pytest.raises(ValueError, match="expected one"):
        compare.summary([folded(0.1), folded(0.1, addition_only=False)])


def test_all_attentions_are_timed_in_turn(compare):
    calls = []

    def timed(name):
        return lambda: calls.append(name)

    ready = {k: {"training": timed(k)} for k in "ab"}
    seconds = compare.interleaved(ready, rounds=2, repeats=2)
    assert calls == ["a", "a", "b", "b"] * 2
    assert [len(of["training"]) for of in seconds.values()] == [2, 2]


@pytest.mark.slow
def test_a_run_is_counted_and_timed(compare, monkeypatch):
    from a2os2a_jax.train import loop

    # after the 20 steps of smoke the running statistics keep all neurons silent
    settings = (("train.steps", "60"), ("eval.examples", "8"), (compare.KIND, "ssa"))
    run = compare.sweep.Run("s", "configs/recall.py:smoke", settings, 0)
    result = loop.run(compare.config_of(run), run.workdir)
    run.result.parent.mkdir(parents=True)
    run.result.write_text(json.dumps(result))
    monkeypatch.setattr(compare, "COUNTED", 8)
    assert "addition-only, fires" in compare.count(run)
    made = compare.read(run)["folded"]
    assert made["count"] == 8 and 0 < made["firing_rate"] < 1
    assert 0 <= made["attention_firing_rate"] < 1
    assert made["nj"]["float32: spiking, all of it"] > 0
    ready, batch, _ = compare.prepared(run)
    seconds = compare.interleaved({"ssa": ready}, rounds=1, repeats=1)["ssa"]
    assert batch == 64 and set(seconds) == {"training", "inference"}
