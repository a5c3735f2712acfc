"""Real data sets, where they are; for the rest pictures and recordings made here."""

import io
import json
import os
import struct
import types
import zlib
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


@pytest.fixture
def tiny_tfds(tmp_path):
    """tiny_tfds(name, {split: [(bytes, label)]}, ...) -> data_dir with such a set.

    In the layout and the file format of tensorflow-datasets, which are written by hand:
    its own writer needs TensorFlow.
    """
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    def example(image: bytes, label: int) -> bytes:
        values = {
            "image": tf_feature_pb2.Feature(
                bytes_list=tf_feature_pb2.BytesList(value=[image])
            ),
            "label": tf_feature_pb2.Feature(
                int64_list=tf_feature_pb2.Int64List(value=[label])
            ),
        }
        features = tf_feature_pb2.Features(feature=values)
        return tf_example_pb2.Example(features=features).SerializeToString()

    def made(
        name,
        splits,
        *,
        shape=(4, 4, 3),
        classes=4,
        dtype="uint8",
        version="1.0.0",
        config="",
    ):
        folder = tmp_path / "tfds" / name / config / version
        folder.mkdir(parents=True)
        for split, rows in splits.items():
            path = folder / f"{name}-{split}.array_record-00000-of-00001"
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            for row in rows:
                writer.write(row if isinstance(row, bytes) else example(*row))
            writer.close()
        of = "tensorflow_datasets.core.features."
        dimensions = [str(-1 if side is None else side) for side in shape]
        image = {
            "image": {
                "dtype": dtype,
                "encodingFormat": "png",
                "shape": {"dimensions": dimensions},
            },
            "pythonClassName": f"{of}image_feature.Image",
        }
        label = {
            "classLabel": {"numClasses": str(classes)},
            "pythonClassName": f"{of}class_label_feature.ClassLabel",
        }
        features = {
            "featuresDict": {"features": {"image": image, "label": label}},
            "pythonClassName": f"{of}features_dict.FeaturesDict",
        }
        info = {
            "description": "Made by a test.",
            "fileFormat": "array_record",
            "moduleName": "__main__",
            "name": name,
            "splits": [
                {
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    "name": split,
                    "numBytes": "1",
                    "shardLengths": [str(len(rows))],
                }
                for split, rows in splits.items()
            ],
            "version": version,
        } | ({"configName": config} if config else {})
        (folder / "features.json").write_text(json.dumps(features))
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return str(tmp_path / "tfds")

    made.folder = str(tmp_path / "tfds")
    return made


# Recordings, in the formats of their authors.


def write_bin(path, rows):
    """rows [E, 4]: t, x, y, p, as the page of N-MNIST describes them."""
    parts = [bytes([x, y]) + (p << 23 | t).to_bytes(3, "big") for t, x, y, p in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts))


def write_aedat2(path, rows):
    """rows [E, 4]: t, raw x, raw y, polarity bit."""
    parts = [struct.pack(">II", y << 8 | x << 1 | p, t) for t, x, y, p in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"#!AER-DAT2.0\r\n# jAER\r\n" + b"".join(parts))


def write_aedat3(path, rows):
    """rows [E, 4]: t, x, y, p, in one packet."""
    head = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(rows), len(rows), len(rows))
    parts = [
        struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t) for t, x, y, p in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    start = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"
    path.write_bytes(start + head + b"".join(parts))


def some(seed, sensor, count=40, start=0):
    """Rows of a recording whose every event differs from other seeds'."""
    rng = np.random.RandomState(seed)
    t = np.sort(rng.randint(start, start + 90_000, count))
    x, y = rng.randint(0, sensor[1], count), rng.randint(0, sensor[0], count)
    return np.stack([t, x, y, rng.randint(0, 2, count)], 1).tolist()


def counted(rows, timesteps, sensor):
    """Frames of rows by count, one event after the other."""
    out = np.zeros((timesteps, *sensor, 2), np.float32)
    for i, (_, x, y, p) in enumerate(rows):
        k = min(i // (len(rows) // timesteps), timesteps - 1)
        out[k, y, x, p] += 1
    return out


def gestures(root, **change):
    """Two people, three gestures each, one after the other; 50 ms between them."""
    root.mkdir(parents=True)
    recordings = {}
    for user in ("user01_led", "user24_lab"):
        rows, lines = [], ["class,startTime_usec,endTime_usec"]
        for k, gesture in enumerate((2, 11, 1)):
            start = 1_000_000 * (k + 1)
            piece = some(zlib.crc32(user.encode()), (128, 128), 60, start)
            recordings[user, gesture] = piece
            # events at the start belong to it, at the end no more
            rows += [[start - 10, 0, 0, 1], *piece, [start + 90_000, 0, 0, 1]]
            lines.append(f"{gesture},{start},{start + 90_000}")
        write_aedat3(root / f"{user}.aedat", rows)
        table = "\n".join(lines) + "\n"
        (root / f"{user}_labels.csv").write_text(change.get("table", table))
    train = change.get("train", "user01_led.aedat\n\n")
    (root / "trials_to_train.txt").write_text(train)
    (root / "trials_to_test.txt").write_text("user24_lab.aedat\n")
    return recordings


@pytest.fixture(scope="session")
def recorded():
    """The functions above, by name."""
    functions = (write_bin, write_aedat2, write_aedat3, some, counted, gestures)
    return types.SimpleNamespace(**{f.__name__: f for f in functions})


@pytest.fixture
def nmnist(tmp_path):
    """3 + 1 recordings of each digit; seeds tell them apart."""
    for digit in range(10):
        for i in range(4):
            part = "Test" if i == 3 else "Train"
            path = tmp_path / "nmnist" / part / str(digit) / f"{i:05}.bin"
            write_bin(path, some(10 * digit + i, (34, 34)))
    return tmp_path
