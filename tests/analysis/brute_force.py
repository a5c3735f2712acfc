"""Two folded spiking transformers as plain loops that count every addition they make.

A yardstick for the energy account: written from the equations, in numpy alone, slow on
purpose. Every addition that counts goes through `Tally.add`, which makes it and counts
it in one go; signs, shifts by one bit, comparisons, selects and logic are free, and so
are the products of the first convolution.

Shapes: images [B, T, H, W, C], tokens [B, T, N, D]; accumulators start at 0, and the
addition to that 0 counts.
"""

import collections
import itertools

import numpy as np

FAMILIES = ("columnar", "spike_driven")
ORDERS = ("qk_v", "q_kv")


class Tally:
    """Additions per place: all that are made, and those whose addend is not 0.

    Only what meets a dense operand (`idle` given) differs between the two.
    """

    def __init__(self):
        self.made = collections.Counter()
        self.skipping = collections.Counter()

    def add(self, place: str, a: float, b: float, idle: bool = False) -> float:
        """a + b; `idle`: a machine that skips zeros would not make it."""
        self.made[place] += 1
        if not idle:
            self.skipping[place] += 1
        return a + b


def count(
    params,
    images,
    *,
    family,
    timesteps,
    heads,
    pool,
    order="qk_v",
    v_th=1.0,
    attention_v_th=None,
    head_v_th=None,
    head="spikes",
):
    """Inference of a folded model with tau 2, hard reset to 0 and input not decayed.

    Args:
      params: nested dict of the folded parameters, the head's kernel divided by N T
        (columnar) or T (spike_driven).
      images: [B, H, W, C], shown `timesteps` times, or frames [B, timesteps, H, W, C].
      family: "columnar" (attention a2os2a, readout mean) or "spike_driven" (attention
        sdsa, readout membrane).
      heads, pool: as the model's.
      order: of the product of a2os2a, "qk_v" or "q_kv".
      v_th: threshold of all neurons, with whatever was folded into it.
      attention_v_th: of the neuron on the attention product; None is v_th.
      head_v_th: of spike_driven's neuron on the sum over N tokens; None is N v_th.
      head: "spikes", weighted first and summed after.
    Returns:
      logits [B, classes]; {place: additions}; {place: additions, zeros skipped}. A
      place is a module's path; one without additions is absent.
    Raises:
      ValueError: an unknown family, order or head, images of other shapes.
    """
    for name, got, known in (
        ("family", family, FAMILIES),
        ("order", order, ORDERS),
        ("head", head, ("spikes",)),
    ):
        if got not in known:
            raise ValueError(f"count: {name} is {got!r}, expected one of {known}")
    images = np.asarray(images, np.float64)
    if images.ndim not in (4, 5) or images.ndim == 5 and images.shape[1] != timesteps:
        raise ValueError(
            f"count: images {images.shape}, expected [B, H, W, C] or "
            f"[B, {timesteps}, H, W, C]"
        )
    tally = Tally()
    columnar = family == "columnar"
    attention_v_th = v_th if attention_v_th is None else attention_v_th
    u = stem(tally, params["stem"], images, timesteps, pool, v_th)
    s = neuron(tally, "stem_neuron", u, v_th)
    depth = sum(name.startswith("block_") for name in params)
    for i in range(depth):
        place, block = f"block_{i}", params[f"block_{i}"]
        attend = a2os2a if columnar else sdsa
        how = dict(heads=heads, order=order, v_th=v_th, own=attention_v_th)
        branch = attend(tally, f"{place}/attention", block["attention"], s, **how)
        u = plus(tally, place, branch, u)
        s = neuron(tally, f"{place}/mid_neuron", u, v_th)
        u = plus(tally, place, mlp(tally, f"{place}/mlp", block["mlp"], s, v_th), u)
        if columnar or i < depth - 1:
            s = neuron(tally, f"{place}/out_neuron", u, v_th)
    if not columnar:
        head_v_th = u.shape[2] * v_th if head_v_th is None else head_v_th
        s = neuron(tally, "head_neuron", over_tokens(tally, "", u), head_v_th)
        s = s[:, :, None]
    return readout(tally, s, params["head"]), dict(tally.made), dict(tally.skipping)


