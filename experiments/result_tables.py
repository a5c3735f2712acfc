"""Markdown of the results of training, from experiments/results; `tables` places it."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "experiments"))

import stamps  # noqa: E402
import sweep  # noqa: E402

from a2os2a_jax.modules.attention import KINDS  # noqa: E402

NAMES = {"a2os2a": "A2OS2A", "vssa": "VSSA", "none": "no attention"}


KIND, DECAY = "model.attention.kind", "model.neuron.decay_input"


def _commits(value: dict) -> str:
    return stamps.several(value["commits"])


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
    commits = stamps.several(sorted({run["commit"] for run in runs}))
    return (
        f"`make {task}` from start to exit, nothing cached, alone on the machine, "
        f"median of {len(runs)} seeds: {spread('wall_seconds')} s of wall clock, "
        f"{spread('cpu_seconds')} CPU-seconds, where a product of two 2000 x 2000 "
        f"matrices runs at {value['matmul_gflops']:.0f} GFLOP/s; scaled to "
        f"{value['reference_gflops']:.0f} GFLOP/s: {scaled['wall_seconds']:.0f} s and "
        f"{scaled['cpu_seconds']:.0f} CPU-seconds. From "
        f"`experiments/results/{task}_time.json`; command: `{value['command']}`; "
        f"device: {runs[0]['device']}; commit: {commits}."
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


FACTORIAL = 14  # runs of `cifar.py factorial`, one seed


def gpu() -> str:
    """What was run on a GPU, from digits_gpu, cifar-factorial-20 and two rates."""
    digits, cifar = _read("digits_gpu"), _read("cifar-factorial-20")
    rate, augment = _read("imagenet_rate_gpu"), _read("augment_time_gpu")
    lines = [
        "| run on a GPU | attention | precision | test accuracy, % | seeds "
        "| training, s |",
        "| --- " * 6 + "|",
    ]
    for title, value in (("digits", digits), ("CIFAR-10 2-256, 20 epochs", cifar)):
        for row in value["rows"]:
            s = row["settings"]
            name = NAMES[s.get(KIND, "a2os2a")]
            name += ", K binary" if s.get("model.attention.k") == "binary" else ""
            lines.append(
                f"| {title} | {name} | {s['dtype']} | {_accuracy(row)} | {row['n']} "
                f"| {row['train_seconds']['median']:.0f} |"
            )
    r, step = rate["images_per_s"], augment["train_step_seconds"]["median"]
    lines += [
        "",
        f"Of the {FACTORIAL} runs of the factorial "
        f"{len(cifar['rows'])} are done, of one seed each: they say that the recipe "
        "trains, and nothing yet of K. Six runs of digits shared the GPU. "
        f"8-512 at 224x224 (T = 4, bfloat16, remat, batch {rate['batch']}, made-up "
        f"images) trained at {r['median']:.0f} images/s ({r['min']:.0f} to "
        f"{r['max']:.0f} between lines of the log, with what these and checkpoints "
        f"take), in {rate['memory_mib'] / 1024:.1f} GiB. A step of 2-512 on CIFAR's "
        f"size, batch {augment['batch']}, took {1e3 * step:.1f} ms, RandAugment beside "
        f"it {1e3 * augment['randaugment_seconds']['median']:.2f} ms "
        f"({100 * augment['ratio']:.0f} %).",
        "",
        "From "
        + "; ".join(
            f"`experiments/results/{name}.json` (`{value['command']}`)"
            for name, value in (
                ("digits_gpu", digits),
                ("cifar-factorial-20", cifar),
                ("imagenet_rate_gpu", rate),
                ("augment_time_gpu", augment),
            )
        )
        + f"; commit: {stamps.short(rate['commit'])}; device: {rate['device']}; jax "
        f"{rate['versions']['jax']}.",
    ]
    return "\n".join(lines)


def again() -> str:
    """Digits and recall over five seeds at a later commit."""
    lines = [
        "| again, later | attention | test accuracy, %: median (least to most) "
        "| mean ± std | seeds | commit |",
        "| --- " * 6 + "|",
    ]
    sources = []
    for name, title in (("digits_seeds", "digits"), ("recall_seeds", "recall, 32")):
        value = _read(name)
        (row,) = value["rows"]
        a = {k: 100 * v for k, v in row["test_accuracy"].items()}
        lines.append(
            f"| {title} | A2OS2A "
            f"| {a['median']:.2f} ({a['min']:.2f} to {a['max']:.2f}) "
            f"| {a['mean']:.2f} ± {a['std']:.2f} | {row['n']} | {_commits(value)} |"
        )
        sources.append(f"`experiments/results/{name}.json` (`{value['command']}`)")
    device = ", ".join(_read("digits_seeds")["devices"])
    return "\n".join([*lines, "", f"From {'; '.join(sources)}; device: {device}."])


TASKS = {"recall": "recall", "fashion": "Fashion-MNIST subset"}
ENERGY = "float32: spiking, all of it"
CONTROL = "a control"  # as `modules.attention.KINDS` calls the source of one
TEXT = "from the text"
RECALL_FLOOR = RESULTS / "recall_floor.json"
OWN_RECALL = RESULTS / "recall_seeds" / "recall,seed=0.json"  # of configs/recall.py
FASHION = 60_000  # training images of Fashion-MNIST
COMPARED = ("compare", "compare_speed")  # without which there is no comparison


def comparison() -> str:
    """docs/field.md: every attention under one recipe, from compare.json."""
    value, speed = _read("compare"), _read("compare_speed")
    rows = {(row["task"], row["kind"]): row for row in value["rows"]}
    rates = {(row["task"], row["kind"]): row for row in speed["rows"]}
    of_kind = {row["kind"]: row for row in value["rows"]}
    order = sorted(of_kind, key=lambda kind: of_kind[kind]["source"] == CONTROL)
    left_out = value["left_out"]
    lines = [
        "| attention | proof | recall, % | Fashion-MNIST subset, % |",
        "| --- " * 4 + "|",
    ]
    for kind in order:
        cells = [_mark(of_kind[kind])]
        for task in TASKS:
            row = rows.get((task, kind))
            cells.append(_compared(row) if row else left_out[task].get(kind, "not run"))
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    for task, title in TASKS.items():
        lines += [
            "",
            f"| {title} | parameters | fires, % | in the attention, % "
            "| energy, nJ an example | addition-only | training, examples/s "
            "| inference, examples/s |",
            "| --- " * 8 + "|",
        ]
        lines += [
            f"| {' | '.join(_costs(rows[task, kind], rates.get((task, kind))))} |"
            for kind in order
            if (task, kind) in rows
        ]
    everywhere = set.intersection(*(set(of.items()) for of in left_out.values()))
    batches = {row["task"]: row["batch"] for row in speed["rows"]}
    firsts = [next((r for r in value["rows"] if r["task"] == t), None) for t in TASKS]
    for row in filter(None, firsts):
        lines += ["", _recipe(row)]
    counted = [row["folded"]["count"] for row in value["rows"] if row["folded"]]
    examples = f", on the first {counted[0]} examples" if counted else ""
    lines += [
        "",
        "Accuracy: mean ± standard deviation over seeds (how many), after the last "
        "step. The learning rates were chosen with A2OS2A "
        "([ablations](ablations.md)), so other rows may be undertuned. "
        f"Of the folded model of seed 0{examples}: firing rates, every neuron "
        "alike, and energies, which are estimates, of everything in float32. A rate "
        "counts spikes that are not zero: one of `integer`, worth up to "
        f"{KINDS['integer'].options['levels']} spikes, counts as one. "
        + "".join(f"`{kind}` is not run: {why}. " for kind, why in everywhere)
        + "Examples/s of a training step and of the folded model, in batches of "
        f"{' and '.join(map(str, batches.values()))}: median, slowest and fastest "
        f"round of `{speed['command']}`; rows whose ranges overlap are not told apart. "
        "Measured on a machine where a product of two "
        f"2000 x 2000 matrices runs at {speed['gflops']:.0f} GFLOP/s "
        f"(`experiments/results/compare_speed.json`; {speed['device']}; commit: "
        f"{stamps.short(speed['commit'])}).",
        "",
        f"From `experiments/results/compare.json`; command: `{value['command']}`; "
        f"device: {', '.join(value['devices'])}; commits: {_commits(value)}.",
    ]
    return "\n".join(lines)


def _mark(row: dict) -> str:
    if row["source"] == CONTROL:
        return CONTROL
    return f"*{TEXT}*" if row["mark"] == TEXT else row["mark"]


def _recipe(row: dict) -> str:
    """Two sentences on what a task's runs have in common, from the file of one."""
    run = sweep.Run(
        "compare", row["config"], tuple(row["settings"].items()), row["seeds"][0]
    )
    result = json.loads((RESULTS / run.sweep / f"{run.name}.json").read_text())
    config = result["config"]
    model, optim, data = config["model"], config["optim"], config["data"]
    title = TASKS[row["task"]]
    first = (
        f"{title[0].upper()}{title[1:]}: `{model['name']}` {model['variant']}, "
        f"{model['heads']} heads, T = {model['timesteps']}; {result['steps']:,} steps "
        f"of {result['effective_batch']} examples, optimizer `{optim['name']}`, "
        f"learning rate {optim['lr']:g} at its peak."
    )
    count = result[config["eval"]["split"]]["count"]
    if row["task"] == "recall":
        own = json.loads(OWN_RECALL.read_text())
        floor = json.loads(RECALL_FLOOR.read_text())
        known = {r["pairs"]: r["accuracy"] for r in floor["rows"]}[data["pairs"]]
        return (
            f"{first} Every step draws new examples of {data['pairs']} pairs, and "
            f"{count:,} fresh ones are scored: another task than this package's own "
            f"recall ({own['config']['data']['pairs']} pairs, {own['steps']} steps), "
            "with fewer pairs, which is easier, and fewer steps, chosen so that not "
            f"every attention solves it. Chance is {100 / floor['classes']:.0f} %; who "
            f"knows the values but not their keys gets {100 * known:.1f} % by the most "
            "frequent one (`experiments/results/recall_floor.json`)."
        )
    return (
        f"{first} It is trained on {FASHION - data['validation']:,} of the "
        f"{FASHION:,} training images and scored on {count:,} others of them that "
        "were held out, not on the test images."
    )


