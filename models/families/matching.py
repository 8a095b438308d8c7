"""The rule by which architectures are made comparable: equal width, equal depth, equal parameters.

A layer has 12·d² parameters whatever it is made of, as attention's 4·d² and a SwiGLU of 8·d². Where
a mixer has more or fewer, the SwiGLU beside it is narrower or wider; where experts stand in its
place, the 12·d² are those that a token touches. So families agree in active non-embedding
parameters within 3 %, from a width of 32 on; of others, `unmatched` says by how much they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from isoflop.models.base import MixerConfig
from isoflop.models.errors import UserError
from isoflop.models.lm import LAYERS_MAX, Block, ModelConfig
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.moe import Moe

D_HEAD = 16  # small heads, so that small models have several
ASPECT = 32  # width / depth
TOLERANCE = 0.03  # by which families' active non-embedding parameters may differ

Experts = Callable[[int], Moe]  # of a d_expert


def depth_for(width: int) -> int:
    """Layers at the common aspect ratio, at least 2."""
    return max(2, round(width / ASPECT))


def heads(width: int) -> int:
    """Heads of `D_HEAD` channels, at least 1."""
    return max(1, width // D_HEAD)


def spare(width: int, mixer: MixerConfig) -> int:
    """What the mixer leaves of a layer's 12·d² parameters. Raises UserError for width < 1."""
    if width < 1:
        raise UserError(f"width={width} must be at least 1; choose a width of at least 32")
    return 12 * width**2 - mixer.cost(width, 1).params


def channels(size: float) -> int:
    """`size` rounded to a whole number of channels: from 512 on to a multiple of 8, which keeps
    families within `TOLERANCE` and saves a GPU from padding the operands of every matmul.
    """
    step = 8 if size >= 512 else 1
    return max(1, step * round(size / step))


def with_mlp(width: int, mixer: MixerConfig) -> Block:
    """The mixer and the SwiGLU that brings the layer to 12·d² parameters.

    Raises UserError if the mixer leaves none for a SwiGLU of one channel.
    """
    left = spare(width, mixer)
    if left < 3 * width:
        raise UserError(
            f"a layer of width={width} has {12 * width**2} parameters, too few for {mixer.kind} of "
            f"{12 * width**2 - left} beside an MLP; choose a width of at least 32, or a smaller "
            f"mixer"
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
    """The model whose i-th of n layers is `layer(i, n)`; without a depth, `depth_for(width)`.

    Raises UserError for a depth outside 1 … LAYERS_MAX.
    """
    depth = depth_for(width) if depth is None else depth
    if not 1 <= depth <= LAYERS_MAX:
        raise UserError(
            f"depth={depth} (of width={width}) must be between 1 and {LAYERS_MAX} layers; "
            f"choose another depth, or a smaller width"
        )
    blocks = tuple(layer(i, depth) for i in range(depth))
    return ModelConfig(d_model=width, vocab_size=vocab_size, blocks=blocks)


def uniform(width: int, depth: int | None, vocab_size: int, block: Block) -> ModelConfig:
    """The model whose layers are all `block`."""
    return layered(width, depth, vocab_size, lambda i, n: block)


def unmatched(models: Iterable[tuple[str, ModelConfig]]) -> str | None:
    """The worst pair of (family, model) at one width and depth, in a sentence.

    None where no pair differs by more than TOLERANCE in active non-embedding parameters.
    """
    sizes: dict[tuple[int, int], dict[str, list[int]]] = {}
    for family, model in set(models):
        shape = model.d_model, len(model.blocks)
        params = model.cost(1).active_params - model.embedding_params
        sizes.setdefault(shape, {}).setdefault(family, []).append(params)
    pairs = [
        (max(big) / min(small), shape, name, max(big), other, min(small))
        for shape, families in sizes.items()
        for name, big in families.items()
        for other, small in families.items()
        if name != other and max(big) > (1 + TOLERANCE) * min(small)
    ]
    if not pairs:
        return None
    ratio, (width, depth), name, big, other, small = max(pairs)
    shapes = len({shape for _, shape, *_ in pairs})
    return (
        f"{name} and {other} are not matched in size: at width {width} and depth {depth} they have "
        f"{big:,} and {small:,} active non-embedding parameters, {ratio - 1:.0%} apart"
        + (f" (and others at {shapes} sizes in all)" if shapes > 1 else "")
        + f", where at most {TOLERANCE:.0%} is fair; size the MLPs with "
        "isoflop.models.families.matching.with_mlp"
    )


def is_last(i: int, n: int, period: int) -> bool:
    """Whether layer i of n is the last of every `period`, or the last of a shallower model."""
    return i % period == period - 1 or i == n - 1 < period - 1
