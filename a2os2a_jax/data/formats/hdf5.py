"""HDF5 files of events, read by h5py, which is imported here and nowhere else.

Looked for, in this order:

    CD/events             a table with the fields t, x, y, p (Prophesee)
    events/{t, x, y, p}   four arrays of one length
    {t, x, y, p}          the same, at the top

All are whole numbers; t: microseconds, and a clock of 32 bits may start again. p: what
is above 0 is brighter, so that 0, 1 and -1, 1 both do. Prophesee's own files are
compressed with its codec ECF, whose HDF5 plugin h5py needs.

Source: docs.prophesee.ai, HDF5 Event File Format, for the first; the others are what
many tools write.
"""

from pathlib import Path

import numpy as np

from a2os2a_jax.data import formats


def read(path: Path) -> formats.Events:
    """The events of a file, in its order.

    Raises:
      ImportError: h5py is missing.
      OSError: the file cannot be reached.
      ValueError: not an HDF5 file that h5py can read, none of the layouts, arrays of
        several lengths or none, or what are not whole numbers.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path}: HDF5 needs h5py: pip install h5py") from error

    try:
        with h5py.File(path, "r") as file:
            columns = _columns(path, file)
    except OSError as error:
        if error.errno is not None:
            raise  # of the system; those of HDF5 itself have no number
        raise ValueError(
            f"{path}: got what h5py cannot read, expected HDF5 (of Prophesee: with the "
            f"plugin of its codec ECF): {error}"
        ) from error
    return formats.checked(path, columns)


def _columns(path: Path, file) -> dict[str, np.ndarray]:
    """t, x, y, p, by their names in the file."""
    table = _within(_within(file, "CD"), "events")
    if set(formats.FIELDS) <= set(
        getattr(getattr(table, "dtype", None), "names", None) or ()
    ):
        rows = table[()]
        return {f"CD/events {name}": rows[name] for name in formats.FIELDS}
    for prefix, group in (("events/", _within(file, "events")), ("", file)):
        found = {f"{prefix}{name}": _within(group, name) for name in formats.FIELDS}
        if all(hasattr(column, "dtype") for column in found.values()):
            return {name: np.asarray(column[()]) for name, column in found.items()}
    found = ", ".join(file.keys()) or "nothing"
    raise ValueError(
        f"{path}: got {found}, expected events/t, x, y, p, or t, x, y, p, or the table "
        "CD/events"
    )


def _within(group, name: str):
    """What a group has of this name; None where it, or the group, is not there."""
    return group.get(name) if hasattr(group, "keys") else None
