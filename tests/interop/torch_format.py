"""Files as torch.save writes them, made without torch; arrays become tensors there.

Classes and functions that a pickle names need not exist: `Call` is what one would make.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
STATE = {"head.weight": KERNEL, "head.bias": np.ones(2, np.float32)}


class Global:
    """A class or function, by name."""

    def __init__(self, name: str):
        self.module, _, self.name = name.rpartition(".")

    def __call__(self):  # pickle asks whether it could
        raise AssertionError


class Call:
    """What a class or function makes of some arguments, and what it is then given."""

    def __init__(self, name: str, *args, state=None, items=None):
        self.reduced = Global(name), args, state, None, items and iter(items.items())

    def __reduce_ex__(self, _):
        return self.reduced


class Plain(NamedTuple):
    """An object as pickle writes it: arrays in it stay numpy's."""

    value: Any


class View(NamedTuple):
    """A tensor of a storage of its own, in elements of it."""

    base: np.ndarray
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    bits: dict[str, bool]


class _Storage(NamedTuple):
    pid: tuple


class _Pickler(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file, protocol, old):
        super().__init__(file, protocol)
        self.view = (None,) if old else ()
        self.plain = False
        self.storages: dict[str, np.ndarray] = {}

    def _by_name(self, what):
        self.write(f"c{what.module}\n{what.name}\n".encode())

    dispatch[Global] = _by_name

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, _Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Plain):
            self.plain, obj = True, obj.value
            super().save(obj, save_persistent_id)
            self.plain = False
            return
        if isinstance(obj, np.ndarray) and not self.plain:
            strides = tuple(n // obj.itemsize for n in np.empty_like(obj).strides)
            obj = self._tensor(View(obj, 0, obj.shape, strides, {}))
        elif isinstance(obj, View):
            obj = self._tensor(obj)
        super().save(obj, save_persistent_id)

    def _tensor(self, view):
        key = str(len(self.storages))
        self.storages[key] = view.base
        kind = Global(f"torch.{STORAGES[view.base.dtype.name]}")
        storage = _Storage(("storage", kind, key, "cuda:0", view.base.size, *self.view))
        what = (storage, view.offset, view.shape, view.strides, False, {}, view.bits)
        return Call("torch._utils._rebuild_tensor_v2", *what)


def save(path: Path, tree: Any, old: bool = False, protocol: int = 2) -> Path:
    """Writes `tree` as torch.save does, or as it did before 1.6."""
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol, old)
    pickler.dump(tree)
    storages = pickler.storages
    if not old:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{path.stem}/data.pkl", stream.getvalue())
            archive.writestr(f"{path.stem}/byteorder", "little")
            archive.writestr(f"{path.stem}/version", "3\n")
            for key, array in storages.items():
                archive.writestr(f"{path.stem}/data/{key}", array.tobytes())
        return path
    with open(path, "wb") as file:
        about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        for head in (MAGIC, 1001, about):
            pickle.dump(head, file, protocol)
        file.write(stream.getvalue())
        pickle.dump(list(storages), file, protocol)
        for array in storages.values():
            file.write(array.size.to_bytes(8, "little") + array.tobytes())
    return path


def behind(front: str, state_dict: dict) -> dict:
    """The names with something in front."""
    return {f"{front}{name}": value for name, value in state_dict.items()}


def checkpoint(**state_dicts) -> dict:
    """As timm's saver writes it."""
    adam = {"state": {0: {"step": 3, "exp_avg": KERNEL}}, "param_groups": [{"lr": 0.1}]}
    beside = dict(lr=5e-4, model="spikformer", mean=(0.5, 0.5, 0.5))
    return dict(
        epoch=3,
        arch="spikformer",
        **state_dicts,
        optimizer=adam,
        version=2,
        args=Call("argparse.Namespace", state=beside),
        amp_scaler={"scale": 65536.0, "growth_factor": 2.0},
        metric=95.51,
    )


def equal(got: dict, want: dict) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, name)
