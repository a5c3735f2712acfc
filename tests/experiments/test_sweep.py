"""The script behind every table: names, commands, resuming, rows."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RECALL = "configs/recall.py:smoke"
KIND = "model.attention.kind"


@pytest.fixture
def script(tmp_path, monkeypatch):
    path = ROOT / "experiments" / "sweep.py"
    spec = importlib.util.spec_from_file_location("sweep", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return module


def test_a_grid_is_the_product_and_brackets_hold_together(script):
    got = script.grid(["a.b=1,2", "s=atan,straight_through(-1,1)"])
    assert got == [
        (("a.b", "1"), ("s", "atan")),
        (("a.b", "1"), ("s", "straight_through(-1,1)")),
        (("a.b", "2"), ("s", "atan")),
        (("a.b", "2"), ("s", "straight_through(-1,1)")),
    ]
    assert script.grid([]) == [()]
    for text in ("a", "a=", "=1"):
        with pytest.raises(ValueError, match="expected key=value"):
            script.grid([text])


def test_a_run_has_a_name_a_command_and_a_place(script):
    settings = ((KIND, "vssa"), ("model.neuron.surrogate", "rectangle(1/2)"))
    run = script.Run("s", "configs/recall.py:8", settings, 3)
    assert run.name == "recall-8,kind=vssa,surrogate=rectangle(1_2),seed=3"
    assert run.command == (
        "python -m a2os2a_jax.main --config=configs/recall.py:8 "
        f"'--workdir=runs/sweeps/s/{run.name}' --config.{KIND}=vssa "
        "'--config.model.neuron.surrogate=rectangle(1/2)' --config.seed=3"
    )
    assert run.result.name == run.name + ".json"


def test_two_runs_of_one_name_are_refused(script):
    settings = [(("a.x", "1"),), (("b.x", "1"),)]
    with pytest.raises(ValueError, match="twice, expected other settings"):
        script.runs_of("s", RECALL, settings, range(2))


def test_seeds_go_outermost(script):
    runs = script.runs_of("s", RECALL, script.grid([f"{KIND}=vssa,none"]), range(2))
    assert [(run.seed, run.settings[0][1]) for run in runs] == [
        *((0, "vssa"), (0, "none"), (1, "vssa"), (1, "none"))
    ]


def file(run, accuracy, config=None):
    """As `execute` would have filed it."""
    layers = {"a": 0.1 * run.seed, "b": 0.3}
    run.result.parent.mkdir(parents=True, exist_ok=True)
    value = {"config": config or {"eval": {"split": "test"}}, "seed": run.seed}
    value |= {"test": {"accuracy": accuracy}, "parameters": 7, "commit": "abc"}
    value |= {"train_seconds": 1.0, "cpu_seconds": 2.0, "device": "d"}
    value |= {"activity": {"firing_rate": layers, "near_threshold": layers}}
    run.result.write_text(json.dumps(value))


def test_rows_hold_the_runs_of_their_setting_and_no_others(script):
    runs = script.runs_of("s", RECALL, script.grid([f"{KIND}=vssa,none"]), range(3))
    for run, value in zip(runs, [0.5, 0.1, 0.7, 0.2, 0.9], strict=False):
        file(run, value)  # the last seed of "none" has not run
    value = script.collect(runs, command="c")
    vssa, none = value["rows"]
    assert vssa["settings"] == {KIND: "vssa"} and none["settings"] == {KIND: "none"}
    assert (vssa["n"], none["n"], none["seeds"]) == (3, 2, [0, 1])
    assert vssa["test_accuracy"] == {
        "median": 0.7,
        "mean": pytest.approx(0.7),
        "std": pytest.approx(0.2),
        "min": 0.5,
        "max": 0.9,
    }
    assert vssa["near_threshold"] == {"a": 0.1, "b": 0.3}
    assert value["command"] == "c" and value["commits"] == ["abc"]
    text = script.table(value)
    assert "median  70.00 %  mean  70.00 ± 20.00  (50.00 to 90.00)  n=3" in text


def test_a_sweep_runs_what_is_missing_files_it_and_goes_on(script, monkeypatch, capsys):
    asked = []

    def fake_run(line, *_):
        (workdir,) = (w.split("=", 1)[1] for w in line if w.startswith("--workdir"))
        asked.append(workdir)
        folder = script.ROOT / workdir
        folder.mkdir()
        from a2os2a_jax import config as configs
        from a2os2a_jax import main

        line = [line[2], *(w for w in line[3:])]
        line[1] = f"--config={script.ROOT / RECALL}"
        config, *_ = main.parse(line)
        result = {"config": configs.to_json(config), "test": {"accuracy": 0.5}}
        result |= {"seed": config.seed, "parameters": 1, "commit": "abc"}
        result |= {"train_seconds": 1.0, "cpu_seconds": 1.0, "device": "d"}
        layers = {"firing_rate": {"a": 0.1}, "near_threshold": {"a": 0.2}}
        (folder / "result.json").write_text(json.dumps(result | {"activity": layers}))
        record = {"step": 1, "split": "train", "loss": 0.123456789, "lr": 1}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        return 0, True

    monkeypatch.setattr(script, "call", fake_run)
    command = [RECALL, "--seeds=2", "--set", f"{KIND}=none", "--name=s"]
    assert script.main(command) == 0
    assert len(asked) == 2 and "0 of 2 runs are there" in capsys.readouterr().out
    assert script.main([*command, "--jobs=2"]) == 0 and len(asked) == 2
    (first, second) = sorted((script.ROOT / "experiments/results/s").iterdir())
    filed = json.loads(first.read_text())
    assert filed["settings"] == {KIND: "none"} and "--config.seed=0" in filed["command"]
    assert filed["curve"] == [{"step": 1, "split": "train", "loss": 0.12346}]
    value = json.loads((script.ROOT / "experiments/results/s.json").read_text())
    assert value["rows"][0]["n"] == 2
    assert value["command"].endswith(f"--seeds=2 --set '{KIND}=none'")
    # another config under the same name is not mixed in
    filed["config"]["optim"]["lr"] = 7.0
    first.write_text(json.dumps(filed))
    assert script.main(command) == 1
    assert "optim.lr was 7.0" in capsys.readouterr().err
    second.unlink()


def test_a_table_loses_neither_rows_nor_seeds(script, monkeypatch, capsys):
    runs = script.runs_of("s", RECALL, script.grid([f"{KIND}=vssa,none"]), range(2))
    for run in runs:
        file(run, 0.5)
    command = [RECALL, "--name=s", "--collect", "--set"]
    assert script.main([*command, f"{KIND}=vssa,none", "--seeds=2"]) == 0
    table = script.table_path("s").read_text()
    monkeypatch.setattr(script, "call", lambda *_: pytest.fail("it was refused"))
    for fewer in ([f"{KIND}=vssa", "--seeds=2"], [f"{KIND}=vssa,none", "--seeds=1"]):
        for line in ([*command, *fewer], [w for w in command if w != "--collect"]):
            line = line if "--collect" in line else [*line, *fewer]
            assert script.main(line) == 1
            assert "which would be lost" in capsys.readouterr().err
    assert script.table_path("s").read_text() == table
    assert script.main([*command, f"{KIND}=vssa,none", "--seeds=0"]) == 1


def test_a_failure_is_reported_and_files_nothing(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "call", lambda *_: (3, True))
    assert script.main([RECALL, "--seeds=1", "--name=s"]) == 1
    assert (
        "exit 3, see runs/sweeps/s/recall-smoke,seed=0.log" in capsys.readouterr().out
    )
    assert (
        json.loads((script.ROOT / "experiments/results/s.json").read_text())["rows"]
        == []
    )


def test_a_run_that_was_stopped_is_no_result(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "call", lambda *_: (0, True))
    assert script.main([RECALL, "--seeds=1", "--name=s"]) == 1
    assert "seed=0: stopped before its end, see" in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, -15, -9])  # handled, not yet, and not in time
def test_a_sweep_stops_for_the_time_and_that_is_no_failure(
    script, monkeypatch, capsys, code
):
    monkeypatch.setattr(script, "call", lambda *_: (code, False))
    line = [RECALL, "--seeds=2", "--name=s"]
    assert script.main([*line, "--minutes=2"]) == script.OUT_OF_TIME
    told = capsys.readouterr().out
    assert told.count("stopped for the time") == 2
    assert "2 of 2 runs are to come" in told
    assert script.main([*line, "--minutes=1"]) == 1  # in which no run would start
    assert "--minutes: got 1.0, expected more than 1.25" in capsys.readouterr().err
    monkeypatch.setattr(script, "call", lambda *_: (1, False))  # it failed at the end
    assert script.main([*line, "--minutes=2"]) == 1


def test_a_program_gets_a_signal_before_the_deadline(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "SAVING_SECONDS", 1.0)
    code = """
