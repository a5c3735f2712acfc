"""The verdict on a program, its price, and the table that people read."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from a2os2a_jax.analysis.audit import rules
from a2os2a_jax.analysis.audit.walk import Operation

PROVEN, REFUSED, OPEN = "addition-only", "not addition-only", "not proven"
_COLUMNS = (*rules.FREE, "product")
_NUMBERED = re.compile(r"_\d+(?=/|$)")


@dataclass(frozen=True)
class Report:
    """What `certify` found. It speaks of algebra, for all inputs of these shapes.

    operations: all that depends on data, and what folds (see `Operation.folds`).
    inputs: shapes and dtypes of the arguments that were taken for data.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...] = ()

    @property
    def products(self) -> tuple[Operation, ...]:
        """Multiplications, permitted ones included: see `Operation.allowed`."""
        kinds = (rules.MULTIPLICATION, rules.INTEGER_PRODUCT, rules.FOLDABLE)
        return tuple(o for o in self._live if o.kind in kinds)

    @property
    def refused(self) -> tuple[Operation, ...]:
        """What stands between the program and "addition-only"."""
        return tuple(o for o in self.products if not o.allowed) + self.unknown

    @property
    def allowed(self) -> tuple[Operation, ...]:
        return tuple(o for o in self.products if o.allowed)

    @property
    def unknown(self) -> tuple[Operation, ...]:
        """What there is no rule for, so that nothing is proven."""
        return tuple(o for o in self._live if o.kind == rules.UNKNOWN)

    @property
    def folds(self) -> tuple[Operation, ...]:
        """Computed once from parameters and constants, ahead of any input."""
        return tuple(o for o in self.operations if o.folds)

    @property
    def _live(self) -> list[Operation]:
        return [o for o in self.operations if not o.folds]

    @property
    def addition_only(self) -> bool:
        return not self.refused

    @property
    def verdict(self) -> str:
        if any(not o.allowed for o in self.products):
            return REFUSED
        return OPEN if self.unknown else PROVEN

    @property
    def counts(self) -> dict[str, int]:
        """{kind: operations}, of one call; sums inside of a product are additions."""
        total: dict[str, int] = defaultdict(int)
        for o in self._live:
            total[o.kind] += o.count
        return dict(total)

    @property
    def price(self) -> dict[str, dict[int, int]]:
        """{kind: {bits: operations}}: of the result of an addition, else of the wider
        operand."""
        total: dict[str, dict[int, int]] = {}
        for o in self._live:
            of_kind = total.setdefault(o.kind, {})
            width = o.into if o.kind == rules.ADDITION else max(o.widths, default=0)
            of_kind[width] = of_kind.get(width, 0) + o.count
        return {kind: dict(sorted(w.items())) for kind, w in total.items()}

    def summary(self) -> str:
        """The verdict with its price, in a line or two."""
        shown = {kind: self.price.get(kind, {}) for kind in rules.FREE}
        price = ", ".join(
            f"{sum(w.values()):,} {_plural(kind)} of {_widths(w)} bits"
            for kind, w in shown.items()
            if w
        )
        if self.verdict == PROVEN:
            head = "addition-only: multiplication-free"
            if self.allowed:
                at = ", ".join(dict.fromkeys(o.place for o in self.allowed))
                count = sum(o.count for o in self.allowed)
                head += f" but for {count:,} permitted products with the input, at {at}"
            return f"{head}; at {price or 'no operation'}"
        names = ", ".join(_names(self.refused))
        what = {
            REFUSED: f"NOT addition-only: refused {_count(self.refused)}",
            OPEN: f"NOT PROVEN: did not understand {_count(self.unknown)}",
        }[self.verdict]
        return f"{what}, at {names}; besides {price or 'no operation'}"

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "verdict": self.verdict,
            "addition_only": self.addition_only,
            "summary": self.summary(),
            "counts": self.counts,
            "price": {
                kind: {str(bits): n for bits, n in widths.items()}
                for kind, widths in self.price.items()
            },
            "inputs": list(self.inputs),
            "products": [_row(o) for o in self.products + self.unknown],
            "operations": [_row(o) for o in self._live],
            "folds": len(self.folds),
        }

    def __str__(self) -> str:
        parts = [self.table(), "", self.summary()]
        for title, found in (
            ("permitted", self.allowed),
            ("refused", self.refused),
        ):
            if found:
                parts += ["", f"{title}:"]
                parts += [f"  {text}" for text in _lines(found)]
        if self.folds:
            parts.append(
                f"\nfolded {_count(self.folds)}, of parameters and constants alone"
            )
        return "\n".join(parts)

    def table(self) -> str:
        """Operations by place; places that differ in a number and no more are one."""
        places: dict[str, dict[str, int]] = {}
        members: dict[str, set[str]] = {}
        for o in self._live:
            name = _starred(o.place)
            row = places.setdefault(name, dict.fromkeys(_COLUMNS, 0))
            row[o.kind if o.kind in rules.FREE else "product"] += o.count
            members.setdefault(name, set()).add(o.place)
        rows = []
        for name, row in places.items():
            alike = members[name]
            label = name if len(alike) > 1 else next(iter(alike))
            rows.append((label, *(f"{row[c]:,}" if row[c] else "" for c in _COLUMNS)))
        total = [sum(row[c] for row in places.values()) for c in _COLUMNS]
        rows.append(("total", *(f"{n:,}" for n in total)))
        header = ("place", *(_plural(c) for c in _COLUMNS))
        return _aligned([header, *rows])


