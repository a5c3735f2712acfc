"""The families of models as data: published sizes, and what each has of its own.

Parameters are counted as here, without those that a public code allocates and never
reads; `published` is in millions, as the papers print it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from a2os2a_jax.modules import neuron as neurons


class Size(NamedTuple):
    """A published size: classes, pixels, stem, parameters, in millions as published."""

    classes: int
    image_size: int
    stem: str
    parameters: int
    published: float
    heads: int | tuple[int, ...] = 8


class Family(NamedTuple):
    """What a family has where `build` is not told otherwise.

    sizes: variant -> Size. variants: what else builds, in words.
    neuron: the rule of its public code (of the paper, for columnar).
    stem, inits: of qkformer and spikingresformer a description of their modules.
    inits: by stem, keys of `linear.INITS` for its convolutions, the maps of the blocks,
    and the head. bias: by stem, whether the maps to q, k, v have biases.
    """

    sizes: Mapping[str, Size]
    attention: str
    readout: str
    residual: str
    stem: str
    neuron: Mapping[str, Any]
    source: str
    inits: Mapping[str, tuple[str, str, str]]
    variants: str = "any depth-dim, as in 2-64"
    bias: frozenset[str] = frozenset()


def _same(*inits: str) -> dict[str, tuple[str, ...]]:
    return {"cifar": inits, "imagenet": inits}


_IMAGENET = (1000, 224, "imagenet")
COLUMNAR = {
    "8-384": Size(*_IMAGENET, 16_816_024, 16.81),
    "8-512": Size(*_IMAGENET, 29_689_384, 29.68),
    "10-512": Size(*_IMAGENET, 36_005_416, 36.01),
    "8-768": Size(*_IMAGENET, 66_338_632, 66.34),
    "2-512": Size(100, 32, "cifar", 10_279_588, 10.28),
}
SPIKFORMER = {
    "8-512": Size(*_IMAGENET, 29_689_384, 29.68),
    "4-384": Size(10, 32, "cifar", 9_324_730, 9.32, 12),
}
SPIKINGFORMER = {
    "8-384": Size(*_IMAGENET, 16_816_024, 16.81),
    "8-512": Size(*_IMAGENET, 29_689_384, 29.68),
    "8-768": Size(*_IMAGENET, 66_338_632, 66.34),
    "4-384": Size(10, 32, "cifar", 9_320_122, 9.32, 12),
}
QKFORMER = {
    "10-384": Size(*_IMAGENET, 16_473_688, 16.47, 6),
    "10-512": Size(*_IMAGENET, 29_079_336, 29.08, 8),
    "10-768": Size(*_IMAGENET, 64_962_760, 64.96, 12),
    "4-384": Size(100, 32, "cifar", 6_740_884, 6.74),
}
SPIKINGRESFORMER = {
    "ti": Size(*_IMAGENET, 11_180_992, 11.14, (1, 3, 6)),
    "s": Size(*_IMAGENET, 17_813_824, 17.76, (1, 4, 8)),
    "m": Size(*_IMAGENET, 35_601_472, 35.52, (1, 6, 12)),
    "l": Size(*_IMAGENET, 60_375_680, 60.38, (2, 8, 16)),
    "cifar": Size(10, 32, "cifar", 10_793_152, 10.79, (1, 3, 6)),
}

_LIBRARY = neurons.DEFAULTS | dict(decay_input=True, surrogate="sigmoid")  # alpha 4
FAMILIES = {
    "columnar": Family(
        COLUMNAR,
        attention="a2os2a",
        readout="mean",
        residual="membrane",
        stem="sps",
        neuron=dict(neurons.DEFAULTS),
        source="Guo et al. 2025, arXiv:2503.00226",
        inits=_same("normal", "normal", "normal"),
    ),
    "spike_driven": Family(
        dict(COLUMNAR),  # as A2OS2A has its skeleton: both attentions have its weights
        attention="sdsa",
        readout="membrane",
        residual="membrane",
        stem="sps",
        neuron=_LIBRARY,
        source="Yao et al. 2023 (Spike-Driven Transformer), arXiv:2307.01694",
        inits=_same("normal", "normal", "torch"),
    ),
    "spikformer": Family(
        SPIKFORMER,
        attention="ssa",
        readout="mean",
        residual="spikes",
        stem="sps",
        neuron=_LIBRARY,
        source="Zhou et al. 2023 (Spikformer), arXiv:2209.15425",
        inits={  # its maps are linear layers in one code, and convolutions in the other
            "cifar": ("torch", "normal", "normal"),
            "imagenet": ("torch", "torch", "normal"),
        },
        bias=frozenset({"cifar"}),
    ),
    "spikingformer": Family(
        SPIKINGFORMER,
        attention="ssa",
        readout="potential",
        residual="membrane",
        stem="tokenizer",
        neuron=_LIBRARY,
        source="Zhou et al. 2023 (Spikingformer), arXiv:2304.11954",
        inits=_same("torch", "torch", "normal"),
    ),
    "qkformer": Family(
        QKFORMER,
        attention="ssa",
        readout="mean",
        residual="spikes",
        stem="embed",
        neuron=_LIBRARY,
        source="Zhou et al. 2024 (QKFormer), arXiv:2403.16552",
        inits=_same("torch", "torch", "normal"),
        variants="any depth-dim, of a depth of 3 (stem cifar) or 4 (imagenet) and more",
    ),
    "spikingresformer": Family(
        SPIKINGRESFORMER,
        attention="dssa",
        readout="potential",
        residual="membrane",
        stem="convolution",
        neuron=neurons.DEFAULTS | dict(decay_input=True),
        source="Shi et al. 2024 (SpikingResformer), arXiv:2403.14302",
        inits=_same("normal", "normal", "normal"),
        variants="any pairs-planes of its stages, as in 1.2.3-64.192.384",
    ),
}
