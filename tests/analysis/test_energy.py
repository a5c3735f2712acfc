"""Accounts of energy, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.analysis import activity, audit, energy
from a2os2a_jax.analysis.energy import FLOAT, INTEGER, Work

ROWS = [
    Work("stem/conv_0", energy.INPUT, macs=100),
    Work("fc", energy.LINEAR, possible=1000, events=200, nonzero=200, spike_bits=50),
    Work("attention", energy.ATTENTION, possible=400, events=80, nonzero=30),
    Work("neuron", energy.NEURONS, additions=20, comparisons=10, states=10),
    Work("fc_bn", energy.DENSE, additions=7, words=14),
]
ANN = [
    Work("stem/conv_0", energy.INPUT, macs=100, activations=30),
    Work("fc", energy.LINEAR, macs=250, activations=20, signed=5),
    Work("neuron", energy.NEURONS, comparisons=5, activations=5),
    Work("fc_bn", energy.DENSE, additions=7, words=14),
]


def test_constants_are_the_published_ones():
    assert (FLOAT.add, FLOAT.mac) == (0.9, 4.6)
    assert (INTEGER.add, INTEGER.mac) == (0.1, 0.23)
    assert energy.SRAM_BIT * 32 == 5


def test_the_field_counts_products_with_the_input_and_spikes():
    account = energy.field(ROWS)
    assert account == pytest.approx(
        {
            energy.INPUT: 4.6 * 100,
            energy.LINEAR: 0.9 * 200,
            energy.ATTENTION: 0.9 * 80,
        }
    )


def test_the_full_account_counts_everything():
    account = energy.full(ROWS, INTEGER)
    bits = 8 * (100 + 200 + 80) + 50 + 32 * (2 * 10 + 14)
    assert account == pytest.approx(
        {
            energy.INPUT: 23,
            energy.LINEAR: 20,
            energy.ATTENTION: 8,
            energy.NEURONS: 3,
            energy.DENSE: 0.7,
            "memory": bits * 5 / 32,
        }
    )


def test_the_ann_multiplies():
    account = energy.ann(ANN, INTEGER, 4)
    bits = 8 * 350 + 32 * 14 + 3 * 55 + 4 * 5  # 0 to 4 take 3 bits, -4 to 4 take 4
    assert account == pytest.approx(
        {
            energy.INPUT: 23,
            energy.LINEAR: 57.5,
            energy.NEURONS: 0.5,
            energy.DENSE: 0.7,
            "memory": bits * 5 / 32,
        }
    )


@pytest.mark.parametrize(
    ("steps", "bits", "signed"),
    [(1, 1, 2), (2, 2, 3), (3, 2, 3), (4, 3, 4), (7, 3, 4), (8, 4, 5)],
)
def test_equal_bits(steps, bits, signed):
    assert energy.equal_bits(steps) == bits
    assert energy.equal_bits(steps, signed=True) == signed


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("costs", energy.COSTS, ids=lambda c: c.name)
def test_at_the_break_even_rate_both_cost_the_same(costs, memory):
    def total(account):
        return sum(v for part, v in account.items() if memory or part != "memory")

    even = energy.break_even(ROWS, ANN, costs, 4, memory)
    assert even.own == 280 / 1400
    if even.rate is None:
        silent = [r._replace(events=0) for r in ROWS]
        assert total(energy.full(silent, costs)) >= total(energy.ann(ANN, costs, 4))
        return
    there = [r._replace(events=r.events * even.rate / even.own) for r in ROWS]
    assert total(energy.full(there, costs)) == pytest.approx(
        total(energy.ann(ANN, costs, 4))
    )
    assert even.wins == (
        total(energy.full(ROWS, costs)) < total(energy.ann(ANN, costs, 4))
    )


def test_a_network_that_costs_more_in_silence_never_wins():
    rows = [*ROWS, Work("n", energy.NEURONS, states=1e6)]
    even = energy.break_even(rows, ANN, INTEGER, 4, memory=True)
    assert even.rate is None and not even.wins


def test_without_spikes_there_is_no_rate():
    with pytest.raises(ValueError, match="no event"):
        energy.break_even(ROWS[:1], ANN, FLOAT, 4, memory=True)


def test_the_share_of_the_attention():
    rows = [
        Work("block_0/attention", energy.ATTENTION, possible=10, events=10, nonzero=4),
        Work("block_0/attention/q_linear", energy.LINEAR, possible=30, events=30),
        Work("block_0/mlp/fc1_linear", energy.LINEAR, possible=60, events=60),
    ]
    share = energy.attention_share(rows)
    assert share["products"] == pytest.approx(0.1)
    assert share["branch"] == pytest.approx(0.4)
    assert (share["events_dense"], share["events_nonzero"]) == (10, 4)


def test_work_of_a_small_network_by_hand():
    """A linear map on the input, a neuron over 3 steps, a linear map on its spikes."""

    def net(w, x):  # x [T, 4]
        def step(v, h):
            v = 0.5 * v + h
            s = (v >= 1).astype(v.dtype)
            return v * (1 - s), s

        h = x @ w["in"]
        _, s = jax.lax.scan(step, jnp.zeros(5), h)
        return s @ w["out"] + w["bias"][None]

    w = {"in": jnp.ones((4, 5)), "out": jnp.ones((5, 2)), "bias": jnp.ones(2)}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    counter = activity.Counter(net)
    out = counter(w, x)
    events = int(out.sum() - 2 * 3)  # each spike adds 1 to both outputs
    rows = energy.work(counter.tallies, examples=1)
    total = {name: sum(getattr(r, name) for r in rows) for name in Work._fields[2:]}
    assert total == {
        "macs": 3 * 4 * 5,
        "possible": 3 * 5 * 2,
        "events": events,
        "nonzero": events,
        "additions": 3 * 5 + 3 * 2,  # charge, bias
        "comparisons": 3 * 5,
        "states": 3 * 5,
        "words": 3 * 2,  # a bias each
        "spike_bits": 2 * 3 * 5,  # handed on, and read
        "activations": 0,
        "signed": 0,
    }
    halves = energy.work(counter.tallies, examples=2)
    assert [r.macs for r in halves] == [r.macs / 2 for r in rows]
    one = audit.certify(net, w, jax.ShapeDtypeStruct((1, 4), jnp.float32))
    of_ann = energy.ann_work(one.operations)
    assert sum(r.macs for r in of_ann) == 4 * 5 + 5 * 2
    assert sum(r.additions for r in of_ann) == 2
    assert sum(r.comparisons for r in of_ann) == 5


def test_no_example_is_an_error():
    with pytest.raises(ValueError, match="examples"):
        energy.work([], 0)


def test_accounts_hold_both_sides_at_both_costs():
    found = energy.accounts(ROWS, ANN, timesteps=4)
    assert set(found["bars"]) == set(found["total_nj"])
    for name, parts in found["bars"].items():
        assert found["total_nj"][name] == pytest.approx(sum(parts.values()))
    assert found["sops"] == 280 and found["sops_nonzero"] == 230
    assert found["ann_activation_bits"] == [3, 4]
    assert list(found["bars"])[2::4] == [
        f"{c.name}: spiking, all of it" for c in energy.COSTS
    ]
    assert len(found["break_even"]) == 4


# ---- parts, by what is computed from what


def parts(net, w, x):
    """{source line or place: part} of what a program does with one input."""
    found = audit.certify(net, w, jax.ShapeDtypeStruct(x, jnp.float32)).operations
    named = zip(found, energy.parts_of(found), strict=True)
    return [(o.primitive, part) for o, part in named if not o.folds]


def spikes(x):
    return (x >= 1).astype(x.dtype)


def test_a_stem_that_sums_is_no_head_and_names_decide_nothing():
    """A model of somebody else: an "attention" without one, a head of any name."""

    def net(w, x):  # x [N, 4]
        with jax.named_scope("attention"):
            s = spikes(x @ w["in"])
            pooled = s.reshape(2, 2, 5).sum(1)  # of a pooling stem
        hidden = spikes(pooled @ w["middle"])
        with jax.named_scope("attention"):
            return hidden.sum(0) @ w["out"]

    w = {k: jnp.ones(n) for k, n in dict(middle=(5, 5), out=(5, 2)).items()}
    w["in"] = jnp.ones((4, 5))
    found = parts(net, w, (4, 4))
    sums = [part for primitive, part in found if primitive == "reduce_sum"]
    assert sums == [energy.POOLING, energy.HEAD]
    products = [part for primitive, part in found if primitive == "dot_general"]
    assert energy.ATTENTION not in products
    assert products[-1] == energy.HEAD and energy.LINEAR in products


def test_products_of_data_are_attention_in_whatever_module():
    def net(w, x):  # x [N, 4]
        q, k = spikes(x @ w["q"]), spikes(x @ w["k"])
        mixed = spikes((q @ k.T) @ k)
        return spikes(mixed @ w["project"]).sum(0) @ w["out"]

    w = {k: jnp.ones((4, 4)) for k in ("q", "k", "project", "out")}
    found = [part for primitive, part in parts(net, w, (3, 4)) if "dot" in primitive]
    assert found.count(energy.ATTENTION) == 2 and energy.HEAD in found


def test_a_network_that_ends_with_a_convolution_has_no_head():
    def net(w, x):  # x [1, 4, 4, 2]
        dims = ("NHWC", "HWIO", "NHWC")
        s = spikes(x)
        y = jax.lax.conv_general_dilated(s, w, (1, 1), "SAME", dimension_numbers=dims)
        return y.sum((1, 2))

    found = parts(net, jnp.ones((3, 3, 2, 2)), (1, 4, 4, 2))
    assert energy.HEAD not in dict(found).values()
    assert ("reduce_sum", energy.POOLING) in found
