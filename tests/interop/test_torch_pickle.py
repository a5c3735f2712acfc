"""What torch.save wrote, read without torch, and nothing of it run."""

import argparse
import collections
import datetime
import decimal
import enum
import json
import pathlib
import pickle
import random
import zipfile

import numpy as np
import pytest

from a2os2a_jax.interop import torch_files
from tests.interop.torch_format import (
    KERNEL,
    STATE,
    Call,
    Global,
    Plain,
    View,
    behind,
    checkpoint,
    equal,
)


class Evil:
    """Unpickling one would run a command."""

    def __reduce__(self):
        return (print, ("you have been had",))


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.pth.tar", "m.ckpt"])
@pytest.mark.parametrize("old", [False, True])
def test_torch_files_in_their_usual_shapes(saved, name, old):
    tree = checkpoint(state_dict=behind("module.", STATE))
    equal(torch_files.read(saved(tree, name, old=old)), STATE)


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_of_arrays_is_read(tmp_path, protocol):
    path = tmp_path / "model.pth"
    scalar = {"best": np.float64(0.5), "order": np.asfortranarray(KERNEL)}
    path.write_bytes(pickle.dumps({"state_dict": STATE, "more": scalar}, protocol))
    equal(torch_files.read(path), STATE)
    path.write_bytes(pickle.dumps({"x": np.asfortranarray(KERNEL)}, protocol))
    equal(torch_files.read(path), {"x": KERNEL})


def test_numbers_are_where_their_steps_lead(saved):
    def view(offset, shape, strides, **bits):
        base = np.arange(6, dtype=np.float32)
        base.flags.writeable = False
        return View(base, offset, shape, strides, bits)

    tree = {
        "turned.weight": view(0, (3, 2), (1, 3)),
        "later": view(4, (2,), (1,)),
        "spread": view(5, (2, 2), (0, 0)),
        "negative": view(0, (2,), (1,), neg=True),
        "none": view(0, (0, 3), (3, 1)),
        "one": view(2, (), ()),
    }
    for old in (False, True):
        got = torch_files.read(saved(tree, old=old))
        np.testing.assert_array_equal(
            got["turned.weight"], np.arange(6).reshape(2, 3).T
        )
        assert got["later"].tolist() == [4, 5] and got["one"] == 2
        assert got["spread"].tolist() == [[5, 5], [5, 5]]
        assert got["negative"].tolist() == [0, -1] and got["none"].shape == (0, 3)
    for bad in (view(4, (3,), (1,)), view(0, (2,), (-1,)), view(-1, (1,), (1,))):
        with pytest.raises(ValueError, match="model.pth: bad is of shape "):
            torch_files.read(saved({"bad": bad}))


class Colour(enum.Enum):
    RED = 1


def cfg_node(**items):
    """As yacs, easydict and others: a class of dicts."""
    return Call("yacs.config.CfgNode", items=items, state={"__immutable__": True})


