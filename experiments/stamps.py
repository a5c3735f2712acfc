"""Commits as tables print them."""

from collections.abc import Iterable

SHORT, CHANGED = 7, "+changes"


def short(commit: str | None) -> str:
    """Seven digits, and "+changes" where files differed from the commit.

    Args:
      commit: as `train.workdir.commit` gives it; None is none known.
    """
    if commit is None:
        return "unknown"
    name = commit.removesuffix(CHANGED)
    return name[:SHORT] + (CHANGED if name != commit else "")


def several(commits: Iterable[str | None]) -> str:
    """Each once, in the order given."""
    return ", ".join(dict.fromkeys(map(short, commits)))
