"""A2OS2A on Fashion-MNIST: 28x28, T = 2, for two CPU cores.

    python -m a2os2a_jax.main --config=configs/fashion_mnist.py --workdir=runs/fashion
    python -m a2os2a_jax.main --config=configs/fashion_mnist.py:short --workdir=runs/fs
    python -m a2os2a_jax.main --config=configs/fashion_mnist.py:subset --workdir=runs/fu
    python -m a2os2a_jax.main --config=configs/fashion_mnist.py:smoke --workdir=runs/s
    ... --config.data.data_dir=DIR --config.model.attention.kind=vssa

60,000 + 10,000 clothes (Xiao et al. 2017), enlarged to 32x32. Expected time: 12 epochs,
51 minutes on one of two CPU cores; `short`, 2 epochs, some nine minutes, to compare
attentions; `subset`, a small model on 10,000 of the training images, scored on 10,000
others of them, about a minute, to compare many (experiments/compare.py). Published:
nothing of A2OS2A. Ours: 90.68 % of the test images after the last epoch, one seed,
446,074 parameters (experiments/results/fashion_mnist.json; weights and log beside it).
The model was chosen on 5,000 images of training, held out
(experiments/results/fashion_mnist-pilots.json).
"""

from a2os2a_jax import config


def get_config(mode: str = "full"):
    """`full`; `short` and `subset` compare attentions; `smoke` has fake images."""
    c = config.default()
    c.data.update(name="fashion_mnist", size=32)  # enlarged, to be halved three times
    # A wide stem with one block learns more in a given time than a narrow one with two,
    # and more with the third pooling after the last convolution than in front of it.
    c.model.update(variant="1-128", timesteps=2, heads=4, pool="1101")
    c.augment.update(flip=True)  # shifts only blur what 16 tokens can tell apart
    c.optim.update(lr=3e-3, warmup_epochs=0.5, weight_decay=0.06, clip=1.0)
    c.train.update(batch=128, epochs=12.0, label_smoothing=0.1, log_steps=100)
    c.train.save_epochs = 1.0
    if mode == "short":
        c.train.epochs = 2.0
    elif mode == "subset":
        c.data.validation = 50_000  # of 60,000: the test images are not looked at
        c.model.update(variant="1-64", heads=2, pool="1110")
        c.train.update(epochs=3.0, save_epochs=3.0, log_steps=39)
        c.eval.update(split="validation", examples=10_000, epochs=3.0)
    elif mode == "smoke":
        c.data.update(name="fake", size=32, channels=1)
        c.model.update(variant="1-32", timesteps=2)
        c.train.update(batch=32, epochs=2.0, log_steps=4)
        c.optim.warmup_epochs = 0.5
    elif mode != "full":
        raise ValueError(
            f"configs/fashion_mnist.py: got :{mode}, expected :full, :short, :subset "
            "or :smoke"
        )
    return c
