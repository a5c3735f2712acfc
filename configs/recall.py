"""A2OS2A on associative recall, the task that needs attention; 8 pairs by default.

    python -m a2os2a_jax.main --config=configs/recall.py --workdir=runs/recall
    python -m a2os2a_jax.main --config=configs/recall.py:smoke --workdir=runs/smoke
    ... --config.model.attention.kind=none             (stays near chance, 10 %)
    ... --config.data.pairs=32 --config.train.steps=900             (the harder task)

One block, 300 steps of 64 fresh examples, well under a minute on two CPU cores.
Accuracy over seeds, time and device: experiments/results/first_light.json.
"""

from a2os2a_jax import config


def get_config(mode: str = "full"):
    """`full` trains; `smoke` is the same program for a few steps."""
    c = config.default()
    c.data.update(name="recall", pairs=8)
    c.model.update(variant="1-128", timesteps=2, heads=2, stem="tokens")
    c.model.readout = "query"
    c.optim.update(lr=3e-3, warmup_epochs=0.0, weight_decay=0.0, clip=1.0)
    c.train.update(batch=64, steps=300, log_steps=50)
    c.eval.batch = 512
    if mode == "smoke":
        c.model.variant = "1-32"
        c.train.update(steps=20, log_steps=5)
        c.eval.examples = 256
    elif mode != "full":
        raise ValueError(f"configs/recall.py: got :{mode}, expected :full or :smoke")
    return c
