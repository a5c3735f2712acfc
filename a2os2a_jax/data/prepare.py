"""Prepares a data set, or says what is missing; and reads every record of one.

    python -m a2os2a_jax.data.prepare cifar10 --data_dir=DIR
    python -m a2os2a_jax.data.prepare nmnist --data_dir=DIR [--timesteps=10]
    python -m a2os2a_jax.data.prepare NAME --data_dir=DIR --check

Sets of tensorflow-datasets are written as array_record, which is read without
TensorFlow afterwards; writing the stock ones needs it (pip install '.[prepare]' in a
checkout). Recordings of event cameras have to be downloaded by hand, from
where their authors put them; they are made into frames here, once. With --check nothing
is written. The exit code is 1 if a record cannot be read.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from a2os2a_jax import data, failures, streams
from a2os2a_jax.data import catalogue, images, recordings
from a2os2a_jax.data import frames as framing
from a2os2a_jax.data.sources import tfds
from a2os2a_jax.files import expanded

NAMED = 20  # unreadable records that are listed
STOCK = [name for name, module in data.SOURCES.items() if module == tfds.__name__]

# of recordings: where to get them, and how they have to lie in DIR; SpikingJelly's
# folder will do as well
WHERE = {
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
    """The command line; 1 and one line if it cannot be done, 130 if it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "name", help=f"{', '.join([*STOCK, *WHERE])}, or another of TFDS"
    )
    parser.add_argument("--data_dir", required=True, help="where it lies, or goes")
    parser.add_argument("--timesteps", type=int, default=10, help="frames of events")
    parser.add_argument("--size", type=int, help="pixels, for pictures of many sizes")
    parser.add_argument("--check", action="store_true", help="only read all of it")
    parser.add_argument("--traceback", action="store_true", help="of an error")
    args = parser.parse_args(argv)
    with streams.lasting():
        try:
            return _prepare(args, os.fspath(expanded(args.data_dir)))
        except KeyboardInterrupt:
            print("interrupted")
            return 130
        except Exception as error:  # the outermost place: whatever else it may be
            if args.traceback:
                raise
            print(f"error: {failures.line(error)}", file=sys.stderr)
            return 1


def _prepare(args: argparse.Namespace, data_dir: str) -> int:
    name = args.name
    if name in recordings.KINDS:
        whole = recorded(name, data_dir, args.timesteps, args.check)
    else:
        name = there(name, data_dir, args.check)
        whole = pictures(name, data_dir, args.size)
    if not whole:
        raise ValueError(
            f"{name}: not all of it can be read; data.corrupt=skip leaves out what "
            "cannot"
        )
    print(f"{name} in {data_dir} is ready")
    name = name if name in data.SOURCES else f"tfds:{name}"
    print(f"next: --config.data.name={name} --config.data.data_dir={data_dir}")
    return 0


def recorded(name: str, data_dir: str, timesteps: int, check: bool) -> bool:
    """Frames of all recordings, into the cache that training reads.

    Returns:
      whether all can be read; which cannot is printed. With `check`, and for a cut in
      tensorflow-datasets' layout, nothing is written.
    Raises:
      ValueError: nothing is there; says where it is got, and how it has to lie.
    """
    if name not in WHERE:
        _framed(name, data.load(name, data_dir=data_dir, timesteps=timesteps))
        return True
    kind, home = recordings.KINDS[name], _home(name, data_dir)
    if check:
        listing = recordings.listed(name, home)
        broken = _unframed(name, listing, kind.sensor, timesteps)
        return _told(name, len(listing.labels), "recordings", broken)
    count = len(kind.listing(home).labels)
    found = data.load(
        name, data_dir=data_dir, timesteps=timesteps, corrupt="skip", verify=True
    )
    return _framed(name, found) == count


def there(name: str, data_dir: str, check: bool) -> str:
    """Writes a set of tensorflow-datasets, unless it is there.

    Returns:
      its name, with the config that was written where it has some.
    Raises:
      ValueError: it is not there and may not be, or cannot be, written.
    """
    try:
        tfds.open_builder(name, data_dir)
    except tfds.Missing:
        if check or name in catalogue.CUTS:
            raise
        return _write(name, data_dir)
    return name