def stem(tally, params, images, timesteps, pool, v_th):
    """[B, (T,) H, W, C] -> U_0 [B, T, N, D]."""
    static = images.ndim == 4
    x = images[:, None] if static else images
    for i in range(4):
        kernel = params[f"conv_{i}"]["kernel"]
        if i == 0:
            x = first_conv(x, kernel)
        else:
            x = conv(tally, f"stem/conv_{i}", x, kernel)
        x = bias(tally, f"stem/bn_{i}", x, params[f"bn_{i}"]["bias"])
        if i == 0 and static:
            x = np.repeat(x, timesteps, axis=1)
        if i < 3:
            x = neuron(tally, f"stem/neuron_{i}", x, v_th)
        if pool[i] == "1":
            x = max_pool(x)
    s = neuron(tally, "stem/rpe_neuron", x, v_th)
    rpe = conv(tally, "stem/rpe_conv", s, params["rpe_conv"]["kernel"])
    rpe = bias(tally, "stem/rpe_bn", rpe, params["rpe_bn"]["bias"])
    u = plus(tally, "stem", x, rpe)
    return u.reshape(*u.shape[:2], -1, u.shape[-1])


def mlp(tally, place, params, s, v_th):
    x = layer(tally, place, "fc1", params, s)
    s = neuron(tally, f"{place}/fc1_neuron", x, v_th)
    return layer(tally, place, "fc2", params, s)


def a2os2a(tally, place, params, s, *, heads, order, v_th, own):
    """[B, T, N, D] -> [B, T, N, D]: Q binary, K = max(., 0), V ternary."""
    q, k, v = (layer(tally, place, name, params, s) for name in "qkv")
    q = neuron(tally, f"{place}/q_neuron", q, v_th)
    k = np.where(k > 0, k, 0.0)
    v = neuron(tally, f"{place}/v_neuron", v, v_th, ternary=True)
    product = np.zeros(s.shape)
    multiply = {"qk_v": scores_first, "q_kv": context_first}[order]
    width = s.shape[-1] // heads
    for b, t, head in np.ndindex(*s.shape[:2], heads):
        one = (b, t, slice(None), slice(head * width, (head + 1) * width))
        product[one] = multiply(tally, place, q[one], k[one], v[one])
    a = neuron(tally, f"{place}/attention_neuron", product, own)
    return layer(tally, place, "proj", params, a)


def sdsa(tally, place, params, s, *, heads, order, v_th, own):
    """[B, T, N, D] -> [B, T, N, D]: Q and SN(sum over tokens of K and V), all bits."""
    q, k, v = (
        neuron(
            tally, f"{place}/{name}_neuron", layer(tally, place, name, params, s), v_th
        )
        for name in "qkv"
    )
    both = np.logical_and(k, v)
    total = np.zeros((*s.shape[:2], 1, s.shape[-1]))
    for b, t, n, c in np.ndindex(both.shape):
        if both[b, t, n, c]:
            total[b, t, 0, c] = tally.add(place, total[b, t, 0, c], 1.0)
    mask = neuron(tally, f"{place}/attention_neuron", total, own)
    return layer(tally, place, "proj", params, np.where(mask != 0, q, 0.0))


def scores_first(tally, place, q, k, v):
    """(Q K^T) V of one head, arrays [N, d]."""
    tokens, width = q.shape
    scores, out = np.zeros((tokens, tokens)), np.zeros((tokens, width))
    for n, m, c in np.ndindex(tokens, tokens, width):
        if q[n, c]:
            scores[n, m] = tally.add(place, scores[n, m], k[m, c], idle=k[m, c] == 0)
    for n, m, e in np.ndindex(tokens, tokens, width):
        if v[m, e]:
            term = signed(v[m, e], scores[n, m])
            out[n, e] = tally.add(place, out[n, e], term, idle=term == 0)
    return out


def context_first(tally, place, q, k, v):
    """Q (K^T V) of one head, arrays [N, d]."""
    tokens, width = q.shape
    context, out = np.zeros((width, width)), np.zeros((tokens, width))
    for m, c, e in np.ndindex(tokens, width, width):
        if v[m, e]:
            term = signed(v[m, e], k[m, c])
            context[c, e] = tally.add(place, context[c, e], term, idle=term == 0)
    for n, c, e in np.ndindex(tokens, width, width):
        if q[n, c]:
            term = context[c, e]
            out[n, e] = tally.add(place, out[n, e], term, idle=term == 0)
    return out


def readout(tally, s, params):
    """Spikes [B, T, N, D] -> [B, classes]: weighted first, summed after, bias last."""
    vectors = linear(tally, "head", s, params["kernel"])
    logits = np.zeros((s.shape[0], vectors.shape[-1]))
    for b, t, n, c in np.ndindex(vectors.shape):
        logits[b, c] = tally.add("head", logits[b, c], vectors[b, t, n, c])
    return bias(tally, "head", logits, params["bias"])


def layer(tally, place, name, params, s):
    x = linear(tally, f"{place}/{name}_linear", s, params[f"{name}_linear"]["kernel"])
    return bias(tally, f"{place}/{name}_bn", x, params[f"{name}_bn"]["bias"])


