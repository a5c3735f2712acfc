"""What a spiking network costs, in energy, next to an ANN of its shape.

An estimate by counting: operations that were measured (`activity`) times constants that
were published, so that anyone can put in others. Nothing here was measured in joules.

    field     4.6 pJ for each product with the input, 0.9 pJ for each addition that a
              spike triggers: what papers on spiking networks report
    full      the same with everything else the program does: biases, residuals,
              membrane updates, comparisons, and memory, as `full` says
    ann       a network of equal shape that runs once in place of T times: a
              multiply-accumulate where the spiking network has an addition for a spike

Each of them at two sets of costs, so that like is compared with like. Selects, shifts,
logic and tests of a sign are taken to cost nothing.
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
    and of what else a sum reads. state: bits of a membrane or another sum. activation:
    bits of an activation of the ANN; None for as many as tell what T spikes tell,
    `equal_bits`. memory: pJ of a bit.
    """

    name: str
    add: float
    mac: float
    word: int
    state: int = 32
    activation: int | None = None
    memory: float = SRAM_BIT

    def activation_bits(self, timesteps: int, signed: bool = False) -> int:
        return self.activation or equal_bits(timesteps, signed)


FLOAT = Costs("float32", FLOAT32_ADD, FLOAT32_MAC, word=32, activation=32)
INTEGER = Costs("int8 weights, int32 sums", INT32_ADD, INT8_MAC, word=8)
COSTS = (FLOAT, INTEGER)

INPUT, CONV, LINEAR = "first convolution", "convolutions", "linear maps"
ATTENTION, HEAD, NEURONS = "attention products", "head", "neurons"
DENSE, POOLING = "biases and residuals", "pooling"
PARTS = (INPUT, CONV, LINEAR, ATTENTION, HEAD, NEURONS, DENSE, POOLING)


class Work(NamedTuple):
    """What one place of a network does, of one kind, per example.

    macs: products with the input, each with its sum.
    possible: additions that spikes could trigger, if all fired; events: that they did;
      nonzero: of these, those that added something other than 0.
    additions, comparisons: of those that happen anyway.
    states: membranes read and written.
    words: other sums that are read or written, of as many bits as a membrane.
    spike_bits: of spikes, read and handed on.
    activations, signed: of an ANN, in place of spikes in {0, 1} and {-1, 0, 1}.
    """

    place: str
    part: str
    macs: float = 0
    possible: float = 0
    events: float = 0
    nonzero: float = 0
    additions: float = 0
    comparisons: float = 0
    states: float = 0
    words: float = 0
    spike_bits: float = 0
    activations: float = 0
    signed: float = 0


def parts_of(operations: Sequence[Operation]) -> list[str]:
    """The part of the network that each operation of a whole program belongs to.

    By what is computed from what, not by names; of a module only which operations share
    one counts. The head begins with the last product with weights, or with the sums
    over tokens or time that lead to it: all that follow the product with weights before
    it. A sum of spikes belongs to the attention where a module that also multiplies
    data with data takes it, and is pooling elsewhere.

    Args:
      operations: in the order of the program, as the certificate lists them.
    """
    weighs = [i for i, o in enumerate(operations) if _has_weights(o)]
    last = before = len(operations)  # the head's first product, the one before it
    if weighs and operations[weighs[-1]].primitive == "dot_general":
        place = operations[weighs[-1]].place  # of several there, as of bits, too
        others = [i for i in weighs if operations[i].place != place]
        before = max(others, default=-1)
        last = min(i for i in weighs if i > before)
    attends = {o.place for o in operations if _is_of_data_alone(o)}

    def part(i: int, o: Operation) -> str:
        if o.loop or o.kind == rules.STATE:
            return NEURONS
        is_sum = o.primitive == "reduce_sum"
        if o.allowed:
            return INPUT
        if i >= last or (i > before and is_sum):
            return HEAD
        if is_sum and o.place not in attends:
            return POOLING
        if o.primitive in ("dot_general", "reduce_sum"):
            return LINEAR if o.primitive == "dot_general" and o.fixed else ATTENTION
        if o.primitive == "conv_general_dilated":
            return CONV
        return POOLING if o.kind == rules.COMPARISON else DENSE

    return [part(i, o) for i, o in enumerate(operations)]


def _has_weights(o: Operation) -> bool:
    products = ("dot_general", "conv_general_dilated")
    return o.primitive in products and bool(o.fixed) and not o.folds and not o.loop