def pictures(name: str, data_dir: str, size: int | None) -> bool:
    """Reads every record that is used of a set of tensorflow-datasets.

    Returns:
      whether all can be read; which cannot is printed.
    Raises:
      ValueError: files are not whole, which are printed; no record of their split is
        read.
    """
    builder = tfds.open_builder(name, data_dir)
    (*exact, channels), _, classes = tfds.features(name, builder.info.features)
    exact = None if None in exact else tuple(exact)
    target = images.Target(size or 224, channels, classes, exact)
    splits = builder.info.splits
    used = ("train", tfds.judge_of(name, splits))
    whole, lost = True, 0
    for split, info in splits.items():
        if split not in used:  # it may have no labels
            print(f"{name} {split}: {info.num_examples:,} records, of no use here")
            continue
        if errors := tfds.file_errors(builder, split):
            files = len(info.filepaths)
            _told(f"{name} {split}", files, "files", list(map(str, errors)))
            lost += len(errors)
            continue
        records = tfds.Encoded(name, split, os.fspath(builder.data_dir))
        broken = unreadable(records, target)
        whole &= _told(f"{name} {split}", info.num_examples, "records", broken)
    if lost:
        raise ValueError(f"{name}: got {lost} files that are not whole; {tfds.AGAIN}")
    return whole


def _told(what: str, count: int, kind: str, broken: Sequence[str]) -> bool:
    """Prints what is wrong; whether nothing is."""
    print(f"{what}: {count:,} {kind}, {len(broken):,} unreadable")
    for message in broken[:NAMED]:
        print(f"  {message}")
    return not broken


def _framed(name: str, found: data.Dataset) -> int:
    """Prints how many recordings there are as frames, and returns it."""
    print(
        f"{name}: {found.train.size:,} + {found.test.size:,} recordings as frames "
        f"{list(found.shape)}, {found.classes} classes"
    )
    return found.train.size + found.test.size


def _home(name: str, data_dir: str) -> Path:
    """The folder of recordings, where training looks for it."""
    try:
        return recordings.home(name, data_dir)
    except ValueError:
        origin, layout = WHERE[name]
        where = layout.replace("DIR", data_dir.rstrip("/"))
        raise ValueError(
            f"{name}: nothing in {data_dir}/{name}. Download it from {origin}, unpack "
            f"it as {where} (or SpikingJelly's folder of it as {data_dir}/{name}), and "
            f"run this again. Terms: {catalogue.KNOWN[name].terms}"
        ) from None


def _unframed(
    name: str, listing: recordings.Listing, sensor: tuple[int, int], timesteps: int
) -> list[str]:
    """What is wrong with each recording that gives no frames.

    The number of events that are left out of the others is printed.
    """
    found, strays = [], 0
    for i, path in enumerate(listing.names):
        try:
            events, away = framing.inside(listing.read(i), sensor)
            framing.to_frames(events, timesteps=timesteps, sensor=sensor)
            strays += away
        except (ValueError, OSError) as error:
            text = " ".join(str(error).split())
            found.append(text if path in text else f"{path}: {text}")
    if strays:
        print(f"{name}: {strays:,} events outside the sensor, which are left out")
    return found


def unreadable(records: images.Records, target: images.Target) -> list[str]:
    """What is wrong with each record that cannot be read."""
    found = []
    for i in range(len(records)):
        try:
            images.example(records, i, target, None)
        except (images.Corrupt, OSError) as error:
            found.append(str(error))
    return found


def _write(name: str, data_dir: str) -> str:
    """Its name, with the config that it takes where none is given."""
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        raise ImportError(
            f"{name} is not in {data_dir}, and writing it needs TensorFlow, once: pip "
            "install '.[prepare]' in a checkout"
        ) from None
    import tensorflow_datasets

    builder = tensorflow_datasets.builder(
        name, data_dir=data_dir, file_format="array_record"
    )
    try:
        builder.download_and_prepare()
    except AssertionError as error:
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise
        raise ValueError(
            f"{name}: its files have to be downloaded by hand, into {data_dir}/"
            f"downloads/manual: {error}"
        ) from error
    config = builder.builder_config
    return f"{builder.name}/{config.name}" if config else builder.name


if __name__ == "__main__":
    sys.exit(main())
