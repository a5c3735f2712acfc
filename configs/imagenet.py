"""A2OS2A 8-512 on ImageNet-1k, 224x224, T = 4.

    python -m a2os2a_jax.main --config=configs/imagenet.py --workdir=runs/in1k
    python -m a2os2a_jax.main --config=configs/imagenet.py:smoke --workdir=runs/smoke
    ... --config.model.variant=10-512 --config.dtype=bfloat16

Published (Guo et al. 2025, arXiv:2503.00226): 76.28 % top-1 with 8-512, 78.66 % with
10-512; the paper prints no recipe, this one is a start. Ours: not run yet. The data
source, and the augmentations named, are not built yet: `full` says so and stops;
`smoke` runs.
"""

from a2os2a_jax import config


def get_config(mode: str = "full"):
    """`full` is the recipe; `smoke` is the same program on fake images, in seconds."""
    c = config.default()
    c.dtype = "bfloat16"
    c.data.update(name="imagenet2012", size=224, classes=1000)
    c.model.update(variant="8-512", timesteps=4, heads=8, pool="1111", remat=True)
    c.augment.update(flip=True, randaugment="rand-m9-n2-mstd0.5-inc1")
    c.augment.update(mixup=0.2, cutmix=1.0, erase=0.25)
    c.optim.update(lr=2e-3, min_lr=2e-5, warmup_lr=1e-5, warmup_epochs=20.0)
    c.optim.update(weight_decay=0.06, clip=5.0)
    c.train.update(batch=1024, epochs=300.0, label_smoothing=0.1, save_epochs=1.0)
    if mode == "smoke":
        c.data.update(name="fake", size=32, classes=16)
        c.model.update(variant="1-32", timesteps=2)
        c.augment.update(randaugment=None, mixup=0.0, cutmix=0.0, erase=0.0)
        c.optim.warmup_epochs = 0.5
        c.train.update(batch=32, epochs=1.0, log_steps=4)
    elif mode != "full":
        raise ValueError(f"configs/imagenet.py: got :{mode}, expected :full or :smoke")
    return c