def line(o: Operation) -> str:
    """One operation for people: where, what, and what to do about it."""
    operands = " x ".join(
        f"{a} ({w} bit{'s' if w != 1 else ''})"
        for a, w in zip(o.alphabets, o.widths, strict=True)
    )
    at = f" ({o.source})" if o.source and o.source != o.place else ""
    text = f"{o.place}{at}: {o.kind} in {o.primitive}, {o.count:,} times, {operands}"
    if o.why:
        text += f": {o.why}"
    if o.advice:
        text += f"; {o.advice}"
    return text


def _starred(name: str) -> str:
    """block_*/mlp of block_0/mlp."""
    return _NUMBERED.sub("_*", name)


def _names(operations: Sequence[Operation]) -> list[str]:
    """Their places; several that differ in a number are one, with a star."""
    members: dict[str, set[str]] = {}
    for o in operations:
        members.setdefault(_starred(o.place), set()).add(o.place)
    return [star if len(of) > 1 else min(of) for star, of in members.items()]


def _lines(operations: Sequence[Operation]) -> list[str]:
    """A line for each, and one for all that differ in a number of their names alone."""
    alike: dict[Operation, list[Operation]] = {}
    for o in operations:
        starred = dict(path=_starred(o.path), advice=_starred(o.advice))
        alike.setdefault(o._replace(at=(), **starred), []).append(o)
    return [
        line(first) if len(of) == 1 else f"{line(starred)}; {len(of)} places"
        for starred, of in alike.items()
        for first in of[:1]
    ]


def _row(o: Operation) -> dict[str, Any]:
    return {
        "kind": o.kind,
        "count": o.count,
        "alphabets": list(o.alphabets),
        "widths": list(o.widths),
        "primitive": o.primitive,
        "path": o.path,
        "source": o.source,
        **({"why": o.why} if o.why else {}),
        **({"fold": o.advice} if o.advice else {}),
        **({"allowed": True} if o.allowed else {}),
    }


def _count(operations: Sequence[Operation]) -> str:
    n = len(operations)
    return f"{n} operation{'s' if n != 1 else ''}"


def _plural(kind: str) -> str:
    if kind == rules.BITWISE:
        return "bit operations"
    return f"{kind}s"


def _widths(widths: dict[int, int]) -> str:
    return " and ".join(str(w) for w in widths)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(sizes[0])]
        cells += [c.rjust(n) for c, n in zip(row[1:], sizes[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
