"""The state dict among what training scripts keep, by the names in use."""

import logging
import pathlib
import re

import numpy as np
import pytest

from a2os2a_jax.interop import torch_entries, torch_files
from tests.interop.torch_format import KERNEL, STATE, Call, behind, checkpoint, equal


@pytest.mark.parametrize("key", torch_entries.PLAIN + torch_entries.AVERAGED)
def test_the_keys_of_training_scripts_are_known(saved, key):
    equal(torch_files.read(saved(checkpoint(**{key: STATE}))), STATE)


def test_the_page_has_every_key_and_prefix():
    page = pathlib.Path(__file__).parents[2] / "docs/torch.md"
    text = page.read_text(encoding="utf-8")
    row = r"^\| (weights|their moving average) \| (.*) \|$"
    rows = dict(re.findall(row, text, re.MULTILINE))
    listed = [tuple(re.findall(r"`(\w+)`", row)) for row in rows.values()]
    assert listed == [torch_entries.PLAIN, torch_entries.AVERAGED]
    (go,) = re.findall(r"In front of names go ((?:`[\w.]+`[\s,]+)+)", text)
    assert tuple(re.findall(r"`([\w.]+)`", go)) == torch_entries.PREFIXES


NESTED = {
    "deepspeed": dict(module=STATE, ds_version="0.9"),
    "an average with its count": dict(ema=dict(module=STATE, updates=5, decay=0.999)),
    "two keys deep": dict(checkpoint=dict(model=STATE), epoch=3),
    "a config of the same name": dict(model=dict(dim=384), state_dict=STATE),
    "numbers beside it": dict(state_dict=STATE, best=np.float32(0.9) * np.ones(1)),
    "a key that nobody knows": dict(my_snn=STATE, optimizer=dict(state={0: KERNEL})),
    "a class of dicts": Call(
        "yacs.config.CfgNode", items=dict(epoch=1, state_dict=STATE)
    ),
    "a pair": (STATE, 3),
    "attributes": Call("train.Checkpoint", state=dict(epoch=1, net=STATE)),
    "parts": dict(
        backbone={"stem.x": KERNEL}, head={"weight": KERNEL}, epoch=1, optimizer={}
    ),
}


@pytest.mark.parametrize("what", NESTED)
def test_a_state_dict_within_others_is_found(saved, what):
    want = STATE
    if what == "parts":
        want = {"stem.x": KERNEL, "head.weight": KERNEL}
    equal(torch_files.read(saved(NESTED[what])), want)


@pytest.mark.parametrize(
    "front",
    [
        *torch_entries.PREFIXES,
        "module.model.",
        "model.module.",
        "_orig_mod.module.encoder.",
        "module._orig_mod.backbone.",
        "net.backbone.encoder._orig_mod.",
        "student.",
        "student.module.backbone.",
        "snn.",
        "model.snn.",
        "1.",
    ],
)
def test_what_wrappers_put_in_front_of_names_goes(saved, front):
    found = torch_files.choose(saved({"state_dict": behind(front, STATE)}))
    equal(found.arrays, STATE)
    assert found.notes[-1] == f"left out in front of names: {front}"


def test_wrappers_of_a_part_go_too(saved):
    wrapped = {
        "block.0._orig_mod.attn.x": KERNEL,
        "module.block.1._checkpoint_wrapped_module._orig_mod.x": KERNEL,
        "encoder.stem.x": KERNEL,
        "head.weight": KERNEL,
    }
    names = ["block.0.attn.x", "block.1.x", "stem.x", "head.weight"]
    assert list(torch_files.read(saved(wrapped))) == names


def test_counters_are_left_out_and_counted(saved):
    counters = {
        "total_ops": np.zeros(1, np.float64),
        "head.total_ops": np.zeros(1, np.float64),
        "head.total_params": np.full(1, np.nan),
        "bn.num_batches_tracked": np.array(7),
        "n_averaged": np.array(3),
    }
    found = torch_files.choose(saved({"state_dict": counters | STATE}))
    equal(found.arrays, STATE)
    assert found.notes == [
        "left out: 5 counters (total_ops, total_params, num_batches_tracked, "
        "n_averaged)"
    ]


def test_what_is_no_tensor_among_them_is_left_out_and_named(saved):
    more = {"arch": "spikformer", "epoch": 3, "head._extra_state": Call("io.BytesIO")}
    found = torch_files.choose(
        saved(more | STATE | {"args": Call("argparse.Namespace", state={})})
    )
    equal(found.arrays, STATE)
    assert found.notes == ["left out, no tensors: arch, epoch, head._extra_state, args"]


HALF = {name: value / 2 for name, value in STATE.items()}


