"""The certificate of every published size, on abstract shapes, and what it costs.

    python experiments/certificates.py          (some minutes)

Every row is a model, folded, read equation by equation at one image: its verdict, the
products that remain (the first convolution), its price, and how long that took. Beside
them stand the models as they are trained, and what the head takes in its three orders.
Writes experiments/results/certificates.json.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "experiments" / "benchmarks"))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import machine  # noqa: E402

from a2os2a_jax import models  # noqa: E402
from a2os2a_jax.commands.certify import certify, head_of  # noqa: E402
from a2os2a_jax.models.registry import COLUMNAR  # noqa: E402
from a2os2a_jax.modules.head import ORDERS as HEADS  # noqa: E402
from a2os2a_jax.train import workdir as workdirs  # noqa: E402


def cases() -> Iterator[tuple[str, str, dict[str, Any], tuple[int, ...]]]:
    """(family, variant, options of `models.build`, shape of an example)."""
    for variant, (classes, size, pool, *_) in COLUMNAR.items():
        how = dict(num_classes=classes, image_size=size, pool=pool)
        still = (size, size, 3)
        yield "columnar", variant, how, still
        if variant in ("8-512", "2-512"):
            for order in ("qk_v", "q_kv"):
                kind = dict(kind="a2os2a", order=order)
                yield "columnar", variant, how | dict(attention=kind), still
            gain = dict(kind="a2os2a", k_gain=1 / 64)
            yield "columnar", variant, how | dict(attention=gain), still
            frames = dict(in_channels=2)
            yield "columnar", variant, how | frames, (4, size, size, 2)
            yield "columnar", variant, how | dict(attention="vssa"), still
            yield "spike_driven", variant, how, still


def row(family: str, variant: str, how: dict[str, Any], shape: tuple) -> dict[str, Any]:
    """One certificate, timed."""
    model = models.build(family, variant, **how)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    start, cpu = time.perf_counter(), time.process_time()
    report = certify(*models.fold(model, variables), images.shape)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    trained = certify(model, variables, images.shape)
    return {
        "family": family,
        "variant": variant,
        "options": {k: v for k, v in how.items() if k != "pool"},
        "shape": list(shape),
        "verdict": report.verdict,
        "permitted": [[o.place, o.count] for o in report.allowed],
        "refused": [[o.place, o.why] for o in report.refused],
        "counts": report.counts,
        "price": {
            k: {str(b): n for b, n in w.items()} for k, w in report.price.items()
        },
        "heads": {
            head: head_of(
                certify(*models.fold(model, variables, head=head), images.shape)
            )
            for head in HEADS
        },
        "as_trained": {
            "verdict": trained.verdict,
            "equations": len(trained.refused),
        },
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    rows = []
    for case in cases():
        rows.append(row(*case))
        r = rows[-1]
        print(
            f"{r['family']} {r['variant']} {r['options'].get('attention', '')}: "
            f"{r['verdict']}, {r['counts']['addition']:,} additions, "
            f"{r['seconds']:.1f} s",
            flush=True,
        )
    value = {
        "command": "python experiments/certificates.py",
        "what": "certificates of folded models at one example, all spikes firing",
        "commit": workdirs.commit(),
        "device": f"{platform.machine()} CPU",
        "gflops": machine.matmul_gflops(),
        "versions": workdirs.versions(),
        "rows": rows,
    }
    path = ROOT / "experiments" / "results" / "certificates.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
