"""What torch.save wrote, read without torch and without running anything.

A pickle is a program. Here it can build dicts, lists, numbers, numpy's arrays and
torch's tensors; any other class or function that it names is never imported or called,
and its objects are `Foreign`. Tensors are read when they are asked for, so that what
lies beside the weights costs nothing.
"""

import contextlib
import io
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # of the format before torch 1.6
# Nothing of these lies beside weights with good intent. None of it would run here
# either; a file that asks for it is refused all the same.
_HOSTILE = {
    *("builtins", "ctypes", "importlib", "nt", "os", "pdb", "pip", "posix", "pty"),
    *("runpy", "shutil", "socket", "subprocess", "sys", "timeit", "webbrowser"),
}
_HOSTILE_BUILTINS = {
    *("__import__", "apply", "breakpoint", "compile", "delattr", "eval", "exec"),
    *("execfile", "exit", "file", "input", "open", "print", "quit", "setattr"),
}
_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(getattr(jnp, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
        *("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    )
} | {"bool": np.dtype(bool)}
_STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "Long": "int64"},
    **{"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"},
    **{"Bool": "bool", "BFloat16": "bfloat16", "Untyped": "uint8"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}


class Foreign:
    """Object of a class or function that is not known here: what it was given.

    Attributes:
      qualified: name of the class or function, with its module.
      entries: what was set by key, as of a class of dicts.
      state: what its attributes were.
    """

    __slots__ = ("entries", "state")
    qualified = ""

    def __new__(cls, *_, **__):
        made = object.__new__(cls)
        made.entries, made.state = {}, None
        return made

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        self.entries[key] = value

    def __call__(self, *_, **__):
        return self

    def append(self, _):
        pass

    extend = add = append


class Storage:
    """Numbers in a row, of one dtype; `read` gives their bytes."""

    __slots__ = ("_bytes", "big_endian", "dtype", "read", "size")

    def __init__(self, dtype: str, size: int, big_endian: bool = False):
        self.dtype, self.size, self.big_endian = dtype, size, big_endian
        self.read: Callable[[], bytes] | None = None
        self._bytes: bytes | None = None

    def __setstate__(self, _):
        raise pickle.UnpicklingError("a storage is set anew")

    def numbers(self, dtype: str | None = None) -> np.ndarray:
        if self.dtype not in _DTYPES or self.read is None:
            raise ValueError(f"{self.dtype} numbers, expected plain ones")
        if self._bytes is None:
            self._bytes = self.read()
        kind = _DTYPES[dtype or self.dtype]
        data = np.frombuffer(self._bytes, np.uint8)
        if self.big_endian:
            part = kind.itemsize // (2 if kind.kind == "c" else 1)
            data = np.ascontiguousarray(data.reshape(-1, part)[:, ::-1]).reshape(-1)
        return data.view(kind)


class Tensor(NamedTuple):
    """A view of a storage, in elements as torch counts."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str | None = None
    negative: bool = False

    def numpy(self) -> np.ndarray:
        """The numbers, copied.

        Raises:
          ValueError: it reaches past its storage, or its numbers are no plain ones.
        """
        numbers = self.storage.numbers(self.dtype)
        steps = list(zip(self.shape, self.strides, strict=True))
        if min([self.offset, *self.shape, *self.strides]) < 0:
            raise ValueError(f"shape {self.shape} with steps {self.strides}")
        if not math.prod(self.shape):
            return np.zeros(self.shape, numbers.dtype)
        if self.offset + sum((n - 1) * step for n, step in steps) >= len(numbers):
            raise ValueError(f"shape {self.shape} in a storage of {len(numbers)}")
        strides = [step * numbers.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.shape, strides, writeable=False
        )
        return -view if self.negative else view.copy()


class Array:
    """An array of numpy in a pickle."""

    __slots__ = ("value",)

    def __init__(self, value: np.ndarray | None = None):
        self.value = value

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        self.value = _filled(raw, dtype, shape, "F" if fortran else "C")

    def numpy(self) -> np.ndarray:
        if self.value is None:
            raise ValueError("an array of objects, expected numbers")
        return self.value


class _Dtype:
    """A dtype of numpy in a pickle; `value` is None where it has no plain numbers."""

    __slots__ = ("value",)

    def __init__(self, code: str, *_):
        plain = re.fullmatch(r"[<>=|]?[biufc]\d{1,2}", str(code))
        self.value = np.dtype(code) if plain else None

    def __setstate__(self, state):
        if self.value is not None and state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _filled(raw, dtype: _Dtype, shape, order: str) -> np.ndarray | None:
    if dtype.value is None or isinstance(raw, list):
        return None
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    array = np.frombuffer(raw, dtype.value).reshape(shape, order=order)
    return array.astype(dtype.value.newbyteorder("="))


def _scalar(dtype: _Dtype, raw=b""):
    filled = _filled(raw, dtype, (), "C")
    return Foreign() if filled is None else filled[()]


class _Call:
    """A function that a pickle may call; it cannot be changed by one."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)

    def __setstate__(self, _):
        raise pickle.UnpicklingError("a function is set anew")


def _tensor_v2(storage, offset, size, stride, _grad=False, _hooks=None, bits=None):
    negative = bool(isinstance(bits, dict) and bits.get("neg"))
    return Tensor(storage, offset, tuple(size), tuple(stride), None, negative)


def _tensor_v3(storage, offset, size, stride, grad, hooks, dtype, bits=None):
    tensor = _tensor_v2(storage, offset, size, stride, grad, hooks, bits)
    return tensor._replace(dtype=dtype)


def _again(function, _type, args, _state):
    """A tensor of a class of its own, or with attributes of its own."""
    return _made(function, args)


def _made(made, args=()):
    """An object of what the pickle has named; of anything else, nothing is called."""
    foreign = isinstance(made, type) and issubclass(made, Foreign)
    return made(*args) if foreign or isinstance(made, _Call) else Foreign()


class _Dict(dict):
    """A dict whose attributes are left out, such as torch's `_metadata`."""

    __slots__ = ()

    def __setstate__(self, _):
        pass


def _entries(*args) -> dict:
    return _Dict(args[-1]) if args and isinstance(args[-1], dict | list) else _Dict()


def _first(value, *_):
    return value


def _listed(kind: type) -> Callable:
    """The constructor of a container, for containers alone: a range may be endless."""

    def make(values=(), *_):
        return kind(values) if isinstance(values, list | tuple | set) else kind()

    return make


_KNOWN: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._tensor._rebuild_from_type_v2": _again,
    "torch.nn.parameter.Parameter": _first,
    "torch.nn.parameter.Buffer": _first,
    "torch.storage._load_from_bytes": lambda data: _stream(io.BytesIO(data)),
    "torch.Size": _listed(tuple),
    "collections.OrderedDict": _entries,
    "collections.defaultdict": _entries,
    "collections.Counter": _entries,
    "collections.deque": _listed(list),
    "builtins.dict": _entries,
    **{f"builtins.{k.__name__}": _listed(k) for k in (list, tuple, set, frozenset)},
    "builtins.bytes": lambda: b"",  # others are encoded texts where they are old
    "_codecs.encode": lambda text, _="latin1": text.encode("latin1"),
    "copyreg._reconstructor": lambda made, *_: _made(made),
    "numpy.dtype": _Dtype,
    "numpy._core.multiarray._reconstruct": lambda *_: Array(),
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": lambda raw, dtype, shape, order: Array(
        _filled(raw, dtype, shape, order)
    ),
}
_MOVED = (
    ("__builtin__.", "builtins."),
    ("copy_reg.", "copyreg."),
    ("numpy.core.", "numpy._core."),
)


