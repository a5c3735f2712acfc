"""Devices and shardings; nothing else in the package knows how many devices there are.

The batch is split over the mesh axis "data", parameters and resident data are whole on
every device. Under jit the batch statistics and the mean loss are those of the global
batch.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(data: int = -1) -> Mesh:
    """A ("data",) mesh of the first `data` devices, -1 for all.

    Raises:
      ValueError: more devices are asked for than there are.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if not 1 <= count <= len(devices):
        raise ValueError(
            f"mesh.data: got {data}, expected -1 or 1 to {len(devices)}, the number of "
            f"{devices[0].platform} devices"
        )
    return jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count]
    )


def whole(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Axis 0 is spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(key: str, batch: int, mesh: Mesh) -> None:
    """ValueError unless the devices of the mesh can share a batch evenly."""
    if batch % mesh.size:
        raise ValueError(
            f"{key}: got {batch}, expected a multiple of {mesh.size}, the devices used"
        )


_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def make_deterministic() -> None:
    """Sums on a GPU keep one order, if called before jax first looks for devices."""
    given = os.environ.get("XLA_FLAGS", "")
    if _DETERMINISTIC not in given:
        os.environ["XLA_FLAGS"] = f"{given} {_DETERMINISTIC}".strip()


def check_deterministic(mesh: Mesh) -> None:
    """ValueError where a GPU was started without the flag; CPU and TPU need none."""
    given = os.environ.get("XLA_FLAGS", "")
    if mesh.devices.flat[0].platform == "gpu" and _DETERMINISTIC not in given:
        raise ValueError(
            f"deterministic: got XLA_FLAGS={given!r}, expected {_DETERMINISTIC} in it "
            "before jax starts (the command line sets it)"
        )


def local_part(indices: np.ndarray) -> np.ndarray:
    """The part of a global batch that this process loads."""
    return np.split(indices, jax.process_count())[jax.process_index()]


def put_batch(local: Any, mesh: Mesh) -> Any:
    """This process's part of the batch -> global arrays, split over devices."""
    make = jax.make_array_from_process_local_data
    return jax.tree.map(lambda x: make(split(mesh), np.asarray(x)), local)


def put_batches(locals_: Sequence[Any], mesh: Mesh) -> Any:
    """As `put_batch`, of several batches: [steps, B, ...], B split over devices."""
    make = jax.make_array_from_process_local_data
    sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
    return jax.tree.map(lambda *x: make(sharding, np.stack(x)), *locals_)


def put_whole(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds -> global arrays, whole on every device."""
    make = jax.make_array_from_process_local_data
    return jax.tree.map(lambda x: make(whole(mesh), np.asarray(x)), tree)
