"""NumPy archives of events, as SpikingJelly keeps them: the arrays t, x, y, p.

Arrays are of one length and of whole numbers, t in microseconds; what is above 0 in p
is brighter. Others beside them do not matter.

Source: SpikingJelly's spikingjelly/datasets, whose folders `events_np` hold them.
"""

import io
from pathlib import Path

import numpy as np

from a2os2a_jax.data import formats


def read(path: Path) -> formats.Events:
    """The events of a file, in its order."""
    data = Path(path).read_bytes()
    expected = f"expected an .npz of {', '.join(formats.FIELDS)}"
    try:
        archive = np.load(io.BytesIO(data), allow_pickle=False)
        arrays = {name: archive[name] for name in archive.files}
    except MemoryError:
        raise
    except Exception as error:  # numpy, zipfile and zlib each have their own
        text = " ".join(str(error).split())
        raise ValueError(
            f"{path}: got what numpy cannot read, {expected}: {text}"
        ) from (error)
    if not arrays.keys() >= set(formats.FIELDS):
        got = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path}: got the arrays {got}, {expected}")
    return formats.checked(path, {name: arrays[name] for name in formats.FIELDS})
