"""Tables of README and docs, from experiments/results and the catalogue.

python experiments/tables.py            rewrites what lies between the marks there
python experiments/tables.py --check    changes nothing, exit code 1 if it would
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
sys.path.insert(0, str(Path(__file__).resolve().parent))

import field_tables  # noqa: E402
import result_tables  # noqa: E402
import stamps  # noqa: E402

BEGIN, END = (
    "<!-- results: made by experiments/tables.py -->",
    "<!-- end of results -->",
)


def render(readme: str) -> str:
    """README with its results replaced by those of the JSON files."""
    return _between(readme, BEGIN, result_tables.headline(), END)


def results_page(text: str) -> str:
    """docs/results.md, likewise."""
    return _between(text, BEGIN, result_tables.all_results(), END)


def zoo_page(text: str) -> str:
    """docs/zoo.md with its table, from the cards."""
    begin = "<!-- zoo: made by experiments/tables.py -->"
    return _between(text, begin, result_tables.zoo_table())


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
        f"`{value['command']}`; commit: {stamps.short(value['commit'])}.",
    ]
    return _between(
        text, "<!-- costs: made by experiments/tables.py -->", "\n".join(lines)
    )


def converter_table(text: str) -> str:
    """docs/converters.md with its table, from converters.json: the newest converter."""
    value = json.loads((RESULTS / "converters.json").read_text())
    run = value["runs"][max(value["runs"], key=lambda v: [*map(int, v.split("."))])]
    lines = [
        "| model | dtype | inputs | answers that change | inputs that differ "
        "| largest difference, of a range | nodes |",
        "| --- " * 7 + "|",
    ]
    for row in run["rows"]:
        lines.append(
            f"| {row['what']} ({row['model']}) | {row['dtype']} | {row['inputs']:,} "
            f"| {row['answers_changed']} | {row['inputs_differing']} "
            f"| {row['largest_difference']:.1e} of {row['range_of_logits']:.2g} "
            f"| {row['nodes']:,} |"
        )
    versions = run["versions"]
    lines += [
        "",
        f"onnxruntime {versions['onnxruntime']} on a CPU against jax "
        f"{versions['jax']}, converted by jax2onnx {versions['jax2onnx']}; an input "
        "differs where a logit does by 1e-4 of the logits' range. Untrained models "
        "have statistics of a batch, and every layer fires. From "
        f"`experiments/results/converters.json`; command: `{value['command']}`; "
        f"commit: {stamps.short(run['commit'])}.",
    ]
    begin = "<!-- onnx: made by experiments/tables.py -->"
    return _between(text, begin, "\n".join(lines))


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
        verdict = row["verdict"]
        if row["refused"]:
            verdict += f": {field_tables.places(row['refused'])}"
        lines.append(
            f"| {row['family']} {row['variant']} | {'x'.join(map(str, row['shape']))} "
            f"| {_attention(row)} | {verdict} | {permitted or 'none'} "
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
            found = row["heads"].get(head)
            if found is None:  # the head reads membranes, which are no spikes
                cells.append("")
                continue
            cell = f"{_mega(found['additions'])} additions"
            if found["products"]:
                cell += f", {_mega(found['products'])} **products**"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"At most, as above. From `experiments/results/certificates.json`; command: "
        f"`{value['command']}`; device: {value['device']}; commit: "
        f"{stamps.short(value['commit'])}.",
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
        return field_tables.FAMILIES[row["family"]].attention
    if isinstance(options, str):
        return options
    return ", ".join(
        str(v) if k == "kind" else f"{k} {v:g}" if isinstance(v, float) else str(v)
        for k, v in options.items()
    )


def field_page(text: str) -> str:
    """docs/field.md with its tables, from the package, certificates.json and papers."""
    for name, made in field_tables.all_tables(RESULTS).items():
        begin = f"<!-- {name}: made by experiments/tables.py -->"
        text = _between(text, begin, made)
    begin = "<!-- compare: made by experiments/tables.py -->"
    files = [RESULTS / f"{name}.json" for name in result_tables.COMPARED]
    if missing := [path.name for path in files if not path.exists()]:
        print(
            f"docs/field.md: no {', '.join(missing)}, so its comparison stays as it is"
        )
        return text
    return _between(text, begin, result_tables.comparison())


def torch_page(text: str) -> str:
    """docs/torch.md with its table of families."""
    begin = "<!-- torch: made by experiments/tables.py -->"
    return _between(text, begin, field_tables.torch_table())


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
    add("without those of a zero, M", lambda r: _millions(_nonzero(r)))
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


def _nonzero(record: dict) -> float:
    """Additions of something other than 0; under its earlier name in older files."""
    return record.get("sops_nonzero", record.get("sops_zero_skipped"))


def _millions(x: float) -> str:
    return f"{x / 1e6:,.3f}"


def _mega(x: float) -> str:
    return f"{x / 1e6:.1f} M" if x >= 1e6 else f"{_two(x / 1e6)} M"


def _even(found: dict) -> str:
    if found["rate"] is None:
        return "none, it costs more in silence"
    verdict = "below it" if found["own"] < found["rate"] else "**above it**"
    return f"{100 * found['rate']:.1f} %: {verdict}"


def _source(name: str, value: dict) -> str:
    return (
        f"From `experiments/results/{name}`; command: `{value['command']}`; device: "
        f"{value['device']}; commit: {stamps.short(value['commit'])}."
    )


def _two(x: float) -> str:
    """Two digits that count, without an exponent."""
    return f"{float(format(x, '.2g')):g}"


def _between(
    text: str, begin: str, made: str, end: str = "<!-- end of table -->"
) -> str:
    """`text` with what stands between two of its lines replaced."""
    before, rest = text.split(begin)
    return "\n\n".join([before + begin, made, end + rest.split(end, 1)[1]])


PAGES = {
    "README.md": render,
    "docs/certificate.md": certificate_tables,
    "docs/converters.md": converter_table,
    "docs/data.md": data_table,
    "docs/energy.md": energy_tables,
    "docs/field.md": field_page,
    "docs/results.md": results_page,
    "docs/torch.md": torch_page,
    "docs/zoo.md": zoo_page,
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
