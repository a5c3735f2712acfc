"""The state dict in what a training script saved, found by the names in use.

Scripts put it under a key, beside others or within others, keep a moving average of the
weights next to it, and wrap modules so that names begin with what is not the model's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from a2os2a_jax.interop.torch_families import FAMILIES
from a2os2a_jax.interop.torch_pickle import Array, Foreign, Tensor

PLAIN = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network"),
    *("net_state_dict", "module", "state", "params", "weights", "checkpoint"),
    *("student", "teacher"),
)
AVERAGED = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "net_ema"),
    *("ema_net", "params_ema", "model_ema_state_dict", "ema_model_state_dict"),
    "shadow",
)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "encoder.")
PREFIXES += ("backbone.",)
_WITHIN = r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_MODELS = ("student", "", *AVERAGED, "teacher")  # in front of names, several of them
COUNTERS = ("total_ops", "total_params", "num_batches_tracked", "n_averaged")
# What averages of parameters alone leave to the model itself.
BUFFERS = ("running_mean", "running_var", "firing_rate_x", "firing_rate_attn")
_DEEPEST, _SHOWN = 5, 6
OTHER = "entry= (init_from: FILE@ENTRY) names another, by keys or prefixes of names"
_NO_PREFIX = "names without a prefix"


class Chosen(NamedTuple):
    """A state dict of a file.

    Attributes:
      tensors: by their names, without what wrappers put in front.
      entry: where it was, "ema.module"; "" where it is the whole.
      average: it is a moving average of the weights.
      others: entries that were not taken.
      notes: what was left out, for people.
    """

    tensors: dict[str, Any]
    entry: str
    average: bool
    others: tuple[str, ...]
    notes: list[str]


class _Held(NamedTuple):
    path: tuple[str, ...]
    tensors: dict[str, Any]

    @property
    def entry(self) -> str:
        return ".".join(self.path)

    @property
    def average(self) -> bool:
        return any(key in AVERAGED for key in self.entry.split("."))


def choose(tree: Any, average: bool, entry: str | None = None) -> Chosen:
    """The state dict in `tree`: the average of the weights, or the weights as they are.

    Where there is one of the two, that.

    Args:
      tree: what a file holds.
      entry: a path of dots to what is wanted: keys first, then beginnings of names.
    Raises:
      ValueError: there is no state dict, no such entry, or a name twice; says what is
        there, and what is known.
    """
    path: tuple[str, ...] = ()
    if type(tree) in (list, tuple) and any(_mapping(x) is not None for x in tree):
        tree = {str(i): value for i, value in enumerate(tree)}
    if _mapping(tree) is None:
        raise ValueError(f"got {_kind(tree)}, expected a state dict")
    if entry:
        found = _at(tree, entry)
        if found is None:
            places = list(dict.fromkeys(h.entry for h in _held(tree) if h.path))
            listed = ", ".join(places or _keys(_mapping(tree)))
            raise ValueError(f"got the entry {entry!r}, expected one of {listed}")
        tree, path = found, (entry,)
    held = list(_held(tree, path)) or list(_only(tree, path))
    if not held:
        there = ", ".join(_keys(_mapping(tree))) or "no tensors"
        known = ", ".join((*PLAIN, *AVERAGED))
        raise ValueError(
            f"got {there}, expected tensors by their names, or such under one of "
            f"{known}; {OTHER}"
        )
    taken = next((h for h in held if h.average == average), held[0])
    notes = []
    if len(held) > 1 or taken.average:
        everything = " and ".join(h.entry or _NO_PREFIX for h in held)
        kind = ", an average of the weights" if taken.average else ""
        notes.append(f"holds {everything}, took {taken.entry or _NO_PREFIX}{kind}")
    others = tuple(h.entry or _NO_PREFIX for h in held if h is not taken)
    tensors, more = _bare(taken.tensors)
    if taken.average and not held[0].average:
        rest, _ = _bare(held[0].tensors)
        more += _completed(tensors, rest, held[0].entry)
    return Chosen(tensors, taken.entry, taken.average, others, notes + more)


def _completed(average: dict[str, Any], rest: dict[str, Any], entry: str) -> list[str]:
    """Adds the buffers to an average of parameters alone; a note if there were any."""
    lacks = [name for name in rest if name not in average]
    if not lacks or any(name.rpartition(".")[2] not in BUFFERS for name in lacks):
        return []
    average |= {name: rest[name] for name in lacks}
    return [f"of {entry or _NO_PREFIX}: {len(lacks)} statistics, not in the average"]


# --- where it is ----------------------------------------------------------------------


def _held(node: Any, path: tuple[str, ...] = ()) -> Iterator[_Held]:
    """The state dicts at `node`, those that come first first."""
    mapping = _mapping(node)
    if mapping is None or len(path) > _DEEPEST:
        return
    found = False
    for key in (*PLAIN, *AVERAGED):
        for held in _held(mapping.get(key), (*path, key)):
            found = True
            yield held
    if not found and any(map(_is_tensor, mapping.values())):
        for front, tensors in _by_model(mapping).items():
            yield _Held((*path, front) if front else path, tensors)


def _by_model(mapping: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    """The names of each model, where they tell of several by how they begin."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in mapping.items():
        front, _, rest = _stripped(str(name)).partition(".")
        several = rest and front in _MODELS
        parts.setdefault(front if several else "", {})[str(name)] = value
    some = {f: part for f, part in parts.items() if any(map(_is_tensor, part.values()))}
    return {front: some[front] for front in _MODELS if front in some}


