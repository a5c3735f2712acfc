"""What a spiking network costs, in energy, next to an ANN of its shape.

An estimate by counting: operations that were measured (`activity`) times constants that
were published, so that anyone can put in others. Nothing here was measured in joules.

    field     4.6 pJ for each product with the input, 0.9 pJ for each addition that a
              spike triggers: what papers on spiking networks report
    full      the same with everything else the program does: biases, residuals,
              membrane updates, comparisons, and the memory that all of it touches
    ann       a quantised network of equal shape that runs once in place of T times: a
              multiply-accumulate where the spiking network has an addition for a spike

Each of them at two sets of costs, so that like is compared with like.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any, NamedTuple

from a2os2a_jax.analysis.activity import Tally, is_driven
from a2os2a_jax.analysis.audit import rules
from a2os2a_jax.analysis.audit.walk import Operation

# Energy of one operation in pJ, 45 nm at 0.9 V. Source: Horowitz, Computing's energy
# problem, ISSCC 2014; a multiply-accumulate is its product plus its sum.
FLOAT32_ADD, FLOAT32_MAC = 0.9, 4.6  # 3.7 + 0.9
INT32_ADD, INT8_MAC = 0.1, 0.23  # 0.2 + 0.03
# One bit in or out of on-chip memory: a 32-bit word of SRAM takes 5 pJ. Source: Han et
# al. 2015, arXiv:1506.02626, table 1, of the same process.
SRAM_BIT = 5 / 32


@dataclass(frozen=True)
class Costs:
    """pJ of an operation, bits of a word.

    add, mac: pJ; a comparison is a subtraction, and costs `add`. word: bits of a weight
    and of what else a sum reads. state: bits of a membrane. activation: bits of an
    activation of the ANN; None for as many as tell what its spikes tell, `equal_bits`.
    memory: pJ of a bit.
    """

    name: str
    add: float
    mac: float
    word: int
    state: int = 32
    activation: int | None = None
    memory: float = SRAM_BIT

    def activation_bits(self, timesteps: int) -> int:
        return self.activation or equal_bits(timesteps)


FLOAT = Costs("float32", FLOAT32_ADD, FLOAT32_MAC, word=32, activation=32)
INTEGER = Costs("int8 weights, int32 sums", INT32_ADD, INT8_MAC, word=8)
COSTS = (FLOAT, INTEGER)

INPUT, CONV, LINEAR = "first convolution", "convolutions", "linear maps"
ATTENTION, HEAD, NEURONS = "attention products", "head", "neurons"
DENSE, COMPARED = "biases and residuals", "pooling and ReLU"
PARTS = (INPUT, CONV, LINEAR, ATTENTION, HEAD, NEURONS, DENSE, COMPARED)


class Work(NamedTuple):
    """What one place of a network does, of one kind, per example.

    macs: products with the input, each with its sum. possible: additions that spikes
    could trigger, if all fired; events: that they did; skipped: of these, those that
    added something other than 0. additions, comparisons, states: of those that happen
    anyway; a state is a membrane that is read and written. spike_bits: read of spikes.
    """

    place: str
    part: str
    macs: float = 0
    possible: float = 0
    events: float = 0
    skipped: float = 0
    additions: float = 0
    comparisons: float = 0
    states: float = 0
    spike_bits: float = 0


def part_of(o: Operation) -> str:
    """Which part of the network an operation belongs to."""
    name = o.place.rpartition("/")[2]
    if o.loop or o.kind == rules.STATE:
        return NEURONS
    if name == "head" or o.primitive == "reduce_sum" and "attention" not in o.path:
        return HEAD
    if o.kind in rules.REFUSED or o.of:
        return INPUT
    if o.primitive in ("dot_general", "reduce_sum"):
        with_weights = o.primitive == "dot_general" and bool(o.fixed)
        return LINEAR if with_weights else ATTENTION
    if o.primitive == "conv_general_dilated":
        return CONV
    return COMPARED if o.kind == rules.COMPARISON else DENSE


def work(tallies: Iterable[Tally], examples: int) -> list[Work]:
    """Per example and place, in the order of the program.

    Args:
      tallies: of `activity.Counter`, over all examples.
      examples: how many.
    Raises:
      ValueError: no example.
    """
    if examples < 1:
        raise ValueError(f"energy.work: got {examples} examples, expected >= 1")
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for t in tallies:
        o, here = t.operation, None
        if o.kind in rules.REFUSED:
            here = {"macs": t.dense}
        elif o.of:
            continue  # the sum of a multiply-accumulate
        elif t.driven:
            bits = sum(
                n * w
                for i, (n, w) in enumerate(zip(o.sizes, o.widths, strict=True))
                if i in o.spikes
            )
            share = t.dense / o.count  # calls of the program, of this batch size
            here = {
                "possible": t.dense,
                "events": t.events,
                "skipped": t.skipped,
                "spike_bits": bits * share,
            }
        elif o.kind == rules.ADDITION:
            here = {"additions": t.dense}
        elif o.kind == rules.COMPARISON:
            here = {"comparisons": t.dense}
        elif o.kind == rules.STATE:
            here = {"states": t.dense}
        if here:
            row = rows.setdefault((o.place, part_of(o)), {})
            for key, value in here.items():
                row[key] = row.get(key, 0) + value
    return [
        Work(place, part, **{k: v / examples for k, v in row.items()})
        for (place, part), row in rows.items()
    ]


def ann_work(operations: Sequence[Operation], examples: int = 1) -> list[Work]:
    """The same network as a quantised ANN: no spikes, one pass, every product made.

    Args:
      operations: of the certificate of the folded model at T = 1.
      examples: how many it was certified for.
    """
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for o in operations:
        masked = o.kind == rules.SELECT and o.primitive == "mul" and not o.loop
        product = o.primitive != "reduce_sum" and is_driven(o)
        if o.folds or o.of:
            continue
        if o.kind in rules.REFUSED or product or masked:
            here = {"macs": o.count, "spike_bits": _activations(o)}
        elif o.kind == rules.ADDITION and not o.loop:
            here = {"additions": o.count}
        elif o.kind == rules.COMPARISON and not o.loop:
            here = {"comparisons": o.count}
        elif o.kind == rules.STATE:  # an activation: one comparison, nothing to keep
            here = {"comparisons": o.count, "spike_bits": o.count}
        else:
            continue
        row = rows.setdefault((o.place, part_of(o)), {})
        for key, value in here.items():
            row[key] = row.get(key, 0) + value
    return [
        Work(place, part, **{k: v / examples for k, v in row.items()})
        for (place, part), row in rows.items()
    ]


def _activations(o: Operation) -> int:
    """Entries of the operands that are data."""
    return sum(n for i, n in enumerate(o.sizes) if i not in o.fixed)


# ---- accounts: {part: pJ per example}


def field(rows: Iterable[Work], costs: Costs = FLOAT) -> dict[str, float]:
    """mac · products with the input + add · events."""
    return _by_part(rows, lambda r: costs.mac * r.macs + costs.add * r.events)


def full(rows: Iterable[Work], costs: Costs) -> dict[str, float]:
    """All operations and the memory they touch; the latter is the part "memory".

    Memory: a word for every product and every event, the bits of the spikes, and every
    membrane in and out, with the bit it hands on.
    """
    rows = list(rows)

    def made(r: Work) -> float:
        sums = r.events + r.additions + r.comparisons
        return costs.mac * r.macs + costs.add * sums

    def bits(r: Work) -> float:
        words = costs.word * (r.macs + r.events)
        return words + r.spike_bits + r.states * (2 * costs.state + 1)

    return _by_part(rows, made) | {"memory": costs.memory * sum(map(bits, rows))}


def ann(rows: Iterable[Work], costs: Costs, timesteps: int) -> dict[str, float]:
    """All operations of the ANN and its memory, as `full`.

    timesteps: T of the spiking network; activations tell as much as its spikes.
    """
    rows, activation = list(rows), costs.activation_bits(timesteps)

    def made(r: Work) -> float:
        sums = r.additions + r.comparisons
        return costs.mac * r.macs + costs.add * sums

    def bits(r: Work) -> float:
        return costs.word * r.macs + activation * r.spike_bits

    return _by_part(rows, made) | {"memory": costs.memory * sum(map(bits, rows))}


def equal_bits(timesteps: int) -> int:
    """Bits of an integer that tells as much as the number of spikes in T steps.

    Source: Yan et al. 2024, arXiv:2409.08290.
    """
    return ceil(log2(timesteps + 1))


def _by_part(rows: Iterable[Work], pj) -> dict[str, float]:
    total = dict.fromkeys(PARTS, 0.0)
    for row in rows:
        total[row.part] += pj(row)
    return {part: value for part, value in total.items() if value}


def firing_rate(rows: Iterable[Work]) -> float:
    """Events over those there would be if every spike fired: the rate that costs."""
    rows = list(rows)
    possible = sum(r.possible for r in rows)
    return sum(r.events for r in rows) / possible if possible else 0.0


class BreakEven(NamedTuple):
    """Below `rate` the spiking network takes less energy than the ANN.

    rate is None where it takes more even without any spike. own: the rate it has.
    """

    own: float
    rate: float | None

    @property
    def wins(self) -> bool:
        return self.rate is not None and self.own < self.rate


def break_even(
    rows: Sequence[Work],
    of_ann: Sequence[Work],
    costs: Costs,
    timesteps: int,
    memory: bool,
) -> BreakEven:
    """The firing rate at which both cost the same, all layers scaled alike.

    memory: count it, on both sides. Raises ValueError where nothing is driven by
    spikes, so that there is no rate.
    """

    def total(rows):
        account = full(rows, costs)
        return sum(account.values()) - (0 if memory else account["memory"])

    other = ann(of_ann, costs, timesteps)
    limit = sum(other.values()) - (0 if memory else other["memory"])
    own = firing_rate(rows)
    silent = total([r._replace(events=0) for r in rows])
    firing = total(rows) - silent
    if not own or not firing:
        raise ValueError("energy.break_even: got no event, expected spikes")
    rate = own * (limit - silent) / firing
    return BreakEven(own, rate if rate > 0 else None)


# ---- all of it, as data and as text


def accounts(
    rows: Sequence[Work], of_ann: Sequence[Work], timesteps: int
) -> dict[str, Any]:
    """Every account in nJ per example, the break-even rates, and the attention's share.

    Of a network that never fires there are no break-even rates.

    Args:
      rows: of `work`. of_ann: of `ann_work`. timesteps: T.
    """
    bars: dict[str, dict[str, float]] = {
        "spiking, field's formula": field(rows, FLOAT),
        "spiking, field's formula, integers": field(rows, INTEGER),
    }
    for costs in COSTS:
        bars[f"spiking, all of it, {costs.name}"] = full(rows, costs)
        bars[f"ANN, {costs.name}"] = ann(of_ann, costs, timesteps)
    return {
        "bars": {
            name: {part: pj / 1e3 for part, pj in account.items()}
            for name, account in bars.items()
        },
        "total_nj": {name: sum(a.values()) / 1e3 for name, a in bars.items()},
        "break_even": {
            f"{costs.name}, {'with' if memory else 'without'} memory": break_even(
                rows, of_ann, costs, timesteps, memory
            )._asdict()
            for costs in COSTS
            for memory in (False, True)
            if firing_rate(rows)
        },
        "firing_rate": firing_rate(rows),
        "ann_activation_bits": equal_bits(timesteps),
        "sops": sum(r.events for r in rows),
        "sops_zero_skipped": sum(r.skipped for r in rows),
        "sops_possible": sum(r.possible for r in rows),
        "macs": sum(r.macs for r in rows),
        "ann_macs": sum(r.macs for r in of_ann),
        "attention": attention_share(rows),
    }


def attention_share(rows: Sequence[Work]) -> dict[str, float]:
    """Shares of the attention in all that is spent, fractions of the total.

    products: Q, K and V with each other alone. branch: with their linear maps, neurons
    and projection.
    """
    costs = FLOAT
    whole = sum(full(rows, costs).values())
    if not whole:
        return {"products": 0.0, "branch": 0.0}
    products = [r for r in rows if r.part == ATTENTION]
    branch = [r for r in rows if "attention" in r.place]
    return {
        "products": sum(full(products, costs).values()) / whole,
        "branch": sum(full(branch, costs).values()) / whole,
        "events_dense": sum(r.events for r in products),
        "events_zero_skipped": sum(r.skipped for r in products),
    }
