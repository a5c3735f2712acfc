"""--list: what a config can name, from the registries, and what is not built yet."""

import ast
import importlib.util
import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from a2os2a_jax import config as configs
from a2os2a_jax import data, zoo
from a2os2a_jax.data import catalogue
from a2os2a_jax.functional import attention as products
from a2os2a_jax.functional import surrogate
from a2os2a_jax.models import columnar, families, registry
from a2os2a_jax.modules import attention, block, neuron
from a2os2a_jax.train import losses, optim

CONFIGS = Path(__file__).resolve().parents[2] / "configs"  # of a checkout
WIDTH = 86  # besides an indent of two
_LATER = "not built yet"


def run(modes: Mapping[str, str], later: Iterable[str] = ()) -> str:
    """Prints the list, and returns it.

    Args:
      modes: {mode: module}. later: modes to come.
    """
    sections = {
        "models, --config.model.name and .variant": _models(),
        "stems, --config.model.stem": _names((*registry.SCALES, *registry.STEMS)),
        "readouts, --config.model.readout": _names(columnar.READOUTS),
        "residuals, --config.model.residual": _names(block.RESIDUALS),
        "shortcuts, --config.model.shortcut": _names(block.SHORTCUTS),
        "attention kinds, --config.model.attention.kind": _kinds(),
        "neuron rules, --config.model.neuron.rule": _rules(),
        "surrogates, --config.model.neuron.surrogate": _surrogates(),
        "data sets, --config.data.name": _sources(),
        "losses, --config.train.loss": _names(losses.LOSSES),
        "optimizers, --config.optim.name": _names(optim.OPTIMIZERS),
        "schedules, --config.optim.schedule": _names(optim.SCHEDULES),
        "number formats, --config.dtype": _names(registry.DTYPES),
        "weights, --config.init_from": _zoo(),
        "modes, --mode": [*_modules(modes), *_planned(later)],
        f"keys that are {_LATER}": _keys(),
        "configs, --config": _configs(),
    }
    text = "\n".join(
        "\n".join([title, *(f"  {line}" for line in lines)])
        for title, lines in sections.items()
    )
    print(text)
    print("next: --config=FILE --mode=plan shows what one of these would train")
    return text


def _models() -> list[str]:
    rows = []
    for name, family in families.FAMILIES.items():
        for variant, size in family.sizes.items():
            pixels = f"{size.image_size}x{size.image_size}"
            of = f"{pixels}, {size.classes} classes, stem {size.stem}"
            rows.append((name, variant, f"{size.parameters:,} parameters", of))
        rows.append((name, "", "", f"{family.variants}; {family.source}"))
    return _columns(rows)


def _kinds() -> list[str]:
    rows = []
    for name, kind in attention.KINDS.items():
        has = kind.options
        own = {k: v for k, v in has.items() if v != attention.UNSET[k]}
        words = _pairs(own) + [k for k in has if k not in own]
        needs = "; needs a square map of tokens" * kind.square
        rows.append((name, f"{kind.source}; {kind.parity}{needs}"))
        rows.append(("", ", ".join(words) or "no options"))
    values = {**attention.ALPHABETS, "order": products.ORDERS}
    values["normalise"] = attention.NORMALISE
    given = "; ".join(f"{k} {', '.join(names)}" for k, names in values.items())
    wrapped = _wrapped("values: ", given)
    return [*_columns(rows), *wrapped]


def _rules() -> list[str]:
    options = {k: v for k, v in neuron.DEFAULTS.items() if k != "rule"}
    return _names(neuron.RULES) + _wrapped("options: ", ", ".join(_pairs(options)))


def _surrogates() -> list[str]:
    rows = []
    for name, make in surrogate.NAMED.items():
        numbers = inspect.signature(make).parameters.values()
        values = ", ".join(f"{number.name}={number.default}" for number in numbers)
        rows.append((f"{name}({values})", _first(inspect.getdoc(make))))
    return _columns(rows)


def _sources() -> list[str]:
    keys, rows = configs.default().data, []
    modules: dict[str, list[str]] = {}
    for name, module in data.SOURCES.items():
        modules.setdefault(module, []).append(name)
    for scheme, module in data.SCHEMES.items():
        modules.setdefault(module, []).append(f"{scheme}:...")
    for module, names in modules.items():
        takes = [k for k in data.takes(names[0].replace("...", "x")) if k in keys]
        about = _first(importlib.import_module(module).__doc__)
        if len(names) == 1:
            rows.append((names[0], about))
        else:
            rows += [(name, _known(name)) for name in names]
            rows.append(("", about))
        rows.append(("", f"takes {', '.join(takes)}"))
    return _columns(rows)


def _zoo() -> list[str]:
    rows = [(f"zoo:{name}", zoo.card(name)["about"]) for name in zoo.names()]
    return _columns([*rows, ("DIR, DIR@best, DIR@STEP, FILE", "of your own")])


def _known(name: str) -> str:
    known = catalogue.KNOWN.get(name)
    return known.about if known else "any set of labelled pictures, by its folder"


def _modules(modes: Mapping[str, str]) -> list[str]:
    root = Path(__file__).resolve().parents[2]
    rows = []
    for name, module in modes.items():
        path = root / Path(*module.split(".")).with_suffix(".py")
        about = _first(_docstring(path)) if path.exists() else _LATER
        rows.append((name, about.removeprefix(f"--mode={name}: ")))
    return _columns(rows)


def _keys() -> list[str]:
    """Keys of a config that may not be changed so far."""
    rows = [(key, f"only {only}") for key, only in configs.NOT_BUILT.items()]
    return _columns(rows)


def _configs() -> list[str]:
    if not CONFIGS.is_dir():
        return ["they are in the repository, not in an installed package"]
    rows = []
    for path in sorted(CONFIGS.glob("*.py")):
        rows.append((f"configs/{path.name}", _first(_docstring(path))))
        if missing := _missing(path):
            rows.append(("", f"{_LATER}: {missing}; :smoke runs"))
    return _columns(rows)


def _missing(path: Path) -> str:
    """What a config names that is not built, "" if nothing."""
    spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    flat = configs.flatten(config)
    keys = [key for key, only in configs.NOT_BUILT.items() if flat[key] != only]
    known = data.module_of(config.data.name)[0] is not None
    return ", ".join(([] if known else [f"data.name={config.data.name}"]) + keys)


def _docstring(path: Path) -> str:
    """Of a file, without running it."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _first(text: str | None) -> str:
    return (text or "").split("\n")[0]


# ---- lines


def _names(names: Iterable[str]) -> list[str]:
    return _wrapped("", ", ".join(names))


def _pairs(options: Mapping[str, Any]) -> list[str]:
    return [f"{k}={v}" for k, v in options.items()]


def _planned(names: Iterable[str]) -> list[str]:
    return _wrapped(f"{_LATER}: ", ", ".join(names)) if names else []


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells below each other; the last column is wrapped."""
    count = len(rows[0]) - 1 if rows else 0
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(count)]
    lines: list[str] = []
    for row in rows:
        left = "".join(c.ljust(w) for c, w in zip(row, widths, strict=False))
        lines += _wrapped(left, row[-1])
    return lines


def _wrapped(left: str, text: str) -> list[str]:
    if not text:
        return [left.rstrip()]
    how = dict(initial_indent=left, subsequent_indent=" " * len(left))
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, **how)
