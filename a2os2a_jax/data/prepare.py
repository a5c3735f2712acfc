"""Prepares a data set, or says what is missing; and reads every record of one.

    python -m a2os2a_jax.data.prepare cifar10 --data_dir=DIR
    python -m a2os2a_jax.data.prepare nmnist --data_dir=DIR [--timesteps=10]
    python -m a2os2a_jax.data.prepare NAME --data_dir=DIR --check

Sets of tensorflow-datasets are written as array_record, which is read without
TensorFlow afterwards; writing the stock ones needs it (pip install
'a2os2a_jax[prepare]'). Recordings of event cameras have to be downloaded by hand, from
where their authors put them; they are made into frames here, once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from a2os2a_jax import data
from a2os2a_jax.data import catalogue, images

WHERE = {  # of recordings: where to get them, and how they have to lie in DIR
    "cifar10_dvs": (
        "figshare, 'CIFAR10-DVS' of Li et al. 2017 (article 4724671)",
        "DIR/cifar10_dvs/CLASS/*.aedat, unpacked",
    ),
    "dvs128_gesture": (
        "IBM Research, 'DVS128 Gesture Dataset' of Amir et al. 2017",
        "DIR/dvs128_gesture/: user*.aedat, user*_labels.csv, trials_to_*.txt",
    ),
    "nmnist": (
        "garrickorchard.com, 'N-MNIST' of Orchard et al. 2015",
        "DIR/nmnist/Train/0-9/*.bin and DIR/nmnist/Test/0-9/*.bin",
    ),
    "ncaltech101": (
        "garrickorchard.com, 'N-Caltech101' of Orchard et al. 2015",
        "DIR/ncaltech101/CLASS/*.bin",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 and one line if it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "name", help=f"{', '.join(catalogue.KNOWN)}, or another of TFDS"
    )
    parser.add_argument("--data_dir", required=True, help="where it lies, or goes")
    parser.add_argument("--timesteps", type=int, default=10, help="frames of events")
    parser.add_argument("--size", type=int, help="pixels, for pictures of many sizes")
    parser.add_argument("--check", action="store_true", help="only read all of it")
    args = parser.parse_args(argv)
    try:
        if args.name in WHERE:
            recordings(args.name, args.data_dir, args.timesteps)
        else:
            pictures(args.name, args.data_dir, args.size, args.check)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def recordings(name: str, data_dir: str, timesteps: int) -> None:
    """Frames of all recordings, into the cache that training reads.

    Raises:
      ValueError: nothing is there; says where it is got, and how it has to lie.
    """
    origin, layout = WHERE[name]
    if not (Path(data_dir).expanduser() / name).is_dir():
        where = layout.replace("DIR", data_dir.rstrip("/"))
        raise ValueError(
            f"{name}: nothing in {data_dir}/{name}. Download it from {origin}, unpack "
            f"it as {where}, and run this again. Terms: {catalogue.KNOWN[name].terms}"
        )
    found = data.load(name, data_dir=data_dir, timesteps=timesteps, corrupt="skip")
    print(
        f"{name}: {found.train.size:,} + {found.test.size:,} recordings as frames "
        f"{list(found.shape)}, {found.classes} classes"
    )
    print(f"next: --config.data.name={name} --config.data.data_dir={data_dir}")


def pictures(name: str, data_dir: str, size: int | None, check: bool) -> None:
    """Writes a set of tensorflow-datasets, then reads every record of it.

    Raises:
      ValueError: it is not there and may not be, or cannot be, written.
    """
    from a2os2a_jax.data.sources import tfds

    try:
        builder = tfds.open_builder(name, data_dir)
    except ValueError:
        if check:
            raise
        _write(name, data_dir)
        builder = tfds.open_builder(name, data_dir)
    shape, _, classes = tfds.features(name, builder.info.features)
    *exact, channels = shape
    exact = None if None in exact else tuple(exact)
    target = images.Target(size or 224, channels or 3, classes, exact)
    for split, info in builder.info.splits.items():
        records = tfds.Encoded(name, split, builder.as_data_source)
        broken = unreadable(records, target)
        print(
            f"{name} {split}: {info.num_examples:,} records, {len(broken):,} unreadable"
        )
        for message in broken[:20]:
            print(f"  {message}")
    print(f"{builder.data_dir} is ready")
    print(f"next: --config.data.name={_named(name)} --config.data.data_dir={data_dir}")


def unreadable(records: images.Records, target: images.Target) -> list[str]:
    """What is wrong with each record that cannot be read."""
    found = []
    for i in range(len(records)):
        try:
            images.example(records, i, target, None)
        except images.Corrupt as error:
            found.append(str(error))
    return found


def _named(name: str) -> str:
    return name if name in data.SOURCES else f"tfds:{name}"


def _write(name: str, data_dir: str) -> None:
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        raise ImportError(
            f"{name} is not in {data_dir}, and writing it needs TensorFlow, once: pip "
            "install 'a2os2a_jax[prepare]'"
        ) from None
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()


if __name__ == "__main__":
    sys.exit(main())
