"""The tables of docs/field.md and docs/torch.md say what the package says."""

import json
import sys
from pathlib import Path

import pytest

from a2os2a_jax.interop import torch_families
from a2os2a_jax.models.families import FAMILIES
from a2os2a_jax.modules.attention import KINDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        import field_tables
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    return field_tables


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
            assert f"| {size.parameters:,} | {size.published} |" in row
    rows = tables.attentions(certificates).splitlines()
    for name, kind in KINDS.items():
        (row,) = [x for x in rows if x.startswith(f"| `{name}` |")]
        assert (f"*{tables.TEXT}*" in row) == (kind.parity == tables.TEXT)
        assert ("| yes |" in row) == kind.square


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