def _is_of_data_alone(o: Operation) -> bool:
    """True for products of data with data, in which spikes select; not of neurons."""
    is_product = o.primitive in ("dot_general", "mul") and len(o.sizes) > 1
    return is_product and not o.fixed and not o.loop and not o.folds


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
    found = []
    for t in tallies:
        o, here = t.operation, None
        calls = t.dense / o.count  # of the program, as large as the first of them
        if o.kind in rules.REFUSED:
            here = {"macs": t.dense}
        elif o.of:
            continue  # the sum of a multiply-accumulate
        elif t.driven:
            here = {
                "possible": t.dense,
                "events": t.events,
                "nonzero": t.nonzero,
                "spike_bits": calls
                * sum(n * w for n, w, spike in _operands(o) if spike),
                "words": calls * _written(o),
            }
        elif o.kind == rules.STATE:
            here = {"states": t.dense, "spike_bits": o.into * t.dense}
        else:
            here = _anyway(o, calls)
        found.append((o, here))
    return _rows(found, examples)


def ann_work(operations: Sequence[Operation], examples: int = 1) -> list[Work]:
    """The same network as an ANN: no spikes, one pass, every product made.

    Args:
      operations: of the certificate of the folded model at T = 1.
      examples: how many it was certified for.
    """
    found = []
    for o in operations:
        masked = o.kind == rules.SELECT and o.primitive == "mul" and not o.loop
        product = o.primitive != "reduce_sum" and is_driven(o)
        if o.folds or o.of:
            continue
        if o.kind in rules.REFUSED or product or masked:
            data = [
                (n, w) for i, (n, w, _) in enumerate(_operands(o)) if i not in o.fixed
            ]
            here = {
                "macs": o.count,
                "signed": sum(n for n, width in data if width == 2),
                "activations": sum(n for n, width in data if width != 2),
            }
        elif o.kind == rules.STATE:  # an activation: one comparison, nothing to keep
            handed = "signed" if o.into == 2 else "activations"
            here = {"comparisons": o.count, handed: o.count}
        elif o.loop:
            continue
        else:
            here = _anyway(o, 1)
        found.append((o, here))
    return _rows(found, examples)


def _operands(o: Operation) -> list[tuple[int, int, bool]]:
    """(entries, bits of one, are they spikes) of each."""
    spikes = [i in o.spikes for i in range(len(o.sizes))]
    return list(zip(o.sizes, o.widths, spikes, strict=True))


def _written(o: Operation) -> int:
    """Entries of the operand that is neither a spike nor a weight: K, or Q K^T."""
    which = set(range(len(o.sizes))) - {*o.spikes, *o.fixed}
    return sum(o.sizes[i] for i in which)


def _anyway(o: Operation, calls: float) -> dict[str, float]:
    """Of an operation outside of products, and of loops: what it does and touches.

    A sum reads one word, and writes one if both its operands are data; a comparison
    reads its operands. Within a loop all is in registers but the state.
    """
    data = [n for i, n in enumerate(o.sizes) if i not in o.fixed]
    if o.kind == rules.ADDITION:
        words = 0 if o.loop else o.count * (1 + (len(data) > 1))
        return {"additions": calls * o.count, "words": calls * words}
    if o.kind == rules.COMPARISON:
        tests_a_sign = "0" in o.alphabets
        return {
            "comparisons": 0 if tests_a_sign else calls * o.count,
            "words": 0 if o.loop else calls * sum(data),
        }
    return {}


