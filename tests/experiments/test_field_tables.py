"""The tables of docs/field.md and docs/torch.md say what the package says."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from a2os2a_jax.interop import torch_families
from a2os2a_jax.models.families import FAMILIES
from a2os2a_jax.modules.attention import KINDS

ROOT = Path(__file__).resolve().parents[2]


def script(name):
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "experiments"))


@pytest.fixture(scope="module")
def tables():
    return script("field_tables")


@pytest.fixture(scope="module")
def certificates():
    path = ROOT / "experiments" / "results" / "certificates.json"
    return json.loads(path.read_text())


def test_everything_that_has_a_name_has_its_words(tables):
    assert tables.EQUATIONS.keys() == KINDS.keys()
    assert tables.PROOFS.keys() == tables.HEADS.keys() == FAMILIES.keys()
    assert torch_families.FAMILIES.keys() == FAMILIES.keys()


def test_rows_are_those_of_the_package(tables, certificates):
    made = tables.families(certificates)
    for name, own in FAMILIES.items():
        for variant, size in own.sizes.items():
            (row,) = [x for x in made.splitlines() if f"| `{name}` {variant} |" in x]
            mark = "\\*" if (name, variant) in tables.THEIRS else ""
            assert f"| {size.parameters:,} | {size.published}{mark} |" in row
    rows = tables.attentions(certificates).splitlines()
    for name, kind in KINDS.items():
        (row,) = [x for x in rows if x.startswith(f"| `{name}` |")]
        assert (f"*{tables.TEXT}*" in row) == (kind.parity == tables.TEXT)
        assert ("| yes |" in row) == kind.square


def test_numbers_in_equations_are_those_of_the_kinds(tables, monkeypatch):
    """No number stands in the words themselves, and another option gives another."""
    for words in tables.EQUATIONS.values():
        assert not re.search(r"\d\.\d|= ?\d|\d (steps|levels)", words), words
    assert "α = 0.5, s = 0.125" in tables.equation("xnor")
    other = KINDS["xnor"].options | dict(alpha=0.25, scale=2.0)
    monkeypatch.setitem(KINDS, "xnor", KINDS["xnor"]._replace(options=other))
    assert "α = 0.25, s = 2" in tables.equation("xnor")
    assert f"tokens of {KINDS['statten'].options['chunk']} steps" in (
        tables.equation("statten")
    )
    levels = KINDS["integer"].options["levels"]
    assert f"to {levels}, a spike is 1/{levels}" in tables.equation("integer")


def test_a_kind_without_words_is_an_error(tables, monkeypatch):
    monkeypatch.delitem(tables.EQUATIONS, "bsa")
    with pytest.raises(ValueError, match="no equation of 'bsa', expected a row in EQ"):
        tables.equation("bsa")


def test_a_kind_without_a_certificate_is_said_to_have_none(tables, certificates):
    rows = [row for row in certificates["attentions"] if row["kind"] != "bsa"]
    made = tables.attentions(certificates | {"attentions": rows}).splitlines()
    assert [row for row in made if row.endswith(f"| {tables.UNREAD} |")] == [
        row for row in made if row.startswith("| `bsa` |")
    ]


def test_what_the_comparison_lacks_is_said(tables):
    """Not counted yet, not measured yet; and what was only written from the text."""
    row = {"kind": "bsa", "mark": tables.TEXT, "parameters": 7, "folded": None}
    made = script("result_tables")._costs(row, None)
    assert made[:2] == ["`bsa`, *from the text*", "7"]
    assert made[2:] == 4 * ["not counted"] + 2 * ["not measured"]


def test_a_family_without_a_certificate_is_an_error(tables, certificates):
    rows = [x for x in certificates["rows"] if x["family"] != "qkformer"]
    with pytest.raises(KeyError, match="no row of qkformer 10-384"):
        tables.families(certificates | {"rows": rows})


def test_places_are_one_for_all_blocks_and_for_q_k_and_v(tables):
    count = "times integer [0, {}]: expand it into binary slots"
    refused = [
        ["block_0/attention/q_linear", count.format(2)],
        ["block_1/attention/v_linear", count.format(4)],
        ["head", "data times parameters"],
    ]
    want = "`block_i/attention/qkv_linear`, `head` (times a count of spikes; data times"
    assert tables.places(refused) == f"{want} parameters)"
    assert tables.places([]) == ""