def _compared(row: dict) -> str:
    (key,) = (key for key in row if key.endswith("_accuracy"))
    a = {name: 100 * x for name, x in row[key].items()}
    spread = f" ± {a['std']:.2f}" if row["n"] > 1 else ""
    return f"{a['mean']:.2f}{spread} ({row['n']})"


def _costs(row: dict, rate: dict | None) -> list[str]:
    """Cells: kind, parameters, rates, energy, verdict, examples/s.

    rate: None where examples/s were not measured.
    """
    name = f"`{row['kind']}`" + (f", *{TEXT}*" if row["mark"] == TEXT else "")
    cells = [name, f"{row['parameters']:,}"]
    if folded := row["folded"]:
        within, verdict = folded["attention_firing_rate"], "yes"
        if not folded["addition_only"]:
            places = (f"{why} (`{place}`)" for place, why in folded["refused"])
            verdict = f"**no**: {', '.join(places)}"
        cells += [
            f"{100 * folded['firing_rate']:.1f}",
            "none" if within is None else f"{100 * within:.1f}",
            f"{folded['nj'][ENERGY]:,.0f}",
            verdict,
        ]
    else:
        cells += 4 * ["not counted"]
    if rate is None:
        return [*cells, *(2 * ["not measured"])]
    return [
        *cells,
        *(
            f"{r['median']:,.0f} ({r['min']:,.0f} to {r['max']:,.0f})"
            for r in (rate["training"], rate["inference"])
        ),
    ]


