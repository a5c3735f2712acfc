"""Real data sets, where they are; pictures made here, for the rest."""

import io
import json
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
        name, splits, *, shape=(4, 4, 3), classes=4, dtype="uint8", version="1.0.0"
    ):
        folder = tmp_path / "tfds" / name / version
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
        }
        (folder / "features.json").write_text(json.dumps(features))
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return str(tmp_path / "tfds")

    return made