def linear(tally, place, s, kernel):
    """Spikes [..., I], kernel [I, O] -> [..., O]."""
    out, kernel = np.zeros((*s.shape[:-1], np.shape(kernel)[-1])), rows(kernel)
    for where in np.ndindex(s.shape[:-1]):
        out[where] = weigh(tally, place, [(s[where].tolist(), kernel)], out.shape[-1])
    return out


def conv(tally, place, s, kernel):
    """Spikes [B, T, H, W, I], kernel [3, 3, I, O] -> [B, T, H, W, O].

    A tap outside of the image is not made.
    """
    out, kernel = np.zeros((*s.shape[:-1], np.shape(kernel)[-1])), rows(kernel)
    for b, t, y, x in np.ndindex(s.shape[:-1]):
        taps = [
            (s[b, t, y + dy - 1, x + dx - 1].tolist(), kernel[dy][dx])
            for dy, dx in inside(y, x, s.shape[2:4])
        ]
        out[b, t, y, x] = weigh(tally, place, taps, out.shape[-1])
    return out


def weigh(tally, place, taps, outputs):
    """Sums over (spikes [I], weights [I][O]) of the weights that meet a spike."""
    sums = []
    for j in range(outputs):
        total = 0.0
        for spikes, weights in taps:
            for spike, row in zip(spikes, weights, strict=True):
                if spike:
                    total = tally.add(place, total, signed(spike, row[j]))
        sums.append(total)
    return sums


def first_conv(images, kernel):
    """Images [B, T, H, W, I] -> [B, T, H, W, O], by products: not counted."""
    kernel = np.asarray(kernel, np.float64)
    out = np.zeros((*images.shape[:-1], kernel.shape[-1]))
    for b, t, y, x in np.ndindex(images.shape[:-1]):
        for dy, dx in inside(y, x, images.shape[2:4]):
            for i, value in enumerate(images[b, t, y + dy - 1, x + dx - 1]):
                out[b, t, y, x] += value * kernel[dy, dx, i]
    return out


def inside(y, x, size):
    """The taps (dy, dx) of a 3x3 window, padded by one, that lie in the image."""
    for dy, dx in itertools.product(range(3), range(3)):
        if 0 <= y + dy - 1 < size[0] and 0 <= x + dx - 1 < size[1]:
            yield dy, dx


def max_pool(x):
    """3x3, stride 2, padded by one with minus infinity: comparisons alone."""
    height, width = x.shape[2:4]
    out = np.full(
        (*x.shape[:2], (height + 1) // 2, (width + 1) // 2, x.shape[-1]), -np.inf
    )
    for b, t, y, z in np.ndindex(out.shape[:-1]):
        window = [
            x[b, t, 2 * y + dy - 1, 2 * z + dx - 1]
            for dy, dx in inside(2 * y, 2 * z, (height, width))
        ]
        out[b, t, y, z] = np.maximum.reduce(window)
    return out


def neuron(tally, place, x, v_th, ternary=False):
    """Membranes [B, T, ...] -> spikes: h = v/2 + x, fires at the threshold, v = 0 then.

    Two additions a step, h and its distance to the threshold; ternary, three.
    """
    out = np.zeros(x.shape)
    for b, *rest in np.ndindex(x.shape[0], *x.shape[2:]):
        v = 0.0
        for t in range(x.shape[1]):
            h = tally.add(place, 0.5 * v, float(x[b, t, *rest]))
            spike = 1.0 if tally.add(place, h, -v_th) >= 0 else 0.0
            if ternary and tally.add(place, -h, -v_th) >= 0:
                spike = -1.0
            v = 0.0 if spike else h
            out[b, t, *rest] = spike
    return out


def bias(tally, place, x, b):
    """x [..., O] + b [O]."""
    out = np.zeros(x.shape)
    for where in np.ndindex(x.shape):
        out[where] = tally.add(place, float(x[where]), float(b[where[-1]]))
    return out


def plus(tally, place, a, b):
    """a + b of one shape."""
    if a.shape != b.shape:
        raise ValueError(f"plus: got {a.shape} and {b.shape}, expected one shape")
    out = np.zeros(a.shape)
    for where in np.ndindex(a.shape):
        out[where] = tally.add(place, float(a[where]), float(b[where]))
    return out


def over_tokens(tally, place, u):
    """The sum over N of [B, T, N, D], [B, T, D]."""
    out = np.zeros((*u.shape[:2], u.shape[-1]))
    for b, t, n, c in np.ndindex(u.shape):
        out[b, t, c] = tally.add(place, float(out[b, t, c]), float(u[b, t, n, c]))
    return out


def signed(spike, value):
    """A weight under a spike of -1 or 1, by its sign alone."""
    if spike not in (-1, 1):
        raise ValueError(f"signed: got a spike of {spike}, expected -1 or 1")
    return value if spike > 0 else -value


def rows(kernel):
    return np.asarray(kernel, np.float64).tolist()