class _Unpickler(pickle.Unpickler):
    """Makes what is known, and of the rest `Foreign`."""

    def __init__(self, file, storage: Callable[[str, str, int], Storage] | None = None):
        super().__init__(file, encoding="latin1")  # what Python 2 wrote never fails
        self._storage = storage

    def find_class(self, module: str, name: str):
        full = f"{module}.{name}"
        for old, new in _MOVED:
            if full.startswith(old):
                full = new + full.removeprefix(old)
        if full in _KNOWN:
            return _Call(_KNOWN[full])
        if full.startswith("torch."):
            last = full.rpartition(".")[2]
            if last in _DTYPES:
                return last
            if last.endswith("Storage"):
                kind = last.removesuffix("Storage")
                return _STORAGES.get(kind, kind)
        _check_harmless(full)
        return type("Foreign", (Foreign,), {"__slots__": (), "qualified": full})

    def persistent_load(self, pid):
        kind, *rest = pid
        if kind == "module":  # a class, and its source beside it
            return rest[0]
        if kind != "storage" or self._storage is None:
            raise pickle.UnpicklingError(f"a {kind!r} that lies elsewhere")
        dtype, key, _, size, *view = rest
        if any(x is not None for x in view):
            raise pickle.UnpicklingError("views of storages, of torch before 0.4")
        return self._storage(dtype, key, size)


def _check_harmless(full: str) -> None:
    """ValueError for a function that no file of weights calls."""
    package, _, name = full.partition(".")
    if package not in _HOSTILE:
        return
    if package == "builtins":
        if name not in _HOSTILE_BUILTINS:
            return
        full = name
    raise Refused(f"loading it would run {full}, expected weights; refused")


class Refused(ValueError):
    """The file asks for what no file of weights needs."""


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Any]:
    """The object in the file; tensors can be read until the block ends.

    Raises:
      Refused: see there. Exception: whatever a damaged file leads to.
    """
    with open(path, "rb") as file:
        if file.peek(2)[:2] != b"PK":
            yield _stream(file)
        else:
            with zipfile.ZipFile(file) as archive:
                yield _archive(archive)


def _archive(archive: zipfile.ZipFile) -> Any:
    """The format since torch 1.6: a pickle, and a file for each storage."""
    names = set(archive.namelist())
    pickles = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
    root = min(pickles, key=len).removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise Refused(
            "got a program of TorchScript, expected a state dict: torch.save("
            "module.state_dict(), ...) writes one"
        )
    order = f"{root}byteorder"
    big = order in names and archive.read(order) == b"big"
    made: dict[str, Storage] = {}

    def storage(dtype: str, key: str, size: int) -> Storage:
        if key not in made:
            made[key] = Storage(dtype, size, big)
            made[key].read = lambda: archive.read(f"{root}data/{key}")
        return made[key]

    return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storage).load()


def _stream(file) -> Any:
    """The older format: pickles in a row, then the storages; or one plain pickle."""
    found = _Unpickler(file).load()
    if found != _MAGIC:
        return found
    _Unpickler(file).load()  # its version
    about = _Unpickler(file).load()
    big = isinstance(about, dict) and about.get("little_endian") is False
    made: dict[str, Storage] = {}

    def storage(dtype: str, key: str, size: int) -> Storage:
        return made.setdefault(key, Storage(dtype, size, big))

    found = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "big" if big else "little")
        size = count * _DTYPES[made[key].dtype].itemsize
        made[key].read = _reader(file, file.tell(), size)
        file.seek(size, os.SEEK_CUR)
    if file.tell() > file.seek(0, os.SEEK_END):
        raise EOFError("it ends before its numbers do")
    return found


def _reader(file, start: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        file.seek(start)
        return file.read(size)

    return read
