"""--mode=energy: what a trained run does on a whole split, counted, and its price.

The model is folded first: what is counted is the network that the certificate speaks
of. An addition is counted when a spike makes it; energies are counts times published
constants (`analysis.energy`), an estimate.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax import models
from a2os2a_jax.analysis import activity, audit, energy, rates, summary
from a2os2a_jax.commands.certify import ALLOW, certify
from a2os2a_jax.data.pipeline import Split
from a2os2a_jax.files import expanded
from a2os2a_jax.train import setup, trained
from a2os2a_jax.train import workdir as workdirs
from a2os2a_jax.train.evaluate import size_of

FILE = "energy.json"


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Prints tables, writes DIR/energy.json; returns it.

    Raises:
      ValueError: no run of this config is there, or `eval.*` asks for what it or the
        data have not; names the key.
    """
    folder = expanded(workdir)
    if jax.process_count() > 1:
        raise ValueError(
            f"--mode=energy: got {jax.process_count()} processes, expected one"
        )
    found = trained.load(config, folder)
    record = {
        "command": f"python -m a2os2a_jax.main {' '.join(sys.argv[1:])}".strip(),
        "weights": f"{found.weights} of step {', '.join(map(str, found.steps))}",
        "changed": found.changed,
        **account(config, found.parts, found.variables),
    }
    try:
        path = workdirs.write_new(folder / FILE, record)
    finally:  # it is told even where it cannot be kept
        print(f"{table(record['work'])}\n\n{text(record)}")
    print(f"wrote {path}")
    print("next: the same command with --mode=figures draws these energies and rates")
    return record


