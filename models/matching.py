"""The rule by which architectures are made comparable: equal width, equal depth, equal parameters.

A layer has 12·d² parameters whatever it is made of, as attention's 4·d² and a SwiGLU of 8·d². Where
a mixer has more or fewer, the SwiGLU beside it is narrower or wider; where experts stand in its
place, the 12·d² are those that a token touches. So families agree in active non-embedding
parameters within 3 %, from a width of 32 on.
"""

from __future__ import annotations

from collections.abc import Callable

from models.base import MixerConfig
from models.errors import UserError
from models.lm import Block, ModelConfig
from models.mlp import SwiGLU
from models.moe import Moe

D_HEAD = 16  # small heads, so that small models have several
ASPECT = 32  # width / depth

Experts = Callable[[int], Moe]  # of a d_expert


def depth_for(width: int) -> int:
    """Layers at the common aspect ratio, at least 2."""
    return max(2, round(width / ASPECT))


def heads(width: int) -> int:
    return max(1, width // D_HEAD)


def spare(width: int, mixer: MixerConfig) -> int:
    """Parameters that the mixer leaves of a layer's."""
    return 12 * width**2 - mixer.cost(width, 1).params


def channels(size: float) -> int:
    """A hidden layer's channels: a multiple of 8 from 512 on, which costs nothing of the balance
    and saves a GPU from padding every operand of every product.
    """
    step = 8 if size >= 512 else 1
    return max(1, step * round(size / step))


def with_mlp(width: int, mixer: MixerConfig) -> Block:
    """The mixer and the SwiGLU that brings the layer to 12·d² parameters."""
    left = spare(width, mixer)
    if left < 3 * width:
        raise UserError(
            f"a layer of width={width} has {12 * width**2} parameters, too few for "
            f"{mixer.kind} beside an MLP; choose a width of at least 32"
        )
    return Block(mixer=mixer, channel=SwiGLU(d_ff=channels(left / (3 * width))))


def with_experts(width: int, mixer: MixerConfig, experts: Experts) -> Block:
    """The mixer and experts of the size that brings the layer's active parameters to 12·d²."""
    fixed = experts(1).cost(width, 1).active_params
    each = experts(2).cost(width, 1).active_params - fixed  # of a unit of d_expert
    d_expert = channels(1 + (spare(width, mixer) - fixed) / each)
    return Block(mixer=mixer, channel=experts(d_expert))


def layered(
    width: int, depth: int | None, vocab_size: int, layer: Callable[[int, int], Block]
) -> ModelConfig:
    """The model whose i-th of n layers is `layer(i, n)`."""
    depth = depth or depth_for(width)
    blocks = tuple(layer(i, depth) for i in range(depth))
    return ModelConfig(d_model=width, vocab_size=vocab_size, blocks=blocks)


def uniform(width: int, depth: int | None, vocab_size: int, block: Block) -> ModelConfig:
    """The model of one kind of layer."""
    return layered(width, depth, vocab_size, lambda i, n: block)


def is_last(i: int, n: int, period: int) -> bool:
    """Whether layer i of n is the last of every `period`, or the last of a shallower model."""
    return i % period == period - 1 or i == n - 1 < period - 1
