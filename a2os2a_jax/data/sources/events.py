"""Recordings of event cameras, as frames that count events.

Which there are, and how they have to lie, is in `recordings`. Of DVS128 Gesture, whose
test is on people not seen before, validation holds out whole people, too.

Frames are made once and kept on disk; values are counts, as float32, with no
normalisation.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax.data import cache, catalogue, formats, images, pipeline, recordings
from a2os2a_jax.data import frames as framing
from a2os2a_jax.data.sources import tfds

FORMAT = 3  # of the frames that are kept; higher when the same files give others
NAMED = 5  # unreadable recordings that a message names


class Made(NamedTuple):
    """What became of a listing.

    frames: [N, T, H, W, 2], zeros where there is a reason.
    reasons: why examples cannot be read, by index.
    strays: events outside the sensor that were left out, by index.
    folder: where the frames are kept; None for in memory.
    """

    frames: np.ndarray
    reasons: dict[int, str]
    strays: dict[int, int]
    folder: Path | None = None


def load(
    name: str,
    *,
    size: int | None = None,
    classes: int | None = None,
    data_dir: str | None = None,
    validation: int = 0,
    timesteps: int = 10,
    slice_by: str = "count",
    fit: str = "pad",
    corrupt: str = "error",
    resident_gib: float | None = None,
    verify: bool = False,
) -> pipeline.Dataset:
    """Frames [timesteps, size, size, 2], channel 0 darker, 1 brighter.

    A set whose frames take `resident_gib` at most, as they are kept, lives on the
    devices; of others the examples of a batch are sent.

    Args:
      name: of the table in `recordings`.
      size: pixels; None takes the longer side of the sensor. The stem needs a multiple
        of its stride, so 36 or 48 for N-MNIST.
      classes: those of the set, nothing else.
      data_dir: the folder DIR; None is $A2OS2A_DATA/events, and for nmnist_sample as in
        `tfds.load`. Frames are kept in DIR/NAME/.frames-*, or where that cannot be
        written in $XDG_CACHE_HOME/a2os2a_jax (~/.cache).
      validation: training examples held out, stratified, always the same ones. Of
        DVS128 Gesture as many people as it takes to have so many examples or a few
        more, since the test is on people not seen before.
      timesteps: slices of a recording.
      slice_by: "count" for slices of as many events, "time" for slices as long; see
        `frames.to_frames`.
      fit: how frames get to `size`: "pad", "resize", "crop"; see `frames.fit`.
      corrupt: what a recording does that is cut, empty, or has more than a few events
        outside the sensor (`frames.inside`; fewer are left out and counted): "error",
        or "skip" it, the whole of it; how many, and what is wrong with the first five,
        is printed.
      resident_gib: GiB; None for 1.
      verify: compare the checksums of frames that are kept, not only their sizes; those
        that changed are made again.
    Raises:
      ValueError: nothing is there (says where it looked and how it is made), files are
        not those of the set, or arguments do not fit.
      images.Corrupt: what is in a recording cannot be read, and corrupt is "error".
      OSError: a file cannot be reached. Nothing is kept then: it may be there later.
    """
    if name not in recordings.KINDS:
        raise ValueError(
            f"data.name: got {name!r}, expected {', '.join(recordings.KINDS)}"
        )
    kind = recordings.KINDS[name]
    images.check_corrupt(corrupt)
    pipeline.check_at_least(1, name, timesteps=timesteps)
    if classes not in (None, kind.classes):
        raise ValueError(f"data.classes: got {classes}, {name} has {kind.classes}")
    if slice_by not in framing.SLICES:
        raise ValueError(f"data.slice_by: got {slice_by!r}, expected count or time")
    size = max(kind.sensor) if size is None else size
    framing.check_fit(kind.sensor, size, fit)
    resident_bytes = images.resident_bytes(resident_gib)
    if name == "nmnist_sample":
        builder = tfds.open_builder(name, data_dir)
        path = os.fspath(builder.data_dir)
        files = tfds.whole_files(builder, ("train", "test"))
        state, stamp = cache.stamp(path, files), tfds.stamp(path, files)
        listing, made = _sample(path, state, timesteps, slice_by, corrupt)
    else:
        home = recordings.home(name, data_dir)
        listing = recordings.listed(name, home)
        stamp = cache.stamp(listing.root, listing.files, times=False)
        fill = functools.partial(
            _fill, listing, kind.sensor, timesteps, slice_by, corrupt
        )
        key = _key(name, home, listing, kind.sensor, timesteps, slice_by)
        made = _kept(home, key, len(listing.labels), fill, resident_bytes, verify)
    _report(name, listing, made, corrupt)
    frames, labels = made.frames, listing.labels
    train = np.setdiff1d(np.arange(len(labels)), listing.test)
    if listing.people is None:
        kept, held = pipeline.stratified(labels[train], validation)
    else:
        kept, held = _whole_people(listing.people[train], validation)
    parts = {"train": train[kept], "test": listing.test, "validation": train[held]}
    # Whoever is skipped leaves after the split is made: it moves no other example.
    bad = np.array(sorted(made.reasons), np.int64)
    parts = {key: np.setdiff1d(index, bad) for key, index in parts.items()}
    for part in ("train", "test", *(["validation"] if validation else [])):
        if not len(parts[part]):
            raise ValueError(f"{name}: got no readable {part} recording")

    def decode(x: jax.Array) -> jax.Array:
        return framing.fit(x.astype(jnp.float32), size, fit)

    def split(index: np.ndarray) -> pipeline.Split:
        if frames.nbytes > resident_bytes:
            return pipeline.host_split(frames, labels, index, decode=decode)
        x = np.asarray(frames[index])
        return pipeline.resident_split(x, labels[index], decode=decode)

    return pipeline.Dataset(
        name=name,
        shape=(timesteps, size, size, 2),
        classes=kind.classes,
        train=split(parts["train"]),
        test=split(parts["test"]),
        validation=split(parts["validation"]) if validation else None,
        class_names=listing.class_names,
        about=catalogue.KNOWN[name].about,
        stamp=stamp,
    )


def _whole_people(people: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds out people, in an order that never changes, until `count` examples are.

    Returns (kept, held out): sorted indices into `people`, the person of each example.
    ValueError where that leaves nobody to learn from.
    """
    names, who = np.unique(people, return_inverse=True)
    order = np.random.RandomState(pipeline.SPLIT_SEED).permutation(len(names))
    total = np.concatenate([[0], np.cumsum(np.bincount(who)[order])])
    if not 0 <= count <= (most := total[-2]):
        raise ValueError(
            f"data.validation: got {count} examples, expected 0 to {most}, those of "
            "all people but one"
        )
    held = np.isin(who, order[: np.searchsorted(total, count)])
    return np.flatnonzero(~held), np.flatnonzero(held)