import signal, sys, time
def stop(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, {})
print("ready", flush=True)
time.sleep(60)
"""
    log = tmp_path / "log"

    def called(handler, seconds):
        line = [script.sys.executable, "-c", code.format(handler)]
        with open(log, "w") as file:
            return script.call(line, file, script.time.monotonic() + seconds)

    assert called("stop", 4) == (0, False)
    assert log.read_text().split() == ["ready", "saved"]
    assert called("signal.SIG_DFL", 2) == (-15, False)
    assert called("signal.SIG_IGN", 2) == (-9, False)  # and no later than that
    ends = [script.sys.executable, "-c", "import sys; sys.exit(3)"]
    with open(log, "w") as file:
        assert script.call(ends, file, script.math.inf) == (3, True)


def test_a_wrong_setting_is_found_before_anything_runs(script, capsys):
    assert script.main([RECALL, "--set", "optim.lrr=1"]) == 1
    assert "'lrr'" in capsys.readouterr().err
    assert not (script.ROOT / "runs").exists()


def test_the_ablation_has_settings_that_parse_and_differ(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import ablation

    runs = ablation.runs()
    assert len({run.name for run in runs}) == len(runs) > 80
    for run in runs[:: len(ablation.SEEDS) * 4]:
        ablation.sweep.check(run)
