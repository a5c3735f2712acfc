"""HDF5 files of events, read by h5py, which is imported here and nowhere else.

Looked for, in this order:

    CD/events             a table with the fields t, x, y, p (Prophesee)
    events/{t, x, y, p}   four arrays of one length
    {t, x, y, p}          the same, at the top

t: whole microseconds. p: what is above 0 is brighter, so that 0, 1 and -1, 1 both do.
Prophesee's own files are compressed with its codec ECF, whose HDF5 plugin h5py needs.

Source: docs.prophesee.ai, HDF5 Event File Format, for the first; the others are what
many tools write.
"""

from pathlib import Path

import numpy as np

from a2os2a_jax.data import formats

FIELDS = ("t", "x", "y", "p")


def read(path: Path, *, cut: str = "error") -> formats.Events:
    """The events of a file, in its order; `cut` is no question, HDF5 knows its sizes.

    Raises:
      ImportError: h5py is missing.
      ValueError: not an HDF5 file that h5py can read, none of the layouts, arrays of
        several lengths, or times that are not whole numbers.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path}: HDF5 needs h5py: pip install h5py") from error

    Path(path).stat()  # what is missing is an OSError, as with the other formats
    try:
        with h5py.File(path, "r") as file:
            t, x, y, p = _columns(path, file)
    except OSError as error:
        raise ValueError(
            f"{path}: got what h5py cannot read, expected HDF5 (of Prophesee: with the "
            f"plugin of its codec ECF): {error}"
        ) from error
    if len({np.shape(column) for column in (t, x, y, p)}) != 1 or t.ndim != 1:
        shapes = ", ".join(str(np.shape(column)) for column in (t, x, y, p))
        raise ValueError(f"{path}: got t, x, y, p of shapes {shapes}, expected one [E]")
    if t.dtype.kind not in "iu":
        raise ValueError(f"{path}: got times of type {t.dtype}, expected integers, us")
    return formats.make(t, x, y, p.astype(np.int64) > 0)


def _columns(path: Path, file) -> tuple[np.ndarray, ...]:
    if "CD" in file and "events" in file["CD"]:
        table = file["CD"]["events"][:]
        if set(FIELDS) <= set(table.dtype.names or ()):
            return tuple(table[name] for name in FIELDS)
    for group in (file["events"] if "events" in file else {}, file):
        if hasattr(group, "keys") and set(FIELDS) <= set(group.keys()):
            return tuple(group[name][:] for name in FIELDS)
    found = ", ".join(file.keys()) or "nothing"
    raise ValueError(
        f"{path}: got {found}, expected events/t, x, y, p, or t, x, y, p, or the table "
        "CD/events"
    )
