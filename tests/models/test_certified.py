"""What is addition-only once it is folded, what is not and where, and at what price."""

import time

import jax
import jax.numpy as jnp
import pytest

from a2os2a_jax import models
from a2os2a_jax.analysis import audit
from a2os2a_jax.models.families import COLUMNAR, FAMILIES
from a2os2a_jax.modules.attention import KINDS


def certify(family, variant, *, order="auto", events=False, **how):
    """(report, CPU-seconds) of a published size, on abstract shapes."""
    classes, size, *_ = FAMILIES[family].sizes[variant]
    channels = 2 if events else 3
    how |= dict(num_classes=classes, image_size=size, in_channels=channels)
    if family == "columnar":
        kind = dict(kind="a2os2a", order=order)
        how["attention"] = kind | how.get("attention", {})
    return read(family, variant, frames=4 if events else None, **how)


def read(family, variant, *, fold=True, head=None, frames=None, **options):
    """(report, CPU-seconds) of what is built so, on abstract shapes."""
    model = models.build(family, variant, **options)
    shape = (1,) if frames is None else (1, frames)
    images = jax.ShapeDtypeStruct((*shape, *model.frame), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    start = time.process_time()
    if fold:
        model, variables = models.fold(model, variables, head=head)
    report = audit.certify(
        lambda v, x: model.apply(v, x), variables, images, allow=("input",)
    )
    return report, time.process_time() - start


def accepted(report, steps):
    """Nothing but the first convolution multiplies; once, or at every frame."""
    assert report.addition_only and report.verdict == "addition-only", str(report)
    (first,) = report.products
    assert (first.path, first.allowed) == ("stem/conv_0", True)
    assert first.primitive == "conv_general_dilated"
    assert "stem.py" in first.source
    return first.count // steps


SIZES = [
    *(("columnar", size) for size in COLUMNAR),
    ("spike_driven", "2-512"),
]


@pytest.mark.parametrize("i", range(len(SIZES)), ids=[" ".join(s) for s in SIZES])
def test_a_published_size(i):
    """With one order and input each; all of them below, and slow."""
    events = bool(i % 2)
    report, _ = certify(*SIZES[i], order="q_kv" if events else "qk_v", events=events)
    family, variant = SIZES[i]
    size = FAMILIES[family].sizes[variant].image_size
    taps = (3 * size - 2) ** 2  # of a 3x3 window, in the image
    width = int(variant.split("-")[1]) // 8
    if events:
        assert accepted(report, 4) == taps * 2 * width
    else:
        assert accepted(report, 1) == taps * 3 * width


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1.0, 1 / 64])
@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("order", ["qk_v", "q_kv"])
@pytest.mark.parametrize(("family", "variant"), SIZES)
def test_every_way_of_it(family, variant, order, events, gain):
    own = {"attention": {"k_gain": gain}} if family == "columnar" else {}
    report, _ = certify(family, variant, order=order, events=events, **own)
    accepted(report, 4 if events else 1)


def test_an_imagenet_model_is_read_in_twenty_seconds():
    report, seconds = certify("columnar", "8-512")
    assert seconds < 20  # about one
    assert report.counts["addition"] > 30e9
    assert set(report.price["addition"]) == {32}


def test_as_trained_it_is_refused_and_told_what_to_do():
    report, _ = certify("columnar", "2-512", fold=False)
    assert report.verdict == "not addition-only"
    refused = {o.path: o for o in report.refused}
    norms = {name for name in refused if "bn" in name}
    assert norms == {name for name in refused if name != "head"}
    assert len(norms) == 5 + 2 * 6
    for name in norms:
        before = name.replace("_bn", "_linear").replace("bn_", "conv_")
        before = before.replace("rpe_linear", "rpe_conv")
        assert refused[name].advice == f"fold it into the weights of {before}"
    assert "fold it into the weights of stem/conv_1" in str(report)


# --- the families, a row each: what they multiply, as DESIGN and docs say -------------


def reads(path, most):
    """What the certificate says of weights that read counts from 0 to `most`."""
    return path, f"times integer [0, {most}]: expand it into binary slots"


def of_counts(block, first, letters="qkv"):
    """Of a block with spike-count residual; its input goes up to `first`."""
    maps = [reads(f"{block}/attention/{x}_linear", first) for x in letters]
    return [*maps, reads(f"{block}/mlp/fc1_linear", first + 1)]


def of_stage(stage, depth, letters="qkv"):
    """Of QKFormer, without its entrance, which gives counts up to 2."""
    blocks = range(depth)
    return [
        x for i in blocks for x in of_counts(f"{stage}/block_{i}", 2 + 2 * i, letters)
    ]


def entrance(stage, most):
    return [reads(f"{stage}/embed/{x}", most) for x in ("conv_0", "res_conv")]


