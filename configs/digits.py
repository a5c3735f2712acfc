"""A2OS2A on handwritten digits: 8x8, T = 4, about two minutes on two CPU cores.

    python -m a2os2a_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m a2os2a_jax.main --config=configs/digits.py:smoke --workdir=runs/smoke
    ... --config.model.attention.kind=vssa --config.seed=1

scikit-learn's digits: 1,437 images train, 360 test, looked at once, at the end.
Accuracy over seeds, time and device: experiments/results/first_light.json
and digits_time.json.
"""

from a2os2a_jax import config


def get_config(mode: str = "full"):
    """`full` trains; `smoke` is the same program on fake images, in seconds."""
    c = config.default()
    c.data.name = "digits"
    c.model.update(variant="2-64", timesteps=4, heads=4, pool="0001")
    c.augment.shift = 0.5
    c.optim.update(lr=2e-3, warmup_epochs=2.0, weight_decay=0.06, clip=1.0)
    c.train.update(batch=64, epochs=25.0, label_smoothing=0.1, log_steps=55)
    if mode == "smoke":
        c.data.update(name="fake", size=8, channels=1)
        c.model.update(variant="1-32", timesteps=2)
        c.train.update(batch=32, epochs=2.0, log_steps=4)
        c.optim.warmup_epochs = 0.5
    elif mode != "full":
        raise ValueError(f"configs/digits.py: got :{mode}, expected :full or :smoke")
    return c
