"""A2OS2A 2-256 on DVS128 Gesture: 128x128 events in T = 16 frames.

    python -m a2os2a_jax.data.prepare dvs128_gesture --data_dir=DIR --timesteps=16
    python -m a2os2a_jax.main --config=configs/dvs128_gesture.py --workdir=runs/dvs
    python -m a2os2a_jax.main --config=configs/dvs128_gesture.py:smoke --workdir=runs/s
    ... --config.data.data_dir=DIR --config.model.attention.kind=vssa

11 gestures of 29 people, of whom 24 to 29 judge (the authors' split).
`:10` is the same with T = 10. Published: nothing by the paper that we could read. Ours:
not run yet. For one data-centre GPU; expected time, an estimate from counted operations
(experiments/results/recipe_cost.json) and without what reading costs: 0.06 h. After the
recipe that Spikformer's public code has for event cameras (Zhou et al. 2023,
arXiv:2209.15425), a start and no reproduction.
"""

from a2os2a_jax import config


def get_config(mode: str = "full"):
    """`full` or the number of frames is the recipe; `smoke` the same on fake frames."""
    c = config.default()
    c.data.update(name="dvs128_gesture", size=128, timesteps=16, classes=11)
    c.model.update(variant="2-256", timesteps=16, heads=16, pool="1111")
    c.augment.update(flip=False, roll=5, cutout=8)
    c.optim.update(lr=1e-3, min_lr=1e-5, warmup_lr=1e-5, warmup_epochs=10.0)
    c.optim.weight_decay = 0.06
    c.train.update(batch=16, epochs=106.0, label_smoothing=0.1)
    if mode in ("10", "16"):
        c.data.timesteps = c.model.timesteps = int(mode)
    elif mode == "smoke":
        c.data.update(name="fake", size=32, channels=2, timesteps=2)
        c.model.update(variant="1-32", timesteps=2, heads=4)
        c.optim.warmup_epochs = 0.5
        c.train.update(batch=32, epochs=1.0, log_steps=4)
    elif mode != "full":
        raise ValueError(
            f"configs/dvs128_gesture.py: got :{mode}, expected :full, :10, :16 or "
            ":smoke"
        )
    return c
