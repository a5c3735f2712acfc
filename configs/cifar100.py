"""A2OS2A 2-512 on CIFAR-100, T = 4: the recipe of configs/cifar10.py, 100 classes.

    python -m a2os2a_jax.main --config=configs/cifar100.py --workdir=runs/cifar100
    python -m a2os2a_jax.main --config=configs/cifar100.py:smoke --workdir=runs/smoke

Published (Guo et al. 2025, arXiv:2503.00226): 79.9 % with 2-512, 76.96 % with 2-256.
Ours: not run yet. The data source, and the augmentations that the recipe names, are not
built yet: `full` says so and stops; `smoke` runs.
"""

from a2os2a_jax import config


def get_config(mode: str = "full"):
    """`full` is the recipe; `smoke` is the same program on fake images, in seconds."""
    c = config.default()
    c.data.update(name="cifar100", size=32, classes=100)
    c.model.update(variant="2-512", timesteps=4, heads=8, pool="0011")
    c.augment.update(flip=True, randaugment="rand-m9-n1-mstd0.4-inc1")
    c.augment.update(mixup=0.5, off_epoch=200)
    c.optim.update(lr=3e-4, min_lr=1e-5, warmup_lr=1e-6, warmup_epochs=20.0)
    c.optim.weight_decay = 0.06
    c.train.update(batch=64, epochs=300.0, label_smoothing=0.1)
    if mode == "smoke":
        c.data.name = "fake"
        c.model.update(variant="1-32", timesteps=2)
        c.augment.update(randaugment=None, mixup=0.0, off_epoch=None)
        c.optim.warmup_epochs = 0.5
        c.train.update(batch=32, epochs=1.0, log_steps=4)
    elif mode != "full":
        raise ValueError(f"configs/cifar100.py: got :{mode}, expected :full or :smoke")
    return c
