"""The certificate of every published size, on abstract shapes, and what it costs.

    python experiments/certificates.py          (some minutes)

Every row is a model, folded, read equation by equation at one image: its verdict, the
products that remain (the first convolution), its price, and how long that took. Beside
them stand the models as they are trained, and what the head takes in its orders. Then
every attention in one model, whose residual is the membrane.
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
from a2os2a_jax.analysis.audit import Report  # noqa: E402
from a2os2a_jax.commands.certify import certify, head_of  # noqa: E402
from a2os2a_jax.models.families import FAMILIES  # noqa: E402
from a2os2a_jax.modules.attention import KINDS, resolve  # noqa: E402
from a2os2a_jax.train import workdir as workdirs  # noqa: E402

SAME = "2-512"  # the size in which all attentions stand


def cases() -> Iterator[tuple[str, str, dict[str, Any], tuple[int, ...]]]:
    """(family, variant, options of `models.build`, shape of an example)."""
    for family, own in FAMILIES.items():
        for variant, size in own.sizes.items():
            how, still = _size(family, variant)
            yield family, variant, how, still
            if family == "columnar" and variant in ("8-512", SAME):
                for order in ("qk_v", "q_kv"):
                    kind = dict(kind="a2os2a", order=order)
                    yield family, variant, how | dict(attention=kind), still
                gain = dict(kind="a2os2a", k_gain=1 / 64)
                yield family, variant, how | dict(attention=gain), still
                events = (4, size.image_size, size.image_size, 2)
                yield family, variant, how | dict(in_channels=2), events
                yield family, variant, how | dict(attention="vssa"), still


def _size(family: str, variant: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Options of a published size, and the shape of its images."""
    size = FAMILIES[family].sizes[variant]
    how = dict(num_classes=size.classes, image_size=size.image_size, stem=size.stem)
    return how, (size.image_size, size.image_size, 3)


def row(family: str, variant: str, how: dict[str, Any], shape: tuple) -> dict[str, Any]:
    """One certificate, timed."""
    model = models.build(family, variant, **how)
    variables = _shapes(model, shape)
    start, cpu = time.perf_counter(), time.process_time()
    report = certify(*models.fold(model, variables), (1, *shape))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    trained = certify(model, variables, (1, *shape))
    return {
        "family": family,
        "variant": variant,
        "options": how,
        "shape": list(shape),
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        **_found(report),
        "heads": {
            head: head_of(
                certify(*models.fold(model, variables, head=head), (1, *shape))
            )
            for head in models.head_orders(model)
        },
        "as_trained": {
            "verdict": trained.verdict,
            "equations": len(trained.refused),
        },
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def attention_row(
    kind: str, variant: str, how: dict[str, Any], shape: tuple
) -> dict[str, Any]:
    """The certificate of an attention, with its own options, in the columnar family."""
    model = models.build("columnar", variant, attention=kind, **how)
    return {
        "kind": kind,
        "options": {k: v for k, v in resolve(kind).items() if k != "kind"},
        "variant": variant,
        **_found(certify(*models.fold(model, _shapes(model, shape)), (1, *shape))),
    }


def _shapes(model: Any, shape: tuple[int, ...]) -> Any:
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


def _found(report: Report) -> dict[str, Any]:
    return {
        "verdict": report.verdict,
        "permitted": [[o.place, o.count] for o in report.allowed],
        "refused": [[o.place, o.why] for o in report.refused],
        "counts": report.counts,
        "price": {
            k: {str(b): n for b, n in w.items()} for k, w in report.price.items()
        },
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
    same = _size("columnar", SAME)
    attentions = [attention_row(kind, SAME, *same) for kind in KINDS]
    for r in attentions:
        print(f"{r['kind']}: {r['verdict']}", flush=True)
    value = {
        "command": "python experiments/certificates.py",
        "what": "certificates of folded models at one example, all spikes firing",
        "commit": workdirs.commit(),
        "device": f"{platform.machine()} CPU",
        "gflops": machine.matmul_gflops(),
        "versions": workdirs.versions(),
        "rows": rows,
        "attentions": attentions,
    }
    path = ROOT / "experiments" / "results" / "certificates.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