BESIDE = {
    "argparse": Call("argparse.Namespace", state={"lr": 5e-4, "mean": (0.5, 0.5)}),
    "numpy's scalar": Plain(np.float64(95.5)),
    "numpy's whole number": Plain(np.int64(3)),
    "numpy's array": Plain(np.arange(3)),
    "numpy's texts": Plain(np.array(["a", "b"])),
    "numpy's objects": Plain(np.array([None, {}], object)),
    "numpy's records": Plain(np.zeros(2, [("a", "<f4"), ("b", "<i8")])),
    "numpy's dtype": Plain(np.dtype("float16")),
    "numpy's random state": Plain(np.random.RandomState(0).get_state()),
    "numpy's generator": Plain(np.random.default_rng(0)),
    "a path": Call("pathlib.PosixPath", "/", "data", "cifar"),
    "a path of Windows": Call("pathlib.WindowsPath", "C:\\", "data"),
    "collections": Plain(
        (
            collections.OrderedDict(a=1),
            collections.defaultdict(list, a=[1]),
            collections.Counter("aab"),
            collections.deque([1, 2], 3),
        )
    ),
    "sets": Plain(({1, 2}, frozenset("ab"))),
    "a time": Plain((datetime.datetime(2024, 5, 1), datetime.timedelta(3))),
    "a number": Plain((decimal.Decimal("0.1"), 2j, b"bytes", bytearray(b"more"))),
    "an enum": Plain(Colour.RED),
    "torch's own": [
        Call("torch.Size", (3, 4)),
        Call("torch.device", "cuda", 0),
        Global("torch.float32"),
        Global("torch.nn.functional.relu"),
        Call("torch.optim.lr_scheduler.LambdaLR", state={"last_epoch": 3}),
    ],
    "yacs": cfg_node(MODEL=cfg_node(NAME="spikformer"), SEED=1),
    "omegaconf": Call(
        "omegaconf.dictconfig.DictConfig",
        state={"_metadata": Call("omegaconf.base.ContainerMetadata"), "_content": {}},
    ),
    "of Python 2": [Global("__builtin__.long"), Global("__builtin__.unicode")],
    "a built-in": [Global("builtins.len"), Global("builtins.ValueError")],
    "an iterator": Plain((iter([1, 2]), range(3), slice(1))),
    "a function": Call("functools.partial", Global("timm.models.layers.trunc_normal_")),
    "an object of theirs": Call("utils.meters.AverageMeter", state={"avg": 0.5}),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("what", BESIDE)
def test_what_lies_beside_the_weights_is_passed_over(saved, what, protocol):
    tree = {"state_dict": STATE, "more": BESIDE[what], "epoch": 3}
    equal(torch_files.read(saved(tree, protocol=protocol)), STATE)


def test_a_model_that_was_saved_whole_is_read(saved):
    def module(**parts):
        state = {"_parameters": {}, "_buffers": {}, "_modules": {}, "training": True}
        return Call("models.Spikformer", state=state | parts)

    head = module(
        _parameters={"weight": KERNEL, "bias": None},
        _buffers={"seen": np.ones(2, np.float32), "fleeting": KERNEL},
        _non_persistent_buffers_set=Plain({"fleeting"}),
    )
    whole = module(_modules={"head": head, "none": None})
    want = {"head.weight": KERNEL, "head.seen": np.ones(2, np.float32)}
    equal(torch_files.read(saved(whole)), want)
    equal(torch_files.read(saved({"epoch": 3, "model": whole})), want)
    equal(torch_files.read(saved(module(_modules={"module": whole}))), want)


HOSTILE = {
    "os.system": Call("os.system", "touch hacked"),
    "posix.system": Call("posix.system", "touch hacked"),
    "eval": Call("builtins.eval", "print('you have been had')"),
    "print": Call("builtins.print", "you have been had"),
    "exec": Call("__builtin__.exec", "print('you have been had')"),
    "subprocess.Popen": Call("subprocess.Popen", ["touch", "hacked"]),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_pickle_that_would_run_code_is_refused(
    saved, tmp_path, monkeypatch, capsys, what, old
):
    monkeypatch.chdir(tmp_path)
    for tree in ({"state_dict": STATE, "more": HOSTILE[what]}, HOSTILE[what]):
        with pytest.raises(ValueError, match=f"would run {what}, .*refused") as error:
            torch_files.read(saved(tree, old=old))
        assert "\n" not in str(error.value) and "model.pth" in str(error.value)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(ValueError, match=r"plain\.pth: loading it would run print"):
        torch_files.read(tmp_path / "plain.pth")
    assert "you have been had" not in capsys.readouterr().out
    assert not (tmp_path / "hacked").exists()


def test_what_is_known_by_no_list_is_never_called(saved, monkeypatch):
    called = []
    monkeypatch.setattr(json, "dumps", lambda *_: called.append(1))
    monkeypatch.setattr(json, "JSONEncoder", lambda *_: called.append(1))
    function = Call("json.dumps", {"a": 1})
    made = Call("json.JSONEncoder", state={"a": 1}, items={"b": 2})
    again = Call(
        "torch._tensor._rebuild_from_type_v2", Global("json.dumps"), 1, (1,), 1
    )
    tree = {"state_dict": STATE, "more": [function, made, again]}
    equal(torch_files.read(saved(tree)), STATE)
    assert not called


@pytest.mark.parametrize(
    "name", ["torch._utils._rebuild_tensor_v2", "collections.OrderedDict", "my.Thing"]
)
def test_a_pickle_cannot_change_what_reads_it(tmp_path, name):
    module, _, last = name.rpartition(".")
    named = f"c{module}\n{last}\n".encode()
    path = tmp_path / "model.pth"
    path.write_bytes(b"\x80\2" + named + b"}X\1\0\0\0aK\1sb.")  # its a becomes 1
    with pytest.raises(ValueError, match="model.pth: not read, expected a whole"):
        torch_files.read(path)


def test_a_program_of_torchscript_is_called_that(saved):
    path = saved(STATE)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("model/constants.pkl", "")
    with pytest.raises(ValueError, match="got a program of TorchScript, .*state_dict"):
        torch_files.read(path)


@pytest.mark.parametrize("old", [False, True])
def test_a_file_cut_anywhere_is_an_error_of_one_line(saved, old):
    path = saved(checkpoint(state_dict=STATE), old=old)
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, len(whole) // 40):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="model.pth: ") as error:
            torch_files.read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("old", [False, True])
def test_bytes_that_changed_are_an_error_of_one_line_or_none(saved, old):
    path = saved(checkpoint(state_dict=STATE, more=BESIDE["numpy's array"]), old=old)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(200):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            torch_files.read(path)
        except ValueError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("old", [False, True])
def test_what_torch_itself_writes(tmp_path, old):
    torch = pytest.importorskip("torch")
    layer = torch.nn.utils.weight_norm(torch.nn.Linear(2, 3))
    layer.to(torch.float64)
    expanded = torch.arange(6.0).reshape(2, 3).T[1:]
    tree = {
        "model": {
            "brain": torch.tensor([0.5, 1.25], dtype=torch.bfloat16),
            "half": torch.tensor([0.5, 1.25], dtype=torch.float16),
            "double": torch.tensor([0.5, 1.25], dtype=torch.float64),
            "counter": torch.tensor(3),
            "trained": torch.nn.Parameter(torch.tensor([0.5, 1.25])),
            "turned": expanded,
            "negative": torch._neg_view(torch.ones(2)),
            **layer.state_dict(),
        },
        "args": argparse.Namespace(root=pathlib.Path("data"), seen=np.float64(3)),
        "size": [torch.Size([3]), torch.device("cpu"), torch.float32],
        "rng": torch.get_rng_state(),
    }
    path = tmp_path / "model.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=not old)
    got = torch_files.read(path)
    for name, value in tree["model"].items():
        want = value.detach().double().numpy()
        np.testing.assert_array_equal(got[name], want, name)
    assert got["double"].dtype == np.float64 and got["brain"].dtype == np.float32
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 3)), path)
    assert list(torch_files.read(path)) == ["0.weight", "0.bias"]
