"""Trained weights that come with the package: `--config.init_from=zoo:digits`.

    zoo/NAME/weights.safetensors   params and batch_stats, with config and data set
    zoo/NAME/card.json             what they are of, what they score, terms, SHA-256
    zoo/NAME/log.jsonl             the records of the training
    zoo/NAME/README.md             the card for people

`experiments/zoo.py` writes these folders from finished runs. Nothing is imported here
but the standard library.
"""

import json
from pathlib import Path
from typing import Any

PREFIX = "zoo:"
HOME = Path(__file__).resolve().parent
WEIGHTS, CARD, LOG = "weights.safetensors", "card.json", "log.jsonl"


def names() -> tuple[str, ...]:
    """What there is, in alphabetical order."""
    return tuple(sorted(path.parent.name for path in HOME.glob(f"*/{CARD}")))


def path(name: str) -> Path:
    """The weights of this name, with or without "zoo:" in front.

    Raises:
      ValueError: there are none; names those that there are.
    """
    return _folder(name) / WEIGHTS


def card(name: str) -> dict[str, Any]:
    """What card.json says of them; raises as `path`."""
    return json.loads((_folder(name) / CARD).read_text(encoding="utf-8"))


def _folder(name: str) -> Path:
    known = names()
    short = name.removeprefix(PREFIX)
    if short not in known:
        expected = " or ".join(f"{PREFIX}{other}" for other in known)
        raise ValueError(f"{PREFIX}{short} is not there, expected {expected}")
    return HOME / short
