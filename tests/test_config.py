import json
import sys

import pytest
from ml_collections import ConfigDict

from a2os2a_jax import config
from a2os2a_jax.models import families
from a2os2a_jax.modules import neuron


def _set(c: ConfigDict, key: str, value) -> ConfigDict:
    with c.unlocked(), c.ignore_type():
        *path, last = key.split(".")
        node = c
        for name in path:
            node = node[name]
        node[last] = value
    return c


def test_the_default_is_accepted():
    config.check(config.default())


def test_every_key_is_missed():
    for key in config.flatten(config.default()):
        c = config.default()
        *path, last = key.split(".")
        node = c
        for name in path:
            node = node[name]
        del node[last]
        with pytest.raises(ValueError, match="missing; start from config.default"):
            config.check(c)


def test_a_key_that_no_one_reads_is_refused():
    with pytest.raises(ValueError, match=r"got \['optim.lrr'\], which no one reads"):
        config.check(_set(config.default(), "optim.lrr", 1.0))


OTHER = {  # a value that is not the default, of the key's type
    "train.profile_steps": "10-20",
    "mesh.fsdp": 2,
}


def test_the_table_below_knows_every_key_that_is_not_built():
    assert OTHER.keys() == config.NOT_BUILT.keys()


@pytest.mark.parametrize("key", config.NOT_BUILT)
def test_what_is_not_built_is_refused_by_name(key):
    c = config.default()
    c.update_from_flattened_dict({key: OTHER[key]})  # the type fits
    with pytest.raises(ValueError, match=f"^{key}: {OTHER[key]!r} is not built yet"):
        config.check(c)


RANGES = [
    ("train.batch", 0, "> 0"),
    ("eval.batch", -1, "> 0"),
    ("train.log_steps", 0, "> 0"),
    ("train.dispatch", 0, "> 0"),
    ("train.steps", 0, "> 0"),
    ("train.stop_after", 0, "> 0"),
    ("eval.examples", 0, "> 0"),
    ("train.epochs", 0.0, "> 0"),
    ("train.save_epochs", 0.0, "> 0"),
    ("eval.epochs", -1.0, "> 0"),
    ("optim.lr", 0.0, "> 0"),
    ("optim.clip", 0.0, "> 0"),
    ("optim.warmup_epochs", -0.5, ">= 0"),
    ("optim.warmup_lr", -1.0, ">= 0"),
    ("optim.weight_decay", -0.1, ">= 0"),
    ("optim.min_lr", -1e-9, ">= 0"),
    ("train.label_smoothing", 1.0, "0 <= it < 1"),
    ("train.label_smoothing", -0.1, "0 <= it < 1"),
    ("train.ema", 1.0, "0 <= it < 1"),
    ("model.drop_path", 1.0, "0 <= it < 1"),
    ("train.accumulate", 0, "> 0"),
    ("train.accumulate", 3, "a divisor of train.batch = 64"),
    ("train.keep", 0, "> 0"),
    ("eval.average", 0, "> 0"),
    ("eval.draws", 0, "> 0"),
    ("optim.lr", float("nan"), "a finite number"),
    ("optim.lr", float("inf"), "a finite number"),
    ("train.epochs", float("inf"), "a finite number"),
    ("model.neuron.v_th", float("nan"), "a finite number"),
]


@pytest.mark.parametrize(("key", "value", "expected"), RANGES)
def test_a_value_out_of_range_is_refused_by_name(key, value, expected):
    with pytest.raises(ValueError, match=f"^{key}: got {value}, expected {expected}$"):
        config.check(_set(config.default(), key, value))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optim.lr", "fast", "'fast', expected a number"),
        ("train.batch", 1.5, "1.5, expected an integer"),
        ("train.batch", None, "None, expected an integer"),
        ("train.batch", True, "True, expected an integer"),
        ("train.batch", [64], r"\[64\], expected an integer"),
        ("augment.flip", 1, "1, expected True or False"),
        ("dtype", 0, "0, expected a word"),
        ("model.heads", "4", "'4', expected an integer"),
        ("model.heads", 2**31, "2147483648, expected at most 2147483647"),
        ("augment.crop", -(10**12), "-1000000000000, expected at most 2147483647"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(key, value, expected):
    with pytest.raises(ValueError, match=f"^{key}: got {expected}$"):
        config.check(_set(config.default(), key, value))


def test_a_whole_number_is_a_number():
    config.check(_set(config.default(), "optim.clip", 1))


def test_a_long_list_of_keys_is_cut():
    with pytest.raises(ValueError, match=r"more missing; start from") as caught:
        config.check(ConfigDict({"seed": 1}))
    assert len(str(caught.value)) < 200


# ---- files

HEAD = "from a2os2a_jax import config\n\ndef get_config(arg='full'):\n"
FAILING = {  # what stands in a file, and what is said of it
    "raises": (f"{HEAD}    return 1 / 0", ", line 4: ZeroDivisionError: division by"),
    "refuses": (f"{HEAD}    raise ValueError('got :x')", ", line 4: got :x"),
    "asserts": (f"{HEAD}    assert False", ", line 4: AssertionError"),
    "has no key": (f"{HEAD}    raise KeyError('w')", ", line 4: KeyError: 'w'"),
    "ends the program": ("raise SystemExit(3)", ", line 1: SystemExit: 3"),
    "wrong type": (
        f"{HEAD}    config.default().update(seed='x')",
        ", line 4: TypeError: Could not override field 'seed'",
    ),
    "is no Python": ("def get_config(:", ": SyntaxError: invalid syntax"),
    "imports nothing": ("import nowhere_at_all", ", line 1: ModuleNotFoundError"),
    "is empty": ("", ": got no get_config() in it, expected one that makes a config"),
    "gives nothing": (f"{HEAD}    pass", "got NoneType from get_config() of "),
    "gives a dict": (f"{HEAD}    return {{}}", "got dict from get_config() of "),
}


@pytest.mark.parametrize("what", FAILING)
def test_a_file_that_fails_is_named_with_the_line(what, tmp_path):
    text, expected = FAILING[what]
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(ValueError, match="^--config: ") as caught:
        config.load(str(path))
    said = str(caught.value)
    assert expected in said and str(path) in said and "\n" not in said


def test_a_file_is_given_its_argument(tmp_path):
    path = tmp_path / "c"  # of any name
    path.write_text(
        f"{HEAD}    c = config.default()\n    c.data.name = arg\n    return c"
    )
    assert config.load(str(path)).data.name == "full"
    assert config.load(f"{path}:a:b").data.name == "a:b"
    assert config.load(f"{path}:").data.name == ""
    assert "config" not in sys.modules


def test_a_frozen_config_can_be_overridden(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from ml_collections import FrozenConfigDict\n"
        f"{HEAD}    return FrozenConfigDict(config.default())"
    )
    found = config.load(str(path))
    found.seed = 3
    assert config.to_json(found) == config.to_json(config.default()) | {"seed": 3}


@pytest.mark.parametrize("name", ["nowhere.py", "", "."])
def test_a_file_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"got {name}, expected a file as configs/"):
        config.load(name)