def spikformer(depth):
    blocks = (of_counts(f"block_{i}", 2 + 2 * i) for i in range(depth))
    return [*(row for rows in blocks for row in rows), reads("head", 2 + 2 * depth)]


def qkformer(first, second, third):
    return [
        *of_stage("stage_1", first, "qk"),
        *entrance("stage_2", 2 + 2 * first),
        *of_stage("stage_2", second, "qk"),
        *entrance("stage_3", 2 + 2 * second),
        *of_stage("stage_3", third),
        reads("head", 2 + 2 * third),
    ]


MEMBRANES = [("head", "data times parameters")]  # a mean of them: real times real
VERDICTS = {  # (family, variant): everything that is refused, in the order of the data
    ("columnar", "2-512"): [],
    ("spike_driven", "2-512"): [],
    ("spikingformer", "4-384"): MEMBRANES,
    ("spikingresformer", "cifar"): MEMBRANES,
    ("spikformer", "4-384"): spikformer(4),
    ("qkformer", "4-384"): qkformer(1, 1, 2),
}
FIRST = {"qkformer": "stage_1/embed/conv_0", "spikingresformer": "stem/conv"}
FIRST |= {name: "stem/conv_0" for name in FAMILIES if name not in FIRST}
LARGE = {
    (family, variant): (
        spikformer(int(variant.partition("-")[0]))
        if family == "spikformer"
        else qkformer(1, 2, 7)
        if family == "qkformer"
        else VERDICTS[next(key for key in VERDICTS if key[0] == family)]
    )
    for family, row in FAMILIES.items()
    for variant, size in row.sizes.items()
    if size.stem == "imagenet" and family != "columnar"  # which is done above
}


def check_verdict(report, family, refused):
    assert [(o.path, o.why) for o in report.refused] == refused, str(report)
    (first,) = report.allowed
    assert (first.path, first.primitive) == (FIRST[family], "conv_general_dilated")
    assert not report.unknown
    verdict = "not addition-only" if refused else "addition-only"
    assert (report.verdict, report.addition_only) == (verdict, not refused)


@pytest.mark.parametrize("row", VERDICTS, ids=" ".join)
def test_a_family_multiplies_where_it_is_known_to_and_nowhere_else(row):
    report, _ = certify(*row)
    check_verdict(report, row[0], VERDICTS[row])


def test_every_family_has_its_verdict():
    assert {family for family, _ in VERDICTS} == FAMILIES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("row", LARGE, ids=" ".join)
def test_an_imagenet_model_multiplies_where_it_is_known_to(row):
    report, _ = certify(*row)
    check_verdict(report, row[0], LARGE[row])


TINY = dict(num_classes=10, image_size=8, timesteps=2)


@pytest.mark.parametrize("family", ["spikformer", "qkformer"])
def test_a_head_reads_digits_of_spike_counts_by_additions(family):
    """As it reads those of spikes; what stands in front of it is refused as before."""
    variant = "1-64" if family == "spikformer" else "3-64"
    want = spikformer(1) if family == "spikformer" else qkformer(1, 1, 1)
    report, _ = read(family, variant, head="bits", **TINY)
    check_verdict(report, family, want[:-1])


# --- every attention in the paper's block, whose residual is the membrane -------------

ATTENTION = "block_0/attention"
COUNTS = [ATTENTION, ATTENTION, ATTENTION, f"{ATTENTION}/proj_linear"]
ATTENTIONS = {  # name: (options, where it is refused, words of the first reason)
    **{kind: (dict(kind=kind), [], None) for kind in KINDS},
    # shares of `levels` on both sides of every product, its scale, and the projection
    "integer": (dict(kind="integer"), COUNTS, "data times data"),
    "xnor, alpha 0.3": (dict(kind="xnor", alpha=0.3), [ATTENTION], "times 0.3"),
    "xnor, a shift": (dict(kind="xnor", alpha=0.25, order="q_kv"), [], None),
    "statten, q_kv": (dict(kind="statten", order="q_kv"), [], None),
    "bsa, a scale": (dict(kind="bsa", scale=0.3), [], None),  # in the threshold
    "sdsa of events": (dict(kind="sdsa", dilate=True), [], None),
    "dssa of patches": (dict(kind="dssa", patch=2), [], None),
    "k relu, v integer": (
        dict(kind="integer", k="relu"),
        COUNTS,
        "data times data",
    ),
    "no projection": (dict(kind="integer", projection=False), COUNTS[:3], "data"),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_an_attention_in_the_papers_block(name):
    options, refused, why = ATTENTIONS[name]
    report, _ = read("columnar", "1-64", attention=options, **TINY)
    assert [o.path for o in report.refused] == refused, str(report)
    assert not refused or report.refused[0].why.startswith(why)
    assert report.addition_only == (not refused) and not report.unknown
    assert [o.path for o in report.allowed] == ["stem/conv_0"]
