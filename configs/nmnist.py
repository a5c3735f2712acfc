"""A2OS2A on N-MNIST: 34x34 events in T = 10 frames, padded to 36x36.

    python -m a2os2a_jax.main --config=configs/nmnist.py --workdir=runs/nmnist
    python -m a2os2a_jax.main --config=configs/nmnist.py:sample --workdir=runs/sample
    python -m a2os2a_jax.main --config=configs/nmnist.py:smoke --workdir=runs/smoke
    ... --config.data.data_dir=DIR --config.model.attention.kind=vssa

`full`: 60,000 + 10,000 recordings of DIR/nmnist/{Train,Test}, for one GPU. Expected
time, an estimate from counted operations (experiments/results/recipe_cost.json): 0.053
h and what reading costs. Published: nothing, the paper does not use it. Ours: not run
yet.
`sample`: the first 600 + 100 recordings, about four minutes on two CPU cores. It shows
that a network learns; its accuracy compares with nothing: 84.00 % of the 100, median of
3 seeds (experiments/results/nmnist-sample.json).
"""

from a2os2a_jax import config


def get_config(mode: str = "full"):
    """`full` and `sample` train on events; `smoke` on fake frames, in seconds."""
    c = config.default()
    c.data.update(name="nmnist", size=36, timesteps=10)  # 36: halved twice
    c.model.update(variant="2-128", timesteps=10, heads=4, pool="1100")
    c.augment.shift = 1.0
    c.optim.update(lr=1e-3, warmup_epochs=2.0, weight_decay=0.06, clip=1.0)
    c.train.update(batch=64, epochs=20.0, label_smoothing=0.1, save_epochs=2.0)
    if mode == "sample":
        c.data.update(name="nmnist_sample", timesteps=4)
        c.model.update(variant="2-64", timesteps=4)
        c.optim.lr = 2e-3
        c.train.update(batch=32, epochs=20.0, log_steps=18)
    elif mode == "smoke":
        c.data.update(name="fake", size=16, channels=2, timesteps=2)
        c.model.update(variant="1-32", timesteps=2)
        c.optim.warmup_epochs = 0.5
        c.train.update(batch=32, epochs=2.0, log_steps=4)
    elif mode != "full":
        raise ValueError(
            f"configs/nmnist.py: got :{mode}, expected :full, :sample or :smoke"
        )
    return c
