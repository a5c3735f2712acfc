"""What is known of named data sets: statistics, origin, terms. Numbers, no files.

Statistics are the mean and the standard deviation of pixel / 255 over all pixels of the
training split, a number for each channel.
"""

from typing import NamedTuple


class Known(NamedTuple):
    """A row of the table; `docs/data.md` prints it."""

    about: str  # one line: what, and whose
    terms: str  # the licence, or what its authors ask for
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    statistics: str = ""  # "computed" from the training split, or a source
    judge: str = ""  # the split that judges, where it is not the one called test
    note: str = ""  # what a result should say of the copy that it was made on
    classes: int = 0
    size: int = 0  # pixels of a side, where all are square and of one size
    channels: int = 3


_TINY = "no licence; its authors ask to cite Krizhevsky 2009"
_IMAGENET = Known(
    "ImageNet-1k of ILSVRC 2012, 1,281,167 + 50,000 photographs (Deng et al. 2009)",
    "non-commercial research and education only; ask at image-net.org",
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    "the usual ones, of torchvision's models",
    judge="validation",  # that called test has no labels
    classes=1000,
)

KNOWN = {
    "cifar10": Known(
        "CIFAR-10, 50,000 + 10,000 photographs of 32x32 (Krizhevsky 2009)",
        _TINY,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        "computed",
        note="copies made from public mirrors may hold some pictures as JPEG made anew",
        classes=10,
        size=32,
    ),
    "cifar100": Known(
        "CIFAR-100, 50,000 + 10,000 photographs of 32x32 (Krizhevsky 2009)",
        _TINY,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "the usual ones, published with many recipes",
        classes=100,
        size=32,
    ),
    "mnist": Known(
        "MNIST, 60,000 + 10,000 handwritten digits of 28x28 (LeCun et al. 1998)",
        "no licence; its authors ask to cite LeCun et al. 1998",
        (0.1307,),
        (0.3081,),
        "computed",
        classes=10,
        size=28,
        channels=1,
    ),
    "fashion_mnist": Known(
        "Fashion-MNIST, 60,000 + 10,000 clothes of 28x28 (Xiao et al. 2017)",
        "MIT, Zalando SE",
        (0.2860,),
        (0.3530,),
        "computed",
        classes=10,
        size=28,
        channels=1,
    ),
    "imagenet2012": _IMAGENET,
    "cifar10_dvs": Known(
        "CIFAR10-DVS, 10,000 recordings, 128x128 events (Li et al. 2017)",
        "CC BY 4.0 (figshare)",
        classes=10,
        size=128,
        channels=2,
    ),
    "dvs128_gesture": Known(
        "DVS128 Gesture, 11 gestures of 29 people, 128x128 events (Amir et al. 2017)",
        "CC BY 4.0 (IBM research)",
        classes=11,
        size=128,
        channels=2,
    ),
    "nmnist": Known(
        "N-MNIST, 60,000 + 10,000 recordings, 34x34 events (Orchard et al. 2015)",
        "CC BY-SA 4.0, by its authors' page",
        classes=10,
        size=34,
        channels=2,
    ),
    "ncaltech101": Known(
        "N-Caltech101, 8,709 recordings, 240x180 events (Orchard et al. 2015)",
        "CC BY 4.0, by its authors' page",
        classes=101,
        channels=2,
    ),
}
# Cuts of a set, in its layout, that nothing here makes. The statistics are those of the
# whole.
CUTS = ("cifar100_small", "imagenet_sample", "nmnist_sample")
KNOWN["cifar100_small"] = KNOWN["cifar100"]._replace(
    about="a cut of CIFAR-100, 3,000 + 600 photographs: no result compares"
)
KNOWN["imagenet_sample"] = _IMAGENET._replace(
    about="one photograph of each ImageNet class: to test readers, not models",
    judge="",  # it has one split
)
KNOWN["nmnist_sample"] = KNOWN["nmnist"]._replace(
    about="the first 600 + 100 recordings of N-MNIST: no result compares"
)


def statistics(name: str, channels: int) -> tuple[tuple[float, ...], ...] | None:
    """(mean, std) of a named set, for each channel; None for one without any."""
    row = KNOWN.get(name)
    if row is None or not row.mean:
        return None
    return fill(row.mean, channels), fill(row.std, channels)


def usual_statistics(channels: int) -> tuple[tuple[float, ...], ...]:
    """(mean, std) for pictures of which none are known: ImageNet's.

    For grey ones the mean over its channels.
    """
    found = (_IMAGENET.mean, _IMAGENET.std)
    if channels == 1:
        return tuple((sum(values) / len(values),) for values in found)
    return found


def fill(pixels: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A number for each channel, of one number or of as many as there are."""
    values = pixels if isinstance(pixels, tuple) else (pixels,)
    if len(values) not in (1, channels):
        raise ValueError(f"got {len(values)} numbers, expected 1 or {channels}")
    return values * channels if len(values) == 1 else values
