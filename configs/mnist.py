"""A2OS2A on MNIST: 28x28, T = 2, for two CPU cores.

    python -m a2os2a_jax.main --config=configs/mnist.py --workdir=runs/mnist
    python -m a2os2a_jax.main --config=configs/mnist.py:smoke --workdir=runs/smoke
    ... --config.data.data_dir=DIR --config.model.attention.kind=vssa

60,000 + 10,000 digits (LeCun et al. 1998), enlarged to 32x32, so that the stem halves
them three times, to 16 tokens. Two epochs; expected time, an estimate from runs of
configs/fashion_mnist.py, whose model this is: about ten minutes of one of two CPU
cores. Published: nothing of A2OS2A. Ours: not run yet.
"""

from a2os2a_jax import config


def get_config(mode: str = "full"):
    """`full` trains; `smoke` is the same program on fake images, in seconds."""
    c = config.default()
    c.data.update(name="mnist", size=32)
    c.model.update(variant="1-128", timesteps=2, heads=4, pool="1101")
    c.augment.shift = 2.0
    c.optim.update(lr=3e-3, warmup_epochs=0.5, weight_decay=0.06, clip=1.0)
    c.train.update(batch=128, epochs=2.0, label_smoothing=0.1, save_epochs=1.0)
    if mode == "smoke":
        c.data.update(name="fake", size=32, channels=1)
        c.model.variant = "1-32"
        c.train.update(batch=32, epochs=2.0, log_steps=4)
    elif mode != "full":
        raise ValueError(f"configs/mnist.py: got :{mode}, expected :full or :smoke")
    return c
