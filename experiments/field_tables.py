"""Markdown of docs/field.md and docs/torch.md: families, attentions, published results.

Sizes, sources, options and verdicts are read off the package and certificates.json.
Literals are words of ours, for each kind an equation (its numbers are those of KINDS),
for each family how it was proved, its heads, stem and readout, and numbers out of
papers, which are not ours.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "experiments"))

import stamps  # noqa: E402

from a2os2a_jax.interop import torch_families, torch_weights  # noqa: E402
from a2os2a_jax.models.families import FAMILIES  # noqa: E402
from a2os2a_jax.modules.attention import KINDS  # noqa: E402

TEXT = "from the text"  # without public outputs to compare with
UNREAD = "not read yet"  # of a kind that certificates.json has not

# kind -> what comes of spikes S and of q, k, v made of them; SN is the neuron, sums
# over n are over tokens, {names} are options. An attention without a row is an error.
EQUATIONS = {
    "a2os2a": "SN(Q Kᵀ V)",
    "vssa": "SN(Q Kᵀ V · s), s = {scale:g}; `ssa` under the paper's name",
    "ssa": "SN(Q Kᵀ V · s), s = {scale:g}",
    "sdsa": "Q ⊙ SN(Σₙ K ⊙ V)",
    "sdsa3": "SN(Q (Kᵀ V) · s), s = {scale:g}; maps to Q, K, V are re-parameterised "
    "convolutions",
    "dssa": "A = SN(Y₁ Sᵀ · s₁), then SN(Aᵀ Y₂ · s₂); Y = BN(conv(S)), s₁ and s₂ of "
    "running firing rates",
    "qk_token": "SN(sum of Q over the channels of a head) ⊙ K",
    "qk_channel": "SN(Σₙ Q) ⊙ K",
    "statten": "SN(Q Kᵀ V / √N), over the tokens of {chunk} steps together",
    "xnor": "SN((Q Kᵀ + α (1 - Q)(1 - K)ᵀ) V · s), α = {alpha:g}, s = {scale:g}",
    "sasa": "Q ⊙ SN(Σₙ Q ⊙ K), and beside the projection BN(depth-wise conv(S))",
    "integer": "SN(Q Kᵀ V / √d); its neurons count to {levels}, a spike is 1/{levels}",
    "bsa": "SN(shiftmax(Q Kᵀ) V)",
    "frozen_qk": "as `a2os2a`, with the maps to Q and K as initialised",
    "frozen_v": "as `a2os2a`, with the map to V as initialised",
    "uniform": "SN(Σₙ V)",
    "v_only": "SN(V)",
    "none": "nothing: the block is its MLP",
}
LETTERS = {"dssa": "S binary, Y real"}  # which have no q, k, v

# family -> what of it is compared with outputs of the public code
PROOFS = {
    "columnar": "own reference: the paper has no public code",
    "spike_driven": "as public code: whole model, stem, attention, MLP",
    "spikformer": "as public code: whole model, stems, attentions, MLP",
    "spikingformer": "as public code in its parts: stem, attention",
    "qkformer": "as public code in its parts: entrances, both attentions",
    "spikingresformer": "as public code in its parts: attention, MLP",
}
# family -> where its heads are found, as torch_weights does
HEADS = {
    "columnar": "8",
    "spike_driven": "from `talking_heads`, else 8",
    "spikformer": "8, or 12 of 4-384",
    "spikingformer": "8, or 12 of 4-384",
    "qkformer": "8; with the stem `imagenet` one for 64 channels of the width",
    "spikingresformer": "from its firing rates",
}
STEMS = {
    "sps": "four conv3x3, and one for positions",
    "tokenizer": "five conv3x3",
    "embed": "an entrance of conv3x3 at each of three stages",
    "convolution": "one conv, conv3x3 of stride 2 between stages",
}
READS = {
    "mean": "the mean over tokens of the last spikes",
    "membrane": "spikes of the mean membrane",
    "potential": "the mean membrane itself",
}
RESIDUALS = {"membrane": "membranes", "spikes": "spike counts"}

# sizes that the family's own paper does not print; another's has them
THEIRS = {("columnar", "8-384"), ("columnar", "8-768")}

# (model, size, ImageNet, energy in mJ, CIFAR-10, CIFAR-100, CIFAR10-DVS): top-1 %,
# T = 4 for images, 224x224 unless said, as the papers print it. None: not printed.
PUBLISHED = {
    "arXiv:2503.00226": (
        ("A2OS2A", "8-512", 76.28, None, None, None, None),
        ("A2OS2A", "10-512", 78.66, None, None, None, None),
        ("A2OS2A", "2-512, its ablation", None, None, 96.42, 79.90, None),
        ("A2OS2A", "its comparison", None, None, 96.32, 79.69, None),
    ),
    "arXiv:2209.15425": (
        ("Spikformer", "8-384", 70.24, 7.73, None, None, None),
        ("Spikformer", "8-512", 73.38, 11.58, None, None, None),
        ("Spikformer", "8-768", 74.81, 21.48, None, None, None),
        ("Spikformer", "4-384", None, None, 95.51, 78.21, None),
        ("Spikformer", "for events", None, None, None, None, 80.9),
    ),
    "arXiv:2304.11954": (
        ("Spikingformer", "8-512", 74.79, 7.46, None, None, None),
        ("Spikingformer", "8-768", 75.85, 13.68, None, None, None),
        ("Spikingformer", "4-384", None, None, 95.81, 79.21, None),
        ("Spikingformer", "for events", None, None, None, None, 81.3),
    ),
    "arXiv:2307.01694": (
        ("Spike-Driven Transformer", "8-512", 74.57, 4.50, None, None, None),
        ("Spike-Driven Transformer", "10-512", 74.66, 5.53, None, None, None),
        ("Spike-Driven Transformer", "8-768, 288x288", 77.07, 6.09, None, None, None),
        ("Spike-Driven Transformer", "2-512", None, None, 95.60, 78.40, None),
        ("Spike-Driven Transformer", "for events", None, None, None, None, 80.0),
    ),
    "arXiv:2403.16552": (
        ("QKFormer", "10-384", 78.80, 15.13, None, None, None),
        ("QKFormer", "10-768", 84.22, None, None, None, None),
        ("QKFormer", "4-384", None, None, 96.18, 81.15, None),
        ("QKFormer", "for events", None, None, None, None, 84.0),
    ),
    "arXiv:2403.14302": (
        ("SpikingResformer", "ti", 74.34, 2.46, None, None, None),
        ("SpikingResformer", "m", 77.24, 5.46, None, None, None),
        ("SpikingResformer", "fine-tuned", None, None, 97.40, 85.98, 84.8),
    ),
}
REPRODUCED = (  # (model, CIFAR-10, CIFAR-100), by others
    ("Spikformer", 95.12, 77.37),
    ("Spike-Driven Transformer", 95.79, 78.29),
    ("QKFormer", 96.24, 79.72),
    ("Spikingformer", 95.53, 79.12),
    ("SpikingResformer", 95.69, 79.45),
    ("Spikformer, Q and K random and frozen", 94.96, None),
    ("Spike-Driven Transformer, the same", 96.48, None),
)
STEP = "arXiv:2505.11151"


def families(value: dict) -> str:
    """What each family is, and every published size with its certificate."""
    lines = [
        "| family | source | attention | stem | residual | the head reads | neuron "
        "| public code | proof |",
        "| --- " * 9 + "|",
    ]
    for name, own in FAMILIES.items():
        attention = f"`{own.attention}`"
        if name == "qkformer":
            attention = "`qk_token` in stages 1 and 2, `ssa` in the last"
        lines.append(
            f"| `{name}` | {own.source} | {attention} | {STEMS[own.stem]} "
            f"| {RESIDUALS[own.residual]} | {READS[own.readout]} | {_neuron(own)} "
            f"| {torch_families.FAMILIES[name].source} | {PROOFS[name]} |"
        )
    lines += [
        "",
        "| model, folded | input | stem | classes | parameters | published, M "
        "| additions | verdict | refused at |",
        "| --- " * 9 + "|",
    ]
    for name, own in FAMILIES.items():
        for variant, size in own.sizes.items():
            row = _plain(value["rows"], name, variant)
            mark = "\\*" if (name, variant) in THEIRS else ""
            lines.append(
                f"| `{name}` {variant} | {size.image_size}x{size.image_size} "
                f"| {size.stem} | {size.classes:,} | {row['parameters']:,} "
                f"| {size.published}{mark} | {row['counts']['addition'] / 1e9:.2f} G "
                f"| {row['verdict']} | {places(row['refused']) or 'nowhere'} |"
            )
    lines += [
        "",
        "Parameters without those that a public code allocates and never reads; "
        "additions of one image at T = 4, with all spikes firing. "
        "\\* Published of the Spike-Driven Transformer, which has the same skeleton. "
        f"{_from(value)}",
    ]
    return "\n".join(lines)


def torch_table() -> str:
    """Whose weights are read and written."""
    lines = [
        "| family | public code | heads | attentions that are written |",
        "| --- " * 4 + "|",
    ]
    for name, family in torch_families.FAMILIES.items():
        kinds = torch_weights.WRITTEN.get(name, (FAMILIES[name].attention,))
        cell = ", ".join(f"`{kind}`" for kind in kinds)
        if name == "columnar":
            cell = "those with linear maps alone"
        lines.append(f"| `{name}` | {family.source} | {HEADS[name]} | {cell} |")
    return "\n".join(lines)


def attentions(value: dict) -> str:
    """A row for each kind, with its certificate in one and the same model."""
    rows = {row["kind"]: row for row in value["attentions"]}
    lines = [
        "| kind | gives | q, k, v | source | proof | needs a map | verdict |",
        "| --- " * 7 + "|",
    ]
    for name, kind in KINDS.items():
        row = rows.get(name, {"verdict": UNREAD, "refused": []})
        verdict = row["verdict"]
        if row["refused"]:
            verdict += f": {places(row['refused'])}"
        proof = f"*{kind.parity}*" if kind.parity == TEXT else kind.parity
        needs = "yes" if kind.square else ""
        lines.append(
            f"| `{name}` | {equation(name)} | {_alphabets(name)} | {kind.source} "
            f"| {proof} | {needs} | {verdict} |"
        )
    variant = value["attentions"][0]["variant"]
    lines += [
        "",
        f"Verdicts are of `columnar` {variant} at 32x32, folded, each kind with its "
        f"own options. {_from(value)}",
    ]
    return "\n".join(lines)


def published() -> str:
    """What the papers print, and what others found."""
    lines = [
        "| published, not ours: top-1 % | size | ImageNet | energy, mJ, as they count "
        "| CIFAR-10 | CIFAR-100 | CIFAR10-DVS | where | ours |",
        "| --- " * 9 + "|",
    ]
    for where, rows in PUBLISHED.items():
        for model, size, *numbers in rows:
            cells = [model, size, *map(_number, numbers), where, "not trained"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"| reproduced by others ({STEP}) | CIFAR-10 | CIFAR-100 |",
        "| --- " * 3 + "|",
    ]
    for model, *numbers in REPRODUCED:
        lines.append(f"| {' | '.join([model, *map(_number, numbers)])} |")
    return "\n".join(lines)


def places(refused: list[list[str]]) -> str:
    """Where and why, with numbers of blocks and stages left out, q, k, v in one."""
    found: dict[str, None] = {}
    whys: dict[str, None] = {}
    for place, why in refused:
        place = re.sub(r"(block|stage|conv)_\d+", r"\1_i", place)
        found[re.sub(r"attention/[qkv]_", "attention/qkv_", place)] = None
        whys[re.sub(r"integer \[0, \d+\].*", "a count of spikes", why)] = None
    if not found:
        return ""
    return f"{', '.join(f'`{place}`' for place in found)} ({'; '.join(whys)})"


def equation(kind: str) -> str:
    """What a kind gives, in words, with the numbers of its own options.

    Raises:
      ValueError: EQUATIONS has no row of it.
    """
    if kind not in EQUATIONS:
        raise ValueError(
            f"field_tables: got no equation of {kind!r}, expected a row in EQUATIONS"
        )
    return EQUATIONS[kind].format(**KINDS[kind].options)


def _alphabets(kind: str) -> str:
    has = KINDS[kind].options
    letters = [str(has[name]) for name in "qkv" if has.get(name)]
    return LETTERS.get(kind) or ", ".join(letters) or "none"


def _neuron(own) -> str:
    rule = "input decays" if own.neuron["decay_input"] else "the paper's"
    return f"{rule}, {own.neuron['surrogate']}"


def _plain(rows: list[dict], family: str, variant: str) -> dict:
    """The row of a size without further options."""
    for row in rows:
        same = (row["family"], row["variant"]) == (family, variant)
        if same and not row["options"].keys() & {"attention", "in_channels"}:
            return row
    raise KeyError(f"certificates.json: no row of {family} {variant}")


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.2f}"


def _from(value: dict) -> str:
    return (
        f"From `experiments/results/certificates.json`; command: `{value['command']}`; "
        f"commit: {stamps.short(value['commit'])}."
    )


def all_tables(results: Path) -> dict[str, str]:
    """name of the mark -> the table."""
    value = json.loads((results / "certificates.json").read_text())
    return {
        "families": families(value),
        "attentions": attentions(value),
        "published": published(),
    }