def _rows(
    found: Iterable[tuple[Operation, dict[str, float]]], examples: int
) -> list[Work]:
    """What was found, added up by place and part, per example."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    found = list(found)
    parts = parts_of([o for o, _ in found])
    for (o, here), part in zip(found, parts, strict=True):
        if any(here.values()):
            row = rows.setdefault((o.place, part), {})
            for key, value in here.items():
                row[key] = row.get(key, 0) + value
    return [
        Work(place, part, **{k: v / examples for k, v in row.items()})
        for (place, part), row in rows.items()
    ]


# ---- accounts: {part: pJ per example}


def field(rows: Iterable[Work], costs: Costs = FLOAT) -> dict[str, float]:
    """mac · products with the input + add · events."""
    return _by_part(rows, lambda r: costs.mac * r.macs + costs.add * r.events)


def full(rows: Iterable[Work], costs: Costs) -> dict[str, float]:
    """All operations and the memory they touch; the latter is the part "memory".

    Memory: a word for every product and every event; every membrane in and out; the
    bits of the spikes, read and handed on; the words that other sums and comparisons
    read and write. Sums of products lie in registers while they grow. No word is used
    twice, nothing lies in a memory that is larger and farther away.
    """
    rows = list(rows)

    def made(r: Work) -> float:
        sums = r.events + r.additions + r.comparisons
        return costs.mac * r.macs + costs.add * sums

    def bits(r: Work) -> float:
        words = costs.word * (r.macs + r.events)
        return words + r.spike_bits + costs.state * (2 * r.states + r.words)

    return _by_part(rows, made) | {"memory": costs.memory * sum(map(bits, rows))}


def ann(rows: Iterable[Work], costs: Costs, timesteps: int) -> dict[str, float]:
    """All operations of the ANN and its memory, as `full`.

    timesteps: T of the spiking network; activations tell as much as its spikes.
    """
    rows = list(rows)
    unsigned, signed = (costs.activation_bits(timesteps, s) for s in (False, True))

    def made(r: Work) -> float:
        sums = r.additions + r.comparisons
        return costs.mac * r.macs + costs.add * sums

    def bits(r: Work) -> float:
        words = costs.word * r.macs + costs.state * r.words
        return words + unsigned * r.activations + signed * r.signed

    return _by_part(rows, made) | {"memory": costs.memory * sum(map(bits, rows))}


def equal_bits(timesteps: int, signed: bool = False) -> int:
    """Bits of an integer that tells as much as the sum of T spikes.

    Of spikes in {0, 1} it is 0 to T; signed, in {-1, 0, 1}, -T to T.
    Source: Yan et al. 2024, arXiv:2409.08290, for {0, 1}.
    """
    return ceil(log2((2 if signed else 1) * timesteps + 1))


def _by_part(rows: Iterable[Work], pj) -> dict[str, float]:
    total = dict.fromkeys(PARTS, 0.0)
    for row in rows:
        total[row.part] += pj(row)
    return {part: value for part, value in total.items() if value}


def firing_rate(rows: Iterable[Work]) -> float:
    """Events over those there would be if every spike fired.

    The mean firing rate, where a neuron weighs as much as the sums its spikes go into.
    """
    rows = list(rows)
    possible = sum(r.possible for r in rows)
    return sum(r.events for r in rows) / possible if possible else 0.0


class BreakEven(NamedTuple):
    """Below `rate` the spiking network takes less energy than the ANN.

    Rates as `firing_rate`. rate is None where it takes more even without any spike.
    own: the rate it has.
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
    bars: dict[str, dict[str, float]] = {}
    for costs in COSTS:
        products = sum(r.macs for r in of_ann)
        bars |= {
            f"{costs.name}: spiking, field's formula": field(rows, costs),
            f"{costs.name}: ANN, its products alone": {
                "products of the ANN": costs.mac * products
            },
            f"{costs.name}: spiking, all of it": full(rows, costs),
            f"{costs.name}: ANN, all of it": ann(of_ann, costs, timesteps),
        }
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
        "ann_activation_bits": [equal_bits(timesteps), equal_bits(timesteps, True)],
        "sops": sum(r.events for r in rows),
        "sops_nonzero": sum(r.nonzero for r in rows),
        "sops_possible": sum(r.possible for r in rows),
        "macs": sum(r.macs for r in rows),
        "ann_macs": sum(r.macs for r in of_ann),
        "attention": attention_share(rows),
    }


def attention_share(rows: Sequence[Work]) -> dict[str, float]:
    """Shares of the attention in all that is spent, fractions of the total.

    products: Q, K and V with each other alone. branch: all of the modules that hold
    such products, with their linear maps, neurons and projection. Of the account `full`
    in float32.
    """
    costs = FLOAT
    whole = sum(full(rows, costs).values())
    if not whole:
        return {"products": 0.0, "branch": 0.0}
    products = [r for r in rows if r.part == ATTENTION]
    places = {r.place for r in products}
    branch = [r for r in rows if any(f"{r.place}/".startswith(f"{p}/") for p in places)]
    return {
        "products": sum(full(products, costs).values()) / whole,
        "branch": sum(full(branch, costs).values()) / whole,
        "events_dense": sum(r.events for r in products),
        "events_nonzero": sum(r.nonzero for r in products),
    }