# Frames: made, kept, reported.


def _fill(
    listing: recordings.Listing,
    sensor: tuple[int, int],
    timesteps: int,
    by: str,
    corrupt: str,
    new: cache.New,
) -> None:
    """Makes "frames" [N, T, H, W, 2], uint8 where that is enough; "reasons", "strays".

    Raises:
      images.Corrupt: as of `load`.
      OSError: names the example. Whatever is kept as unreadable is so for good, and
        this may be over in a moment.
    """
    reasons: dict[int, str] = {}
    strays: dict[int, int] = {}
    shape = (len(listing.labels), timesteps, *sensor, 2)
    frames = new("frames", shape, np.uint8)
    for i, name in enumerate(listing.names):
        try:
            events, away = framing.inside(listing.read(i), sensor)
            made = framing.to_frames(events, timesteps=timesteps, sensor=sensor, by=by)
        except OSError as error:
            raise OSError(f"{name}: {error}; no frames are kept, try again") from error
        except ValueError as error:
            if corrupt == "error":
                raise images.Corrupt(
                    f"{name}: {error}; data.corrupt=skip leaves it out"
                ) from None
            reasons[i] = str(error)
            continue
        if away:
            strays[i] = away
        if frames.dtype == np.uint8 and made.max() > 255:
            narrow, frames = frames, new("frames", shape, np.uint16)
            for row in range(i):
                frames[row] = narrow[row]
        frames[i] = made
    cache.keep_json(new, "reasons", reasons)
    cache.keep_json(new, "strays", strays)


