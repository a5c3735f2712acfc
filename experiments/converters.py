"""What ONNX carries of folded models: the same logits by onnxruntime as by jax?

    python experiments/converters.py     (needs jax2onnx; some minutes; Fashion-MNIST in
                                          $A2OS2A_DATA)

The digits and Fashion-MNIST models of the package see the whole test set; small
ones with running statistics of a batch, all layers firing, see 512 random inputs.
Writes, under the version of jax2onnx, into experiments/results/converters.json.
"""

import argparse
import collections
import importlib.metadata
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import folding  # noqa: E402  (beside this file)
import jax  # noqa: E402
import numpy as np  # noqa: E402

from a2os2a_jax import models  # noqa: E402
from a2os2a_jax.analysis import rates  # noqa: E402
from a2os2a_jax.interop import onnx as ours  # noqa: E402
from a2os2a_jax.train import finetune, setup  # noqa: E402
from a2os2a_jax.train import workdir as workdirs  # noqa: E402

RESULT = ROOT / "experiments" / "results" / "converters.json"
PACKAGES = ("jax2onnx", "onnx", "onnxruntime", "orbax-checkpoint", "jax", "flax")
TOKENS = dict(stem="tokens", image_size=None, in_channels=6)
DRIVEN = dict(name="spike_driven", neuron=dict(v_th=0.5))
# (what, options of `build`, head)
CASES = [
    ("a2os2a, T = 2", dict(timesteps=2), "spikes"),
    ("a2os2a, T = 4", {}, "spikes"),
    ("order qk_v", dict(attention=dict(order="qk_v")), "spikes"),
    ("order q_kv", dict(attention=dict(order="q_kv")), "spikes"),
    ("head counts", {}, "counts"),
    ("head bits", {}, "bits"),
    ("vssa", dict(attention="vssa"), "spikes"),
    ("spike_driven", DRIVEN, "spikes"),
]
WIDE = [  # float64, where onnxruntime has no convolution
    ("tokens", {}, "spikes"),
    ("tokens, head bits", {}, "bits"),
    ("tokens, vssa", dict(attention="vssa"), "spikes"),
    ("tokens, spike_driven", DRIVEN, "spikes"),
]
COUNT = 512


def calibrated(options: dict[str, Any], dtype: str):
    """(model, variables, shape of an input), with statistics of a batch."""
    how = dict(image_size=8, in_channels=1, timesteps=4, name="columnar") | options
    model = models.build(
        how.pop("name"), "1-32", num_classes=10, heads=2, dtype=dtype, **how
    )
    shape = (8, 8, 1) if model.stem != "tokens" else (5, model.in_channels)
    x = np.random.default_rng(0).normal(size=(64, *shape)).astype(dtype)
    v = jax.jit(model.init)(jax.random.key(0), x)
    run = jax.jit(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"])[1])
    stats = jax.tree.map(
        lambda new, old: (new - 0.9 * old) / 0.1,
        run(v)["batch_stats"],
        v["batch_stats"],
    )
    return model, v | {"batch_stats": stats}, shape


def compare(model, params, batches) -> dict[str, Any]:
    """Both on the same inputs: a dictionary of what differs."""
    import onnx
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        start = time.perf_counter()
        ours.save(model, params, path)
        seconds = time.perf_counter() - start
        size, proto = path.stat().st_size, onnx.load(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = jax.jit(lambda x: model.apply(params, x, mutable=["spikes"]))
    count = changed = differing = 0
    worst = spread = 0.0
    firing: dict[str, list[float]] = collections.defaultdict(list)
    for x in batches:
        want, sown = jax.device_get(run(x))
        (got,) = session.run(None, {ours.INPUT: x})
        for name, s in rates.layers(sown["spikes"]).items():
            firing[name].append(float((s != 0).mean()))
        gap = np.abs(got - want)
        count += len(x)
        changed += int((got.argmax(-1) != want.argmax(-1)).sum())
        differing += int((gap.max(-1) > 1e-4 * np.ptp(want)).sum())
        worst, spread = max(worst, float(gap.max())), max(spread, float(np.ptp(want)))
    fires = [float(np.mean(f)) for f in firing.values()]
    operators = collections.Counter(node.op_type for node in proto.graph.node)
    return {
        "inputs": count,
        "answers_changed": changed,
        "inputs_differing": differing,
        "largest_difference": worst,
        "range_of_logits": spread,
        "firing_least_to_most": [min(fires), max(fires)],
        "bytes": size,
        "convert_seconds": round(seconds, 1),
        "opset": proto.opset_import[0].version,
        "nodes": len(proto.graph.node),
        "operators": dict(operators.most_common()),
    }


def random_inputs(shape, dtype):
    return [np.random.default_rng(1).normal(size=(COUNT, *shape)).astype(dtype)]


def trained(name: str):
    """The row of a model of the package, on the whole test set of its data."""
    parts = setup.prepare(folding.config_of(name))
    folded, params = models.fold(parts.model, finetune.source(f"zoo:{name}")[0])
    split, gather = parts.dataset.test, jax.jit(parts.dataset.test.gather)

    def batches():
        for start in range(0, split.size, 100):
            indices = np.arange(start, min(start + 100, split.size))
            batch = gather(split.resident, split.fetch(indices))
            yield np.asarray(batch["image"], np.float32)

    what = {"what": name, "model": "of the zoo", "dtype": "float32"}
    return what | compare(folded, params, batches())


def rows():
    for name in ("digits", "fashion_mnist"):
        yield trained(name)
    for dtype, cases in (("float32", CASES), ("float64", WIDE)):
        with jax.enable_x64(dtype == "float64"):
            for what, options, head in cases:
                more = TOKENS if dtype == "float64" else {}
                model, variables, shape = calibrated(options | more, dtype)
                tokens = 5 if model.stem == "tokens" else None
                folded, params = models.fold(model, variables, head=head, tokens=tokens)
                yield (
                    {"what": what, "model": "1-32, untrained", "dtype": dtype}
                    | compare(folded, params, random_inputs(shape, dtype))
                )


def record(made: list[dict[str, Any]]) -> None:
    """What there is of this run, beside those of other versions."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    value = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    value |= {
        "command": "python experiments/converters.py",
        "what": "folded models by onnxruntime on a CPU against the same by jax",
        "differing": "inputs of which a logit differs by 1e-4 of the logits' range",
    }
    value.setdefault("runs", {})[versions["jax2onnx"]] = {
        "commit": workdirs.commit(),
        "device": "cpu",
        "versions": versions,
        "rows": made,
    }
    RESULT.write_text(json.dumps(value, indent=1) + "\n")


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    made = []
    for row in rows():
        made.append(row)
        record(made)  # row by row, for a run takes long
        print(
            f"{row['what']} ({row['model']}, {row['dtype']}): {row['answers_changed']} "
            f"of {row['inputs']:,} answers change, {row['inputs_differing']} differ, "
            f"by {row['largest_difference']:.1e} of {row['range_of_logits']:.2g}; "
            f"{row['nodes']} nodes, {row['convert_seconds']} s",
            flush=True,
        )
    print(f"wrote {RESULT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