@pytest.mark.parametrize(
    "tree",
    [
        checkpoint(state_dict=STATE, state_dict_ema=HALF),
        dict(model=STATE, model_ema=HALF),
        dict(model=STATE, ema=dict(module=HALF)),
        dict(state_dict=dict(ema=HALF, model=STATE)),
        behind("net.", STATE) | behind("ema.module.", HALF),
        dict(state_dict=behind("model.", STATE) | behind("model_ema.", HALF)),
        behind("model.", STATE) | behind("model.ema.", HALF),
    ],
)
def test_the_moving_average_is_taken_when_asked_for(saved, caplog, tree):
    path = saved(tree)
    with caplog.at_level(logging.WARNING, "a2os2a_jax"):
        equal(torch_files.read(path), STATE)
    assert re.search(r"holds .* and .*, took ", caplog.text)
    equal(torch_files.read(path, ema=True), HALF)
    for average, kind in ((True, "average"), (False, "plain")):
        about = torch_files.choose(path, average).about
        assert about["weights"] == kind and len(about["others"]) == 1


def test_an_average_of_parameters_alone_has_the_statistics_of_the_model(saved):
    statistics = {"bn.running_mean": KERNEL[0], "bn.running_var": KERNEL[1]}
    found = torch_files.choose(saved({"model": STATE | statistics, "ema": HALF}))
    equal(found.arrays, HALF | statistics)
    assert found.notes[-1] == "of model: 2 statistics, not in the average"
    more = {"model": STATE | statistics | {"block.x": KERNEL}, "ema": HALF}
    equal(torch_files.choose(saved(more)).arrays, HALF)  # another model, it seems


def test_of_weights_and_no_average_or_an_average_alone(saved, caplog):
    alone = saved(checkpoint(state_dict_ema=HALF), "alone.pth")
    equal(torch_files.read(alone), HALF)
    assert "holds state_dict_ema, took state_dict_ema, an average" in caplog.text
    assert torch_files.choose(alone, False).about["weights"] == "average"
    plain = saved(checkpoint(state_dict=STATE))
    with pytest.raises(ValueError, match="got weights alone, .*under .*state_dict_ema"):
        torch_files.read(plain, ema=True)
    assert torch_files.choose(plain).about == {"entry": "state_dict"}


ENTRIES = {  # file, entry
    "a key": (dict(model=HALF, generator=STATE), "generator"),
    "a key of several": (dict(state_dict=HALF, state_dict_ema=STATE), "state_dict_ema"),
    "a path": (dict(ours=dict(second=STATE, first=HALF), model=HALF), "ours.second"),
    "a path to names": (
        dict(state_dict=behind("a.", HALF) | behind("b.c.", STATE)),
        "state_dict.b.c",
    ),
    "names": (behind("first.", HALF) | behind("second.", STATE), "second"),
    "names with a dot": (behind("first.", HALF) | behind("second.", STATE), "second."),
    "names in a known key": (
        dict(state_dict=behind("teacher.", STATE) | behind("student.", HALF)),
        "teacher",
    ),
    "names behind a prefix": (
        behind("module.a.", HALF) | behind("module.teacher.backbone.", STATE),
        "teacher",
    ),
    "names that would be twice": (
        behind("net.", HALF) | behind("model.", STATE),
        "model",
    ),
}


@pytest.mark.parametrize("what", ENTRIES)
def test_an_entry_can_be_named(saved, what):
    tree, entry = ENTRIES[what]
    equal(torch_files.read(saved(tree), entry=entry), STATE)


def test_what_cannot_be_told_says_what_is_there_and_what_is_known(saved):
    with pytest.raises(ValueError, match="got list, expected a state dict"):
        torch_files.read(saved([1, 2]))
    with pytest.raises(ValueError, match="got my.Thing, expected a state dict"):
        torch_files.read(saved(Call("my.Thing")))
    two = dict(first=behind("a.", STATE), second=behind("b.", STATE), epoch=3)
    with pytest.raises(ValueError) as error:
        torch_files.read(saved(two))
    words = ["first (dict), second (dict), epoch", "state_dict, ", "model_ema, "]
    words += ["entry=", "FILE@ENTRY"]
    assert not [word for word in words if word not in str(error.value)], error.value
    with pytest.raises(ValueError, match="entry 'third', expected one of first"):
        torch_files.read(saved(two), entry="third")
    with pytest.raises(ValueError, match="head.weight twice.* net.head.weight.*entry="):
        torch_files.read(saved(behind("model.", STATE) | behind("net.", HALF)))
    with pytest.raises(ValueError, match="got arch, epoch, expected tensors"):
        torch_files.read(saved({"arch": "spikformer", "epoch": 3}))


def test_tensors_of_kinds_that_are_not_read_are_named(saved):
    odd = Call("torch._utils._rebuild_qtensor", 1)
    with pytest.raises(ValueError, match=r"head.x is a torch._utils._rebuild_qtensor"):
        torch_files.read(saved({"head.x": odd} | STATE))
    found = torch_files.choose(saved({"state_dict": STATE, "more": odd}))
    equal(found.arrays, STATE)