def headline() -> str:
    """The few rows of README; `all_results` has the others."""
    light, ablations = _read("first_light"), _read("ablation")
    short, whole = _read("fashion_mnist-short"), _read("fashion_mnist")
    cifar, digits = _read("cifar-factorial-20"), _read("digits_gpu")

    def found(value, config, **settings):
        """Accuracies of the only row of these settings; settings by their last word."""
        for row in value["rows"]:
            own = {key.split(".")[-1]: v for key, v in row["settings"].items()}
            if row["config"] == config and own == settings:
                return row
        raise KeyError(f"{config} {settings}")

    def three(title, device, value, config, **settings):
        rows = [found(value, config, kind=k, **settings) for k in NAMES]
        cells = " | ".join(_accuracy(row) for row in rows)
        return f"| {title} | {cells} | {rows[0]['n']} | {device} |"

    def one(title, device, row):
        return f"| {title} | {_accuracy(row)} | | | {row['n']} | {device} |"

    recall = "configs/recall.py"
    lines = [
        "| test accuracy, % | A2OS2A | VSSA | no attention | seeds | device |",
        "| --- " * 6 + "|",
        three("digits", "CPU", light, "configs/digits.py", decay_input="False"),
        three("recall, 32 pairs", "CPU", ablations, recall, decay_input="False"),
        one("digits, at a later commit", "CPU", _read("digits_seeds")["rows"][0]),
        one("recall, at a later commit", "CPU", _read("recall_seeds")["rows"][0]),
        three(
            "Fashion-MNIST, 2 epochs", "CPU", short, "configs/fashion_mnist.py:short"
        ),
        one("Fashion-MNIST, 12 epochs", "CPU", whole["rows"][0]),
        one("digits", "H100", digits["rows"][0]),
        one("CIFAR-10 2-256, 20 epochs", "H100", cifar["rows"][0]),
        "",
        "Mean ± standard deviation over seeds, of test examples looked at once, after "
        "the last step. All results, with commands, commits and costs: "
        "[docs/results.md](docs/results.md); the files: `experiments/results`.",
    ]
    return "\n".join(lines)