def _only(tree: Any, path: tuple[str, ...]) -> Iterator[_Held]:
    """The one entry with tensors, where no key is known; or the parts of one model."""
    found = {
        key: inner
        for key, value in _mapping(tree).items()
        if isinstance(key, str) and "optim" not in key
        if (inner := _mapping(value)) is not None
        if any(isinstance(k, str) and _is_tensor(v) for k, v in inner.items())
    }
    if len(found) == 1:
        ((key, inner),) = found.items()
        yield _Held((*path, key), dict(inner))
        return
    parts = {f"{k}.{name}": x for k in found for name, x in found[k].items()}
    fronts = {_stripped(name).partition(".")[0] for name in parts}
    if parts and fronts <= _roots():
        yield _Held(path, parts)


def _at(node: Any, entry: str) -> Any:
    """What the path leads to; None where it leads nowhere."""
    mapping = _mapping(node)
    if mapping is None:
        return None
    if mapping.get(entry) is not None and _mapping(mapping[entry]) is not None:
        return mapping[entry]
    for key, value in mapping.items():
        if isinstance(key, str) and entry.startswith(f"{key}."):
            found = _at(value, entry.removeprefix(f"{key}."))
            if found is not None:
                return found
    for bare in (str, _stripped):
        names = {bare(str(name)): value for name, value in mapping.items()}
        front = entry.rstrip(".") + "."
        some = {
            name.removeprefix(front): value
            for name, value in names.items()
            if name.startswith(front)
        }
        if some:
            return some
    known = (mapping.get(key) for key in (*PLAIN, *AVERAGED))
    return next((x for n in known if (x := _at(n, entry)) is not None), None)


# --- what it holds --------------------------------------------------------------------


def _bare(named: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(tensors by the model's own names, notes on what was left out)."""
    counters = [name for name in named if name.rpartition(".")[2] in COUNTERS]
    odd = [n for n, value in named.items() if not _is_tensor(value, n)]
    tensors, fronts = {}, {}
    for name, bare in _names([n for n in named if n not in {*counters, *odd}]):
        if bare in tensors:
            raise ValueError(f"got {bare} twice, expected once: as {name} too; {OTHER}")
        tensors[bare] = named[name]
        if front := name.removesuffix(bare):
            fronts[front] = None
    notes = []
    if fronts:
        notes.append(f"left out in front of names: {', '.join(fronts)}")
    if counters:
        kinds = dict.fromkeys(name.rpartition(".")[2] for name in counters)
        notes.append(f"left out: {len(counters)} counters ({', '.join(kinds)})")
    if odd := [n for n in odd if n not in counters]:
        notes.append(f"left out, no tensors: {_some(odd)}")
    return tensors, notes


def _names(names: list[str]) -> Iterator[tuple[str, str]]:
    """(name, the model's own) of each: known prefixes go, and one that all share if
    names of a family are behind it."""
    bare = {}
    for name in names:
        front, _, rest = _stripped(name).partition(".")
        bare[name] = _stripped(rest) if rest and front in _MODELS else _stripped(name)
    fronts = {b.partition(".")[0] for b in bare.values()}
    if len(fronts) == 1 and not fronts & _roots():
        rests = {name: _stripped(b.partition(".")[2]) for name, b in bare.items()}
        if any(rest.partition(".")[0] in _roots() for rest in rests.values()):
            bare = rests
    return iter(bare.items())


def _roots() -> set[str]:
    """How the names of a family's modules can begin."""
    rows = (row.theirs for family in FAMILIES.values() for row in family.rows(1))
    return {name.partition(".")[0] for name in rows}


def _stripped(name: str) -> str:
    while (less := re.sub(_WITHIN, r"\1", name)) != name:
        name = less
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _mapping(value: Any) -> Mapping[Any, Any] | None:
    """A dict, what an object holds by key or attribute, or a module's state dict."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, Foreign):
        return None
    if isinstance(value.state, dict) and "_parameters" in value.state:
        return dict(_of_module(value))
    return value.entries or (value.state if isinstance(value.state, dict) else None)


def _of_module(module: Foreign, front: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values as torch's Module.state_dict gives them."""
    state = module.state
    fleeting = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if value is not None and name not in fleeting:
                yield f"{front}{name}", value
    for name, inner in (state.get("_modules") or {}).items():
        if isinstance(inner, Foreign) and isinstance(inner.state, dict):
            yield from _of_module(inner, f"{front}{name}.")


def _is_tensor(value: Any, name: str = "") -> bool:
    """Whether it is one, also of a kind that cannot be read: quantised, distributed."""
    if isinstance(value, Foreign):
        odd = re.search(r"\b_?rebuild|Tensor\b", value.qualified)
        return odd is not None and "_extra_state" not in name
    return isinstance(value, Tensor | Array | np.ndarray)


def _keys(mapping: Mapping[Any, Any]) -> list[str]:
    """Some keys, with what they lead to where it is no number or text."""
    some = [
        f"{key} ({_kind(value)})" if _mapping(value) is not None else str(key)
        for key, value in list(mapping.items())[:_SHOWN]
    ]
    more = len(mapping) - len(some)
    return some + ([f"{more} more"] if more else [])


def _kind(value: Any) -> str:
    if isinstance(value, Foreign):
        return value.qualified or "an object"
    return "dict" if isinstance(value, Mapping) else type(value).__name__


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
