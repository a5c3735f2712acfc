import jax
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import main
from a2os2a_jax.commands import memory
from a2os2a_jax.train import parallel, setup

TEXT = "RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."
EXHAUSTED = jax.errors.JaxRuntimeError(TEXT)


def fail(*_, **__):
    raise jax.errors.JaxRuntimeError(TEXT)


def config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=4, channels=1)
    c.model.update(variant="1-16", heads=2)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def raised(function, *arguments):
    """What the function raises, with its traceback."""
    try:
        function(*arguments)
    except Exception as error:
        return error


def test_training_takes_less_by_batch_micro_batches_or_remat():
    found = memory.advice(EXHAUSTED, "train", config(train__batch=96))
    assert found.startswith(
        "expected a smaller train.batch than 96, or train.accumulate=2 or more, or "
        "model.remat=True, which computes blocks again; --mode=plan estimates "
    )
    assert " MiB" in found
    smallest = config(model__remat=True, train__batch=1)
    found = memory.advice(EXHAUSTED, "train", smallest)
    assert "remat" not in found and "accumulate" not in found
    found = memory.advice(
        EXHAUSTED, "train", config(train__batch=9, train__accumulate=3)
    )
    assert "train.accumulate=9 or more" in found


@pytest.mark.parametrize("mode", ["eval", "energy", "probe", "figures"])
def test_scoring_takes_less_by_its_batch(mode):
    found = memory.advice(EXHAUSTED, mode, config(eval__batch=77))
    assert found == "expected a smaller eval.batch than 77"


@pytest.mark.parametrize("mode", ["plan", "certify", "export", "predict"])
def test_where_no_batch_matters_the_model_does(mode):
    found = memory.advice(EXHAUSTED, mode, config())
    assert "model.variant" in found and "batch" not in found


def test_what_is_scored_in_training_is_not_trained(monkeypatch):
    monkeypatch.setattr(parallel, "put_batch", fail)
    parts = setup.prepare(config())
    evaluator = parts.evaluator(config(), "test")
    variables = parts.abstract_state().variables
    error = raised(evaluator.report, variables)
    found = memory.advice(error, "train", config())
    assert found == "expected a smaller eval.batch than 256"


@pytest.mark.parametrize("mode", ["train", "plan", "eval"])
def test_data_that_do_not_fit_are_named(mode, monkeypatch):
    monkeypatch.setattr("a2os2a_jax.data.load", fail)
    c = config()
    error = raised(setup.prepare, c)
    found = memory.advice(error, mode, c)
    assert found == "expected a smaller data.size than 4, or less data than fake"
    c.data.name = "mnist"
    found = memory.advice(error, mode, c)
    assert found.startswith("expected data.resident_gib=0, which streams the data, or")


def test_the_program_says_so_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("a2os2a_jax.train.loop.run", fail)
    line = ["main", "--config=configs/digits.py:smoke", f"--workdir={tmp_path}"]
    assert main.main(line) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: out of memory on the device (RESOURCE_EXHAUSTED")
    assert "a smaller train.batch than 32" in said and "--mode=plan estimates" in said
    assert len(said) < 500
