"""A2OS2A on associative recall, the task that needs attention: 32 pairs by default.

    python -m a2os2a_jax.main --config=configs/recall.py --workdir=runs/recall
    python -m a2os2a_jax.main --config=configs/recall.py:8 --workdir=runs/recall8
    python -m a2os2a_jax.main --config=configs/recall.py:smoke --workdir=runs/smoke
    ... --config.model.attention.kind=none             (stays near chance, 10 %)

One block, 900 steps of 64 fresh examples, some minutes on two CPU cores; with 8 pairs
300 steps, well under a minute. Accuracy over seeds, time and device:
experiments/results/ablation.json and first_light.json.
"""

from a2os2a_jax import config


def get_config(mode: str = "full"):
    """`full` trains, with 32 pairs; `8` is an easier task; `smoke` takes seconds."""
    c = config.default()
    c.data.update(name="recall", pairs=32)
    c.model.update(variant="1-128", timesteps=2, heads=2, stem="tokens")
    c.model.readout = "query"
    c.optim.update(lr=1e-3, warmup_epochs=0.0, weight_decay=0.0, clip=1.0)
    c.train.update(batch=64, steps=900, log_steps=50)
    c.eval.batch = 512
    if mode in ("8", "smoke"):
        c.data.pairs, c.train.steps, c.optim.lr = 8, 300, 3e-3
    if mode == "smoke":
        c.model.variant = "1-32"
        c.train.update(steps=20, log_steps=5)
        c.eval.examples = 256
    elif mode not in ("full", "8"):
        raise ValueError(
            f"configs/recall.py: got :{mode}, expected :full, :8 or :smoke"
        )
    return c
