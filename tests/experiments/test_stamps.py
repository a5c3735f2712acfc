"""A commit with changes is never printed as one without."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stamps(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.delitem(sys.modules, "stamps", raising=False)
    import stamps

    return stamps


def test_changes_stay(stamps):
    commit = "91aa8b6d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f7"
    assert stamps.short(commit) == "91aa8b6"
    assert stamps.short(f"{commit}+changes") == "91aa8b6+changes"
    assert stamps.short(None) == "unknown"
    commits = [commit, f"{commit}+changes", f"{commit[:9]}{'0' * 31}"]
    assert stamps.several(commits) == "91aa8b6, 91aa8b6+changes"


def test_no_table_cuts_a_commit_by_itself():
    for path in (ROOT / "experiments").glob("*.py"):
        assert not re.search(r"commit\b.*\[:\d+\]", path.read_text()), path.name
