"""Tables of README and docs, from experiments/results and the catalogue.

python experiments/tables.py            rewrites what lies between the marks there
python experiments/tables.py --check    changes nothing, exit code 1 if it would
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
BEGIN, END = (
    "<!-- results: made by experiments/tables.py -->",
    "<!-- end of results -->",
)
NAMES = {"a2os2a": "A2OS2A", "vssa": "VSSA", "none": "no attention"}


KIND, DECAY = "model.attention.kind", "model.neuron.decay_input"


def _commits(value: dict) -> str:
    return ", ".join(commit[:7] for commit in value["commits"])


def first_light() -> str:
    """Digits and recall, from first_light.json."""
    value = json.loads((RESULTS / "first_light.json").read_text())
    lines = [
        "| task | attention | neuron rule | test accuracy, %: median (least to most) "
        "| mean ± std | seeds | CPU-s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in value["rows"]:
        a = {k: 100 * v for k, v in row["test_accuracy"].items()}
        task = Path(row["config"].split(":")[0]).stem
        rule = "decayed input" if row["settings"][DECAY] == "True" else "paper's"
        lines.append(
            f"| {task} | {NAMES[row['settings'][KIND]]} | {rule} "
            f"| {a['median']:.2f} ({a['min']:.2f} to {a['max']:.2f}) "
            f"| {a['mean']:.2f} ± {a['std']:.2f} | {row['n']} "
            f"| {row['cpu_seconds']['median']:.0f} |"
        )
    lines += [
        "",
        f"From `experiments/results/first_light.json`; command: `{value['command']}`; "
        f"device: {', '.join(value['devices'])}; commits: {_commits(value)}. "
        "CPU-seconds count compilation, training and the last evaluation, on a machine "
        "that had other work to do: they compare rows, and say little of another.",
    ]
    return "\n".join(lines)


def ablation() -> str:
    """32-key recall: neuron rule and attention, and learning rates, ablation.json."""
    value = json.loads((RESULTS / "ablation.json").read_text())
    k, v, rate = "model.attention.k", "model.attention.v", "optim.lr"
    lines = [
        "| 32-key recall | neuron rule | learning rate | test accuracy, %: median "
        "(least to most) | mean ± std | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in value["rows"]:
        settings = row["settings"]
        if not settings.keys() <= {KIND, DECAY, k, v, rate} or len(settings) < 2:
            continue
        words = [NAMES.get(settings[KIND], settings[KIND])]
        words += [
            f"{key[-1].upper()} {settings[key]}" for key in (k, v) if key in settings
        ]
        a = {name: 100 * x for name, x in row["test_accuracy"].items()}
        rule = "decayed input" if settings.get(DECAY) == "True" else "paper's"
        lines.append(
            f"| {', '.join(words)} | {rule} | {settings.get(rate, '1e-3')} "
            f"| {a['median']:.2f} ({a['min']:.2f} to {a['max']:.2f}) "
            f"| {a['mean']:.2f} ± {a['std']:.2f} | {row['n']} |"
        )
    lines += [
        "",
        f"From `experiments/results/ablation.json`; command: `{value['command']}`; "
        f"device: {', '.join(value['devices'])}; commits: {_commits(value)}.",
    ]
    return "\n".join(lines)


def precision() -> str:
    """float32 and bfloat16 on digits, from digits_dtype.json."""
    value = json.loads((RESULTS / "digits_dtype.json").read_text())
    parts = []
    for row in value["rows"]:
        a = {name: 100 * x for name, x in row["test_accuracy"].items()}
        parts.append(
            f"{row['settings']['dtype']} {a['mean']:.2f} ± {a['std']:.2f} % (median "
            f"{a['median']:.2f}, {row['n']} seeds)"
        )
    return (
        f"Digits in two precisions: {', '.join(parts)}. From "
        f"`experiments/results/digits_dtype.json`; command: `{value['command']}`; "
        f"device: {', '.join(value['devices'])}; commits: {_commits(value)}."
    )


def time_of(task: str) -> str:
    """What one run of `make TASK` costs, from TASK_time.json."""
    value = json.loads((RESULTS / f"{task}_time.json").read_text())
    runs = value["runs"]

    def spread(key: str) -> str:
        each = [run[key] for run in runs]
        return f"{value['median'][key]:.0f} ({min(each):.0f} to {max(each):.0f})"

    scaled = value["median_scaled_to_reference"]
    commits = sorted({run["commit"][:7] for run in runs})
    return (
        f"`make {task}` from start to exit, nothing cached, alone on the machine, "
        f"median of {len(runs)} seeds: {spread('wall_seconds')} s of wall clock, "
        f"{spread('cpu_seconds')} CPU-seconds, where a product of two 2000 x 2000 "
        f"matrices runs at {value['matmul_gflops']:.0f} GFLOP/s; scaled to "
        f"{value['reference_gflops']:.0f} GFLOP/s: {scaled['wall_seconds']:.0f} s and "
        f"{scaled['cpu_seconds']:.0f} CPU-seconds. From "
        f"`experiments/results/{task}_time.json`; command: `{value['command']}`; "
        f"device: {runs[0]['device']}; commit: {', '.join(commits)}."
    )


SETS = {  # file in results -> what its rows are
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mnist-short": "Fashion-MNIST, short",
    "nmnist-sample": "N-MNIST, first 600 + 100",
}


def sets() -> str:
    """Real data on a CPU: a row for each attention, from the files that are there."""
    lines = [
        "| set | attention | T | epochs | parameters | test accuracy, %: median "
        "(least to most) | mean ± std | seeds | training, s | CPU-s |",
        "| --- " * 10 + "|",
    ]
    sources = []
    for name, title in SETS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        value = json.loads(path.read_text())
        for row in value["rows"]:
            first = next((RESULTS / name).glob("*.json"))
            config = json.loads(first.read_text())["config"]
            kind = row["settings"].get(KIND, config["model"]["attention"]["kind"])
            a = {k: 100 * v for k, v in row["test_accuracy"].items()}
            spread = mean = "one run"
            if row["n"] > 1:
                spread = f"{a['min']:.2f} to {a['max']:.2f}"
                mean = f"{a['mean']:.2f} ± {a['std']:.2f}"
            lines.append(
                f"| {title} | {NAMES[kind]} | {config['model']['timesteps']} "
                f"| {config['train']['epochs']:g} | {row['parameters']:,} "
                f"| {a['median']:.2f} ({spread}) | {mean} | {row['n']} "
                f"| {row['train_seconds']['median']:.0f} "
                f"| {row['cpu_seconds']['median']:.0f} |"
            )
        sources.append(
            f"`experiments/results/{name}.json` (`{value['command']}`; commits: "
            f"{_commits(value)}; device: {', '.join(value['devices'])})"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"From {'; '.join(sources)}. Each run had one core of a machine that had "
            "other work to do: CPU-seconds compare rows, seconds of wall clock hardly.",
        ]
    )


def render(readme: str) -> str:
    """README with its results replaced by those of the JSON files."""
    made = "\n\n".join(
        [
            sets(),
            first_light(),
            time_of("digits"),
            time_of("recall"),
            precision(),
            ablation(),
        ]
    )
    return _between(readme, BEGIN, made, END)


def data_table(text: str) -> str:
    """docs/data.md with its table of statistics and terms, from the catalogue."""
    sys.path.insert(0, str(ROOT))
    from a2os2a_jax.data.catalogue import KNOWN

    lines = ["| set | what | mean | std | these are | terms |", "| --- " * 6 + "|"]
    for name, known in KNOWN.items():
        numbers = [" ".join(f"{x:.4f}" for x in v) for v in (known.mean, known.std)]
        cells = [f"`{name}`", known.about, *numbers, known.statistics, known.terms]
        lines.append(f"| {' | '.join(cells)} |")
    return _between(
        text, "<!-- table: made by experiments/tables.py -->", "\n".join(lines)
    )


def cost_table(text: str) -> str:
    """experiments/README.md with its table of estimates, from recipe_cost.json."""
    value = json.loads((RESULTS / "recipe_cost.json").read_text())
    lines = [
        "| recipe | steps | TFLOP a step | memory of a step, GiB | hours |",
        "| --- " * 5 + "|",
    ]
    for row in value["rows"]:
        memory = "not counted"
        if "temp_size_in_bytes" in row:
            bytes_ = row["temp_size_in_bytes"] + row["argument_size_in_bytes"]
            memory = f"{bytes_ / 2**30:.1f}"
        lines.append(
            f"| `{row['config']}.py:{row['mode']}` | {row['steps']:,} "
            f"| {_two(row['flops'] / 1e12)} | {memory} "
            f"| {_two(row['hours_at_assumed'])} |"
        )
    lines += [
        "",
        f"Estimates, not times: operations of one step in bfloat16 as XLA counts them, "
        f"memory as compiled for a CPU (without the data set), and hours if a GPU did "
        f"{value['assumed_tflops']:.0f} TFLOP/s of them, which is assumed. From "
        "`experiments/results/recipe_cost.json`; command: "
        f"`{value['command']}`; commit: {value['commit'][:7]}.",
    ]
    return _between(
        text, "<!-- costs: made by experiments/tables.py -->", "\n".join(lines)
    )


def certificate_tables(text: str) -> str:
    """docs/certificate.md with its results, from certificates.json and folding.json."""
    value = json.loads((RESULTS / "certificates.json").read_text())
    lines = [
        "| model, folded | input | attention | verdict | products permitted, at "
        "| additions | comparisons | as trained | s |",
        "| --- " * 9 + "|",
    ]
    for row in value["rows"]:
        permitted = ", ".join(
            f"{n / 1e6:.2f} M, {place}" for place, n in row["permitted"]
        )
        lines.append(
            f"| {row['family']} {row['variant']} | {'x'.join(map(str, row['shape']))} "
            f"| {_attention(row)} | {row['verdict']} | {permitted or 'none'} "
            f"| {row['counts']['addition'] / 1e9:.2f} G "
            f"| {row['counts']['comparison'] / 1e6:.1f} M "
            f"| refused at {row['as_trained']['equations']} equations "
            f"| {row['seconds']:.1f} |"
        )
    lines += [
        "",
        "Additions of 32 bits, of one example at T = 4, with all spikes firing: the "
        "most there can be. Seconds of folding, tracing and reading, where a product "
        f"of two 2000 x 2000 matrices runs at {value['gflops']:.0f} GFLOP/s.",
        "",
        "| head of | spikes weighted, then summed | counted, then weighted | counted, "
        "then weighted bit by bit |",
        "| --- " * 4 + "|",
    ]
    done = set()
    for row in value["rows"]:
        name = f"{row['family']} {row['variant']}"
        if name in done:
            continue
        done.add(name)
        cells = []
        for head in ("spikes", "counts", "bits"):
            found = row["heads"][head]
            cell = f"{found['additions'] / 1e6:.1f} M additions"
            if found["products"]:
                cell += f", {found['products'] / 1e6:.2f} M **products**"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"At most, as above. From `experiments/results/certificates.json`; command: "
        f"`{value['command']}`; device: {value['device']}; commit: "
        f"{value['commit'][:7]}.",
        "",
        "In float64 a folded model gives the logits of the other to 1e-10, and in "
        "float32 each layer fed the other's input agrees to 1e-5 of its largest output "
        "(`tests/models/test_fold.py`). From end to end in float32 spikes near the "
        "threshold flip, and others after them:",
        "",
    ]
    value = json.loads((RESULTS / "folding.json").read_text())
    lines += [
        "| set | model | seed | test accuracy, % | folded | answers that change "
        "| spikes that flip |",
        "| --- " * 7 + "|",
    ]
    for row in value["rows"]:
        lines.append(
            f"| {row['data']} | {row['model']} | {row['seed']} "
            f"| {100 * row['accuracy']:.2f} | {100 * row['accuracy_folded']:.2f} "
            f"| {row['predictions_changed']} of {row['examples']:,} "
            f"| {1e6 * row['flip_rate']:.2g} in a million |"
        )
    lines += ["", _source("folding.json", value)]
    begin = "<!-- certificates: made by experiments/tables.py -->"
    return _between(text, begin, "\n".join(lines))


def _attention(row: dict) -> str:
    options = row["options"].get("attention")
    if options is None:
        return {"columnar": "a2os2a", "spike_driven": "sdsa"}[row["family"]]
    if isinstance(options, str):
        return options
    return ", ".join(
        str(v) if k == "kind" else f"{k} {v:g}" if isinstance(v, float) else str(v)
        for k, v in options.items()
    )


def energy_tables(text: str) -> str:
    """docs/energy.md with its results, from energy.json."""
    value = json.loads((RESULTS / "energy.json").read_text())
    rows = value["rows"]
    heads = [f"{r['data']}, {r['model']}, seed {r['seed']}" for r in rows]
    lines = [
        f"| an example of | {' | '.join(heads)} |",
        "| --- " * (len(rows) + 1) + "|",
    ]

    def add(name: str, of) -> None:
        lines.append(f"| {name} | {' | '.join(of(r) for r in rows)} |")

    add("test accuracy, folded, %", lambda r: f"{100 * r['folded_accuracy']:.2f}")
    add("T, examples", lambda r: f"{r['timesteps']}, {r['count']:,}")
    add("additions spikes could trigger, M", lambda r: _millions(r["sops_possible"]))
    add("additions they trigger (SOPs), M", lambda r: _millions(r["sops"]))
    add("without those of a zero, M", lambda r: _millions(r["sops_zero_skipped"]))
    add("products of the first layer, M", lambda r: _millions(r["macs"]))
    add("products of the ANN, M", lambda r: _millions(r["ann_macs"]))
    for name in rows[0]["total_nj"]:
        add(f"{name}, nJ", lambda r, name=name: f"{r['total_nj'][name]:,.0f}")
    add("firing rate, %", lambda r: f"{100 * r['firing_rate']:.1f}")
    for name in rows[0]["break_even"]:
        add(
            f"break-even rate, {name}",
            lambda r, name=name: _even(r["break_even"][name]),
        )
    add(
        "share of the attention branch, %",
        lambda r: f"{100 * r['attention']['branch']:.1f}",
    )
    add(
        "of Q, K, V with each other alone, %",
        lambda r: f"{100 * r['attention']['products']:.1f}",
    )
    lines += [
        "",
        "Energies are estimates, counts times the constants above; shares are of the "
        f"account of everything in float32. {_source('energy.json', value)} The file "
        "has firing rates of every layer and step, and every place's counts.",
    ]
    begin = "<!-- energy: made by experiments/tables.py -->"
    return _between(text, begin, "\n".join(lines))


def _millions(x: float) -> str:
    return f"{x / 1e6:,.3f}"


def _even(found: dict) -> str:
    if found["rate"] is None:
        return "none, it costs more in silence"
    verdict = "below it" if found["own"] < found["rate"] else "**above it**"
    return f"{100 * found['rate']:.1f} %: {verdict}"


def _source(name: str, value: dict) -> str:
    return (
        f"From `experiments/results/{name}`; command: `{value['command']}`; device: "
        f"{value['device']}; commit: {value['commit'][:7]}."
    )


def _two(x: float) -> str:
    """Two digits that count, without an exponent."""
    return f"{float(format(x, '.2g')):g}"


def _between(
    text: str, begin: str, made: str, end: str = "<!-- end of table -->"
) -> str:
    """`text` with what stands between two of its lines replaced."""
    before, rest = text.split(begin)
    return "\n\n".join([before + begin, made, end + rest.split(end)[1]])


PAGES = {
    "README.md": render,
    "docs/certificate.md": certificate_tables,
    "docs/data.md": data_table,
    "docs/energy.md": energy_tables,
    "experiments/README.md": cost_table,
}


def main() -> int:
    changed = 0
    for name, make in PAGES.items():
        path = ROOT / name
        old = path.read_text()
        new = make(old)
        changed |= new != old
        if "--check" not in sys.argv:
            path.write_text(new)
    return int(changed) if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