def _made(arrays: cache.Arrays, folder: Path | None = None) -> Made:
    """What `_fill` has filled."""
    reasons, strays = (
        {int(i): value for i, value in cache.kept_json(arrays, name).items()}
        for name in ("reasons", "strays")
    )
    return Made(arrays["frames"], reasons, strays, folder)


def _key(
    name: str,
    home: Path,
    listing: recordings.Listing,
    sensor: tuple[int, int],
    timesteps: int,
    by: str,
) -> dict:
    """All that frames depend on."""
    return {
        "format": FORMAT,
        "set": name,
        "timesteps": timesteps,
        "slice_by": by,
        "sensor": list(sensor),
        "files": cache.stamp(home, listing.files),
    }


def _kept(
    home: Path,
    key: dict,
    count: int,
    fill: Callable[[cache.New], None],
    memory_bytes: float,
    verify: bool,
) -> Made:
    """Frames from the cache, `count` of them; made where they are not there."""
    name, sensor, timesteps = key["set"], key["sensor"], key["timesteps"]
    what = f"frames-{timesteps}-{key['slice_by']}"
    folders = home / f".{what}", cache.user_folder(name, home, what)
    say = f"{name}: making frames of {count} examples"
    found = cache.cached(folders, key, fill, say=say, verify=verify)
    if found is not None:
        return _made(*found)
    if count * timesteps * sensor[0] * sensor[1] * 2 <= memory_bytes:
        return _made(cache.in_memory(fill))
    raise ValueError(
        f"{name}: can write its frames to neither {folders[0]} nor {folders[1]}, "
        "expected one of them; set XDG_CACHE_HOME"
    )


def _report(name: str, listing: recordings.Listing, made: Made, corrupt: str) -> None:
    """Says what was left out, also if that was when the frames were made, long ago."""
    if made.strays:
        print(
            f"{name}: left out {sum(made.strays.values()):,} events outside the "
            f"sensor, in {len(made.strays):,} of {len(listing.names):,} recordings, "
            f"the first: {listing.names[min(made.strays)]}",
            file=sys.stderr,
        )
    if not made.reasons:
        return
    bad = sorted(made.reasons)
    first = [f"{listing.names[i]}: {made.reasons[i]}" for i in bad[:NAMED]]
    count = f"{len(bad):,} of {len(listing.names):,} recordings cannot be read"
    if corrupt == "error":
        again = f"; to read them again delete {made.folder}" if made.folder else ""
        raise images.Corrupt(
            f"{name}: {count}, the first: {first[0]}; data.corrupt=skip leaves them "
            f"out{again}"
        )
    for line in first:
        print(f"{name}: left out {line}", file=sys.stderr)
    print(f"{name}: {count}; skipped", file=sys.stderr)


@functools.lru_cache(maxsize=4)
def _sample(
    path: str, state: str, timesteps: int, by: str, corrupt: str
) -> tuple[recordings.Listing, Made]:
    """Frames of all examples, decoded once in a process for a state of the files.

    They are few and small.
    """
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(path)
    rows = []
    for part in ("train", "test"):
        try:
            rows += list(builder.as_data_source(split=part))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever the reader raises for a broken record
            text = " ".join(str(error).split())
            raise images.Corrupt(f"{path} {part}: cannot be read: {text}") from error
    trained = builder.info.splits["train"].num_examples
    listing = recordings.Listing(
        read=lambda i: formats.make(*(rows[i][name] for name in "txyp")),
        names=[f"{path} recording {row['id']}" for row in rows],
        labels=np.array([row["label"] for row in rows], np.int32),
        test=np.arange(trained, len(rows)),
        class_names=tuple("0123456789"),
    )
    sensor = recordings.KINDS["nmnist_sample"].sensor
    fill = functools.partial(_fill, listing, sensor, timesteps, by, corrupt)
    made = _made(cache.in_memory(fill))
    return listing._replace(read=None), made  # which lets go of the events