def test_mixing_stops_after_an_epoch_or_never():
    assert config.check(_set(config.default(), "augment.off_epoch", 1)) is None
    for epoch in (0, -5):
        with pytest.raises(ValueError, match=f"off_epoch: got {epoch}, .* None never"):
            config.check(_set(config.default(), "augment.off_epoch", epoch))


def test_unset_keys_take_their_type_and_are_independent():
    c = config.default()
    c.train.steps, c.model.heads = 7, 2
    assert (c.train.steps, c.model.heads) == (7, 2)
    assert c.train.stop_after is None and c.data.size is None
    assert config.default().train.steps is None
    with pytest.raises(TypeError):
        c.eval.examples = "many"


def test_json_holds_the_config():
    c = config.default()
    c.optim.clip = 0.5
    plain = config.to_json(c)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["optim"]["clip"] == 0.5 and plain["train"]["steps"] is None
    assert config.flatten(plain) == config.flatten(config.filled(c))


def _changed(**changes):
    c = config.default()
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config.to_json(c)


def test_differences_name_key_and_both_values():
    new = _changed(optim__lr=0.5, model__attention__kind="none", train__steps=9)
    assert config.differences(_changed(), new) == [
        "model.attention.kind was 'a2os2a', is 'none'",
        "optim.lr was 0.001, is 0.5",
        "train.steps was None, is 9",
    ]
    assert config.differences(new, new) == []


def test_what_may_differ_when_resuming():
    new = _changed(
        mesh__data=1,
        eval__batch=7,
        eval__examples=9,
        eval__split="train",
        eval__epochs=3.0,
        train__stop_after=5,
        train__log_steps=2,
        train__profile_steps="1-2",
        data__workers=3,
    )
    assert config.differences(_changed(), new) == []


def test_a_key_of_one_side_only_is_a_difference():
    old, new = _changed(), _changed()
    old["optim"]["heat"] = 0.9
    new["dtype"] = "bfloat16"
    del old["dtype"]
    assert config.differences(old, new) == [
        "dtype was 'float32', is 'bfloat16'",
        "optim.heat was 0.9, is None",
    ]


def test_a_key_that_came_later_had_its_default():
    old, new = _changed(), _changed()
    del old["optim"]["layer_decay"]
    assert config.differences(old, new) == []
    new["optim"]["layer_decay"] = 0.7
    assert config.differences(old, new) == ["optim.layer_decay was 1.0, is 0.7"]


def test_a_family_has_its_own_choices():
    """config.OWN says what models.families.FAMILIES says."""
    assert config.OWN.keys() == families.FAMILIES.keys()
    for name, own in config.OWN.items():
        theirs = families.FAMILIES[name]
        flat = {f"model.{key}": getattr(theirs, key) for key in ("readout", "residual")}
        flat["model.attention.kind"] = theirs.attention
        if name not in ("qkformer", "spikingresformer"):  # whose stem has one form only
            flat["model.stem"] = theirs.stem
        unset = config.flatten(config.default())
        for key in ("decay_input", "surrogate"):
            assert unset[f"model.neuron.{key}"] is None
            flat[f"model.neuron.{key}"] = theirs.neuron[key]
        assert own == flat
        c = config.default()
        c.model.name = name
        filled = config.flatten(config.filled(c))
        assert {k: filled[k] for k in own} == own
        rest = config.flatten(c)
        assert {k: v for k, v in filled.items() if k not in own} == {
            k: v for k, v in rest.items() if k not in own
        }
        assert all(rest[k] is None for k in own)  # a copy was filled
        assert theirs.neuron.keys() == neuron.DEFAULTS.keys()
        for key, value in theirs.neuron.items():  # also what is no choice of the family
            assert filled[f"model.neuron.{key}"] == value


def test_what_is_given_is_kept():
    c = config.default()
    c.model.name = "spike_driven"
    c.model.attention.kind = "a2os2a"
    c.model.neuron.rule = "guo"
    filled = config.filled(c).model
    assert (filled.attention.kind, filled.readout) == ("a2os2a", "membrane")
    assert (filled.neuron.decay_input, filled.neuron.surrogate) == (False, "atan")


def test_a_run_from_before_there_were_choices_goes_on():
    old = config.to_json(config.default())
    assert old["model"]["attention"]["kind"] == "a2os2a"  # as they were saved
    assert not config.differences(old, config.to_json(config.default()))