def account(
    config: ConfigDict, parts: setup.Parts, variables: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is counted on `eval.split` with these weights, and what it would cost.

    Raises:
      ValueError: `eval.examples` asks for more than there are.
    """
    split = parts.dataset.split(config.eval.split)
    size = size_of(split, config.eval.examples)
    shape, tokens = parts.dataset.shape, None
    if parts.model.stem == "tokens":
        tokens = shape[-2]
    model, folded = models.fold(parts.model, variables, tokens=tokens)
    seen = measure(model, folded, split, size, config.eval.batch)
    rows = energy.work(seen.tallies, size)
    steps = shape[0] if len(shape) == (4 if tokens is None else 3) else model.timesteps
    of_ann = energy.ann_work(_once(parts.model, variables, shape, tokens))
    accounts = energy.accounts(rows, of_ann, steps)
    return {
        "model": f"{config.model.name} {config.model.variant}",
        "data": parts.dataset.name,
        "split": config.eval.split,
        "count": size,
        "timesteps": steps,
        "folded_accuracy": seen.correct / size,
        "commit": workdirs.commit(),
        "device": workdirs.device(parts.mesh),
        "versions": workdirs.versions(),
        "seed": config.seed,
        "config": configs.to_json(config),
        "constants_pj": {
            c.name: {"add": c.add, "mac": c.mac, "word_bits": c.word}
            for c in energy.COSTS
        }
        | {"sram_bit": energy.SRAM_BIT},
        **accounts,
        "note": note(accounts),
        "mean_firing_rate": seen.mean_rate(),
        "rates": seen.rates(summary.layers(model, shape)),
        "work": [r._asdict() for r in rows],
    }


class Seen:
    """What `measure` counted."""

    def __init__(self):
        self.correct = 0
        self.spikes: dict[str, np.ndarray] = {}  # {layer: [plus or minus, T]}
        self.entries: dict[str, int] = {}  # of one step
        self.tallies: list[activity.Tally] = []

    def mean_rate(self) -> float:
        """Over all neurons and steps, each of them once."""
        fired = sum(counts.sum() for counts in self.spikes.values())
        steps = sum(
            counts.shape[1] * self.entries[name] for name, counts in self.spikes.items()
        )
        return float(fired / steps)

    def rates(self, layers) -> dict[str, dict[str, Any]]:
        """{layer: {"alphabet", "plus": [T] shares, "minus": [T], "neurons"}}."""
        found = {}
        for row in layers:
            if row.name in self.spikes:
                plus, minus = self.spikes[row.name] / self.entries[row.name]
                found[row.name] = {
                    "alphabet": row.fires,
                    "neurons": row.neurons,
                    "plus": plus.tolist(),
                    "minus": minus.tolist(),
                }
        return found


def measure(
    model: nn.Module, variables: Any, split: Split, size: int, batch: int
) -> Seen:
    """Runs the folded model over the first `size` examples, each of them once."""

    def then(out):
        logits, sown = out
        layers = rates.layers(sown["spikes"])
        return logits, {name: _by_step(s) for name, s in layers.items()}

    counter = activity.Counter(
        lambda v, x: model.apply(v, x, mutable=["spikes"]), allow=ALLOW, then=then
    )
    gather = jax.jit(split.gather)
    seen = Seen()
    for start in range(0, size, batch):
        indices = np.arange(start, min(start + batch, size))
        given = gather(split.resident, split.fetch(indices))
        logits, by_step = counter(variables, given["image"])
        label = np.asarray(given["label"])
        seen.correct += int((logits.argmax(-1) == label).sum())
        for name, (plus, minus, entries) in by_step.items():
            new = np.array([plus, minus], np.int64)
            seen.spikes[name] = seen.spikes.get(name, 0) + new
            seen.entries[name] = seen.entries.get(name, 0) + int(entries)
    seen.tallies = counter.tallies
    return seen


def _by_step(s: jax.Array):
    """(s > 0 and s < 0 at each step, entries of a step), of s [B, T, ...]."""
    axes = (0, *range(2, s.ndim))
    plus, minus = (some.sum(axes, dtype=jnp.int32) for some in (s > 0, s < 0))
    return plus, minus, s.size // s.shape[1]


def _once(model, variables, shape, tokens) -> tuple[audit.Operation, ...]:
    """The operations of one pass of the same network, T = 1, with counts first."""
    frame = shape[-2:] if model.stem == "tokens" else shape[-3:]
    changes: dict[str, Any] = dict(timesteps=1)
    options = getattr(model, "attention", {})
    if options.get("chunk"):  # of steps, which are one here
        changes["attention"] = dict(options, chunk=1)
    one, folded = models.fold(
        model.clone(**changes), variables, head="counts", tokens=tokens
    )
    return certify(one, folded, (1, *frame)).operations


# ---- for people


def table(work: Sequence[Mapping[str, Any]]) -> str:
    """A line for every place, per example."""
    rows = [energy.Work(**row) for row in work]
    head = ("place", "part", "possible", "made", "rate %", "other sums", "membranes")
    lines = [head]
    for r in rows:
        rate = f"{100 * r.events / r.possible:.2f}" if r.possible else ""
        numbers = (r.possible or r.macs, r.events or r.macs)
        cells = [f"{n:,.0f}" if n else "" for n in numbers]
        other = r.additions + r.comparisons
        cells += [rate, f"{other:,.0f}" if other else ""]
        lines.append((r.place, r.part, *cells, f"{r.states:,.0f}" if r.states else ""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def text(record: dict[str, Any]) -> str:
    """What it comes to."""
    share = record["attention"]
    lines = [
        f"{record['model']} on {record['data']}, {record['split']}, "
        f"{record['count']:,} examples, T = {record['timesteps']}, "
        f"{record.get('weights', '')}, folded: accuracy "
        f"{100 * record['folded_accuracy']:.2f} %",
        f"additions by spikes (SOPs): {record['sops']:,.0f} an example of "
        f"{record['sops_possible']:,.0f} possible; {record['sops_nonzero']:,.0f} "
        "without additions of a zero of K, or of a sum of K",
        f"attention: {100 * share['branch']:.1f} % of the energy (float32, all of it) "
        f"with its projections, {100 * share['products']:.1f} % the products of Q, K "
        "and V alone",
        "",
        "energy of an example, an estimate (counts times constants of 45 nm):",
    ]
    width = max(map(len, record["total_nj"]))
    for name, total in record["total_nj"].items():
        lines.append(f"  {name:<{width}}  {total:>14,.1f} nJ")
    bits = " or, of ternary ones, ".join(map(str, record["ann_activation_bits"]))
    lines += [
        "  (ANN: same shape, one pass; in integers, activations are kept in as many",
        f"  bits as tell what T spikes tell, {bits})",
        "",
        "firing rate below which it beats the ANN; a neuron weighs as much as the sums",
        f"that its spikes go into. Its own is {100 * record['firing_rate']:.2f} %, and "
        f"every neuron alike {100 * record['mean_firing_rate']:.2f} %:",
    ]
    width = max(map(len, record["break_even"]), default=0)
    for name, even in record["break_even"].items():
        lines.append(f"  {name:<{width}}  {_rate(even)}")
    if not record["break_even"]:
        lines.append("  not one spike was seen")
    return "\n".join(lines)


def _rate(even: dict[str, Any]) -> str:
    if even["rate"] is None:
        return "none: it takes more even without a spike"
    verdict = "beats it" if even["own"] < even["rate"] else "does not beat it"
    more = ", more than every spike" if even["rate"] > 1 else ""
    return f"{100 * even['rate']:.2f} %{more}: {verdict}"


def note(accounts: dict[str, Any]) -> str:
    """A line for under the bars."""
    own = f"firing rate {100 * accounts['firing_rate']:.1f} %"
    evens = []
    for name, even in accounts["break_even"].items():
        rate = even["rate"]
        below = "no rate" if rate is None else f"{100 * rate:.1f} %"
        evens.append(f"{below} ({name})")
    return f"{own}; the ANN is beaten below {', '.join(evens)}" if evens else own
