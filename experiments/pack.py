"""Packs a small set into .npz pieces, without loss, for a machine that lacks TFDS.

    python experiments/pack.py cifar10 [--out=packed/cifar10] [--mib=60]

The same pixels and labels in the same order; --config.data.name=npz:packed/cifar10
reads them. No piece is larger than --mib, so that pieces can be carried one at a time;
pieces.json has the SHA-256 of each, and reading compares them. The folder gets its name
when all is written: what a crash leaves is a hidden one beside it, which the next run
removes.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MIB = 60


def pieces(
    arrays: Mapping[str, tuple[np.ndarray, np.ndarray]], examples: int
) -> Iterator[dict[str, np.ndarray]]:
    """Parts of so many examples of one split each, in order."""
    for split, (images, labels) in arrays.items():
        for start in range(0, len(images), examples):
            part = slice(start, start + examples)
            yield {f"{split}_images": images[part], f"{split}_labels": labels[part]}


def write(
    arrays: Mapping[str, tuple[np.ndarray, np.ndarray]],
    about: Mapping[str, str],
    class_names: Sequence[str],
    out: Path,
    mib: float = MIB,
) -> list[Path]:
    """Writes {"train": (images, labels), "test": ...}; returns the pieces.

    Raises:
      ValueError: `out` holds something already, or one example alone is too large.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: got a folder with files, expected a new one")
    working = out.parent / f".{out.name}.unfinished"
    if working.exists():  # of a run that was killed
        shutil.rmtree(working)
    working.mkdir(parents=True)
    try:
        names = _write(arrays, about, class_names, working, mib)
        working.rename(out)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return [out / name for name in names]


def _write(
    arrays: Mapping[str, tuple[np.ndarray, np.ndarray]],
    about: Mapping[str, str],
    class_names: Sequence[str],
    out: Path,
    mib: float,
) -> list[str]:
    images = arrays["train"][0]
    # as if nothing were saved, and with room for the file's own words
    examples = max(1, int((0.98 * mib * 2**20 - 4096) / images[0].nbytes))
    digests: dict[str, str] = {}
    for number, part in enumerate(pieces(arrays, examples)):
        path = out / f"piece_{number:03}.npz"
        np.savez_compressed(path, **part, class_names=np.asarray(class_names))
        if path.stat().st_size > mib * 2**20:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, expected {mib} MiB")
        digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    text = json.dumps({**about, "sha256": digests}, indent=1)
    (out / "pieces.json").write_text(text + "\n")
    return list(digests)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of a set of pictures, as in data.name")
    parser.add_argument("--data_dir", help="where it lies")
    parser.add_argument("--out", type=Path, help="packed/NAME by default")
    parser.add_argument("--mib", type=float, default=MIB, help="of a piece, at most")
    args = parser.parse_args(argv)
    from a2os2a_jax import data

    try:
        found = data.load(args.name, data_dir=args.data_dir)
        arrays = {name: found.split(name).resident for name in ("train", "test")}
        if not all(arrays.values()):
            raise ValueError(
                f"{args.name}: got a set that is streamed, expected a small"
            )
        out = args.out or ROOT / "packed" / args.name
        about = {"name": args.name, "about": found.about, "note": found.note}
        paths = write(arrays, about, found.class_names, out, args.mib)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    size = sum(p.stat().st_size for p in paths) / 2**20
    print(f"wrote {out}: {len(paths)} pieces, {size:.0f} MiB, and pieces.json")
    print(f"next: --config.data.name=npz:{args.out or Path('packed') / args.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
