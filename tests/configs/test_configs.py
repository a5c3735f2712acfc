import importlib.util
import json
import re
from pathlib import Path

import pytest

from a2os2a_jax import config

ROOT = Path(__file__).resolve().parents[2]
CIFAR = (("2-256", 8), ("2-512", 8), ("4-384", 12))
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
RESULTS = ROOT / "experiments" / "results"

# What users override, and rely on in every config.
KEYS = """
seed dtype init_from
data.name data.data_dir data.size data.classes
model.name model.variant model.timesteps model.heads model.pool model.shortcut
model.attention.kind model.attention.order model.attention.k model.attention.v
model.attention.scale model.attention.k_gain model.attention.freeze
model.attention.normalise model.attention.projection
model.neuron.rule model.neuron.decay_input model.neuron.tau model.neuron.v_th
model.neuron.surrogate
optim.name optim.lr optim.weight_decay optim.warmup_epochs optim.min_lr
train.batch train.epochs train.steps train.stop_after train.log_steps train.ema
eval.batch eval.examples eval.split
mesh.data mesh.fsdp
""".split()


def _module(name):
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"configs_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configs_are_found():
    assert {"digits", "recall", "cifar10", "cifar100", "imagenet"} <= set(CONFIGS)


@pytest.mark.parametrize("mode", ["full", "smoke"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_in_every_config(name, mode):
    flat = config.flatten(_module(name).get_config(mode))
    assert set(KEYS) <= flat.keys()
    assert flat.keys() == config.flatten(config.default()).keys()
    assert any(key.startswith("augment.") for key in flat)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_can_smoke(name):
    c = _module(name).get_config("smoke")
    config.check(c)
    assert c.data.name in ("fake", "recall")  # made up, nothing to download
    full = _module(name).get_config()
    assert c.model.attention == full.model.attention
    assert c.model.neuron == full.model.neuron


@pytest.mark.parametrize("name", CONFIGS)
def test_full_is_complete(name):
    full = _module(name).get_config()
    assert full == _module(name).get_config("full")
    config.check(full)


@pytest.mark.parametrize(
    ("name", "variant", "heads"),
    [
        *[(n, v, h) for n in ("cifar10", "cifar100") for v, h in CIFAR],
        *[("imagenet", v, 8) for v in ("8-512", "10-512", "8-768")],
    ],
)
def test_published_sizes_have_a_name(name, variant, heads):
    c = _module(name).get_config(variant)
    assert (c.model.variant, c.model.heads) == (variant, heads)
    if variant == "8-768":  # a recipe of its own
        assert (c.optim.lr, c.train.batch, c.data.area) == (1e-3, 288, 0.08)
        return
    c.model.update(variant="2-512", heads=8)
    full = _module(name).get_config()
    full.model.update(variant="2-512", heads=8)
    assert c == full


@pytest.mark.parametrize("name", CONFIGS)
def test_another_mode_is_refused(name):
    with pytest.raises(ValueError, match="got :tiny, expected :full.* or :smoke"):
        _module(name).get_config("tiny")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_header_says_how_to_run_it(name):
    text = _module(name).__doc__
    start = f"python -m a2os2a_jax.main --config=configs/{name}.py"
    assert f"{start} --workdir=" in text and f"{start}:smoke --workdir=" in text
    # the overrides it shows are overrides one can make
    words = [word for word in text.split() if word.startswith("--config.")]
    for word in words:
        key = word.removeprefix("--config.").split("=")[0]
        assert key in config.flatten(config.default())


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"digits", "recall"}))
def test_the_header_says_what_to_expect(name):
    text = " ".join(_module(name).__doc__.split())
    for word in ("Published", "Ours", "xpected time"):
        assert word in text, word
    assert re.search(r"\b(GPUs?|CPU cores)\b", text)


def test_estimates_of_time_are_those_that_were_counted():
    rows = json.loads((RESULTS / "recipe_cost.json").read_text())["rows"]
    assert {row["config"] for row in rows} >= {"cifar10", "imagenet", "nmnist"}
    for row in rows:
        hours = float(format(row["hours_at_assumed"], ".2g"))
        names = (
            ("cifar10", "cifar100") if row["config"] == "cifar10" else [row["config"]]
        )
        for name in names if row["mode"] != "2-256,20" else ():
            text = " ".join(_module(name).__doc__.split())
            assert re.search(rf"(?<![\d.]){hours:g} h\b", text), (
                name,
                row["mode"],
                hours,
            )


@pytest.mark.parametrize(
    ("name", "published"), [("cifar10", "2-512"), ("cifar100", "2-512")]
)
def test_published_settings_are_kept(name, published):
    c = _module(name).get_config()
    assert c.model.variant == published and c.model.timesteps == 4
    assert (c.optim.lr, c.train.batch, c.train.epochs) == (3e-4, 64, 300)
    assert (c.optim.warmup_epochs, c.optim.warmup_lr, c.optim.min_lr) == (
        20,
        1e-6,
        1e-5,
    )
    assert (c.optim.weight_decay, c.train.label_smoothing) == (0.06, 0.1)
    assert (c.augment.mixup, c.augment.off_epoch) == (0.5, 200)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_shorter_schedule_keeps_its_shares(name):
    c = _module(name).get_config("2-256,30")
    assert (c.model.variant, c.train.epochs) == ("2-256", 30)
    assert (c.optim.warmup_epochs, c.augment.off_epoch) == (2, 20)
    whole = _module(name).get_config("2-256,300")
    assert whole == _module(name).get_config("2-256")
    for wrong in ("2-256,", "2-256,x", "2-25,3"):
        with pytest.raises(ValueError, match=f"got :{wrong}, expected"):
            _module(name).get_config(wrong)