def all_results() -> str:
    """docs/results.md."""
    parts = [sets(), gpu(), again(), first_light(), time_of("digits")]
    return "\n\n".join([*parts, time_of("recall"), precision(), ablation()])


def zoo_table() -> str:
    """Weights that come with the package, from their cards."""
    lines = [
        "| name | model | test accuracy, % | the same config over seeds | batch | KB "
        "| sha256 | terms of the data |",
        "| --- " * 8 + "|",
    ]
    for path in sorted((ROOT / "a2os2a_jax" / "zoo").glob("*/card.json")):
        card = json.loads(path.read_text())
        seeds, test = card["over_seeds"], card["test"]
        spread = "not measured"
        if seeds:
            spread = f"{100 * seeds['mean']:.2f} ± {100 * seeds['std']:.2f}"
            spread += f" ({len(seeds['seeds'])})"
        lines.append(
            f"| `zoo:{path.parent.name}` | {card['model']} "
            f"| {100 * test['accuracy']:.2f} of {test['count']:,} | {spread} "
            f"| {card['trained']['effective_batch']} | {card['bytes'] / 1e3:,.0f} "
            f"| `{card['sha256'][:12]}…` | {card['terms']['data']} |"
        )
    return "\n".join(lines)


def _read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _accuracy(row: dict) -> str:
    a = {k: 100 * v for k, v in row["test_accuracy"].items()}
    if row["n"] == 1:
        return f"{a['median']:.2f}"
    return f"{a['mean']:.2f} ± {a['std']:.2f}"
