"""Real data sets, where they are; pictures made here, for the rest."""

import io
import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tfds_dir():
    """tfds_dir(name) -> the folder that has the set, else the test is skipped."""

    def find(name: str) -> str:
        root = os.environ.get("A2OS2A_DATA")
        if root is None:
            pytest.skip(f"no {name}: A2OS2A_DATA, the folder of data sets, is unset")
        if not (Path(root) / "tfds" / name).is_dir():
            pytest.skip(f"no {name} in {root}/tfds")
        return str(Path(root) / "tfds")

    return find


@pytest.fixture(scope="session")
def encode():
    """encode(pixels, "PNG" | "JPEG") -> bytes."""
    from PIL import Image

    def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
        pixels = pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **options)
        return file.getvalue()

    return encoded
