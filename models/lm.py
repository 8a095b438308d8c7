"""A language model is an embedding, a tuple of pre-norm residual blocks, a norm and a head.

x ← x + mixer(norm(x));  x ← x + channel(norm(x))        for each block

Beside x, mixers may leave named arrays for the layers above (RWKV-7's first values).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from pydantic import PositiveFloat, PositiveInt, model_validator

from isoflop.models.base import (
    AnyChannel,
    AnyMixer,
    Aux,
    Config,
    Cost,
    CrossLayerState,
    Embedding,
    Init,
    Retrieval,
    Sizes,
    State,
)
from isoflop.models.errors import UserError
from isoflop.models.generation import Sampling, Written, generate
from isoflop.models.kernels.platforms import full_precision
from isoflop.models.layers import BATCH, LayerNorm, Linear, RMSNorm, sharding_constraint
from isoflop.models.packing import Lengths, Position, positions

LAYERS_MAX = 4096  # of a model, each traced on its own
PARAMS_MAX = 2**43  # of a model: several times the largest there is
GREEDY = Sampling()
SCAN_FROM = 16  # repeats of the block pattern from which it is scanned instead of unrolled


class Block(Config):
    """Norm and mixer, then norm and channel mixer; either may be absent, not both."""

    mixer: AnyMixer | None = None
    channel: AnyChannel | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Block:
        if self.mixer is None and self.channel is None:
            raise ValueError("a block needs a mixer or a channel mixer; both are missing")
        return self

    @property
    def parts(self) -> tuple[Any, ...]:
        return tuple(part for part in (self.mixer, self.channel) if part is not None)


def tile(repeats: int, *pattern: Block) -> tuple[Block, ...]:
    """The pattern, repeated: tile(2, a, b) is (a, b, a, b)."""
    return pattern * repeats


class ModelConfig(Sizes):
    d_model: PositiveInt
    vocab_size: PositiveInt
    blocks: tuple[Block, ...]
    tie_embeddings: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: PositiveFloat = 1e-6
    embed_norm: bool = False  # a norm between the embedding and the first block
    embed_scale: PositiveFloat = 1.0  # multiplies what the embedding gives
    branch_scale: PositiveFloat = 1.0  # multiplies what a block adds to the residual stream
    logit_cap: PositiveFloat | None = None  # logits ← cap · tanh(logits / cap)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; weights are fp32
    remat: bool | None = None  # keep only blocks' inputs for the backward pass; None: if scanned

    @model_validator(mode="after")
    def _blocks_fit(self) -> ModelConfig:
        if not 1 <= len(self.blocks) <= LAYERS_MAX:
            raise ValueError(
                f"a model needs at least one block and at most {LAYERS_MAX}; got {len(self.blocks)}"
            )
        for part in {part for block in self.blocks for part in block.parts}:
            part.check(self.d_model)
        kinds = {m.retrieval for block in self.blocks if (m := block.mixer) and m.retrieval}
        if len(kinds) > 1:
            raise UserError(
                "all layers of a model read the same neighbours, and chunk, nearest and length are "
                f"{' and '.join(str(tuple(kind)) for kind in sorted(kinds))}; give them the same"
            )
        written = {"neighbours"} if kinds else set[str]()  # the model leaves them itself
        for i, mixer in enumerate(block.mixer for block in self.blocks):
            if mixer is not None:
                if missing := mixer.reads - written:
                    raise UserError(
                        f"the {mixer.kind} of block {i} needs the {min(missing)} of a block below, "
                        "and none leaves them; let an earlier one do so"
                    )
                written |= mixer.writes
        if (params := self.cost(1).params) > PARAMS_MAX:
            raise UserError(
                f"a model of {params:.3g} parameters must have at most 2^43; make something smaller"
            )
        return self

    def build(self, *, init: Init) -> LM:
        return LM(self, init=init)

    def abstract(self) -> LM:
        """The model with shapes in the place of arrays: nothing is allocated or drawn."""
        return nnx.eval_shape(lambda: self.build(init=Init(None)))

    def cost(self, seq_len: int, batch: int = 1) -> Cost:
        """Forward pass over `batch` sequences; parameters are counted once.

        The backward pass takes twice that. With `remat` a block's forward pass runs again in it, in
        exchange for memory: that is time, and no count of work includes it.
        """
        tokens = batch * seq_len
        parts = [
            _times(block.mixer.cost(self.d_model, seq_len), batch)
            for block in self.blocks
            if block.mixer is not None
        ] + [block.channel.cost(self.d_model, tokens) for block in self.blocks if block.channel]
        if self.retrieval is not None:
            parts.append(_times(self.read_cost, batch * (seq_len // self.retrieval.chunk)))
        return sum(parts, self.ends(tokens))

    @property
    def retrieval(self) -> Retrieval | None:
        """The neighbours that it reads beside a row of tokens; None: none."""
        found = (block.mixer.retrieval for block in self.blocks if block.mixer is not None)
        return next((one for one in found if one is not None), None)

    @property
    def read_cost(self) -> Cost:
        """To embed and read the neighbours of one chunk: `cost` has it for each, `step_cost` not,
        as no parameters.
        """
        mixers = [block.mixer for block in self.blocks if block.mixer is not None]
        tokens = 0 if self.retrieval is None else self.retrieval.tokens
        return sum(
            (mixer.read_cost(self.d_model) for mixer in mixers),
            Cost(elementwise_flops=tokens * self._embed_flops),
        )

    def step_cost(self, context: int, batch: int = 1) -> Cost:
        """One decoded token of each of `batch` sequences, against states made for `context`."""
        parts = [
            _times(block.mixer.step_cost(self.d_model, context), batch)
            for block in self.blocks
            if block.mixer is not None
        ] + [block.channel.cost(self.d_model, batch) for block in self.blocks if block.channel]
        return sum(parts, self.ends(batch))

    def state_size(self, context: int) -> int:
        """Elements of one sequence's decoding state, all layers."""
        return sum(
            block.mixer.state_size(self.d_model, context)
            for block in self.blocks
            if block.mixer is not None
        )

    def max_tokens(self, context: int) -> int | None:
        """Tokens that a state made for `context` tokens can take; None: any number."""
        each = [block.mixer.max_tokens(context) for block in self.blocks if block.mixer]
        return min((most for most in each if most is not None), default=None)

    @property
    def causal(self) -> bool:
        """Whether no token's logits depend on a later token: else a loss is no language model's."""
        return all(block.channel is None or block.channel.causal for block in self.blocks)

    @property
    def micro_batch_invariant(self) -> bool:
        """Whether the loss of a batch, and its gradient, are the means of its micro-batches'."""
        return all(
            block.channel is None or block.channel.micro_batch_invariant for block in self.blocks
        )

    def touched_params(self, tokens: int) -> float:
        """Weights that a decoded token of each of `tokens` sequences reads, in expectation.

        An embedding that is no head too is looked up, not read: one row of it for each token.
        """
        table = 0 if self.tie_embeddings else self.vocab_size * self.d_model
        idle = sum(
            block.channel.cost(self.d_model, 1).params
            - block.channel.touched_params(self.d_model, tokens)
            for block in self.blocks
            if block.channel is not None
        )
        return self.cost(1).params - table + min(tokens * self.d_model, table) - idle

    @property
    def embedding_params(self) -> int:
        """Embedding and head: what 'non-embedding' counts leave out."""
        return self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)

    def ends(self, tokens: int) -> Cost:
        """Embedding (a look-up and its scale), norms, residual sums and head."""
        parts = sum(len(block.parts) for block in self.blocks)
        norms, d = 1 + self.embed_norm + parts, self.d_model
        vectors, norm_flops = {"layer": (2, LayerNorm.flops), "rms": (1, RMSNorm.flops)}[self.norm]
        params = self.embedding_params + norms * vectors * d
        cap = 3 * self.vocab_size * (self.logit_cap is not None)
        return Cost(
            matmul_flops=2 * tokens * d * self.vocab_size,
            elementwise_flops=tokens * ((1 + parts) * d + norms * norm_flops(d) + cap),
            params=params,
            active_params=params,
        )

    @property
    def _embed_flops(self) -> int:
        """Elementwise, of one token: the embedding's scale and norm."""
        norm = {"layer": LayerNorm.flops, "rms": RMSNorm.flops}[self.norm]
        return self.d_model + self.embed_norm * norm(self.d_model)


def _times(cost: Cost, batch: int) -> Cost:
    return Cost(
        batch * cost.matmul_flops, batch * cost.elementwise_flops, cost.params, cost.active_params
    )


def _norm(model: ModelConfig, init: Init) -> RMSNorm | LayerNorm:
    kind = {"rms": RMSNorm, "layer": LayerNorm}[model.norm]
    return kind(model.d_model, model.norm_eps, init=init)


class BlockModule(nnx.Module):
    def __init__(self, config: Block, model: ModelConfig, *, init: Init):
        mixer, channel, d = config.mixer, config.channel, model.d_model
        self.mixer_norm = _norm(model, init) if mixer else None
        self.mixer = mixer.build(d, init=init) if mixer else None
        self.channel_norm = _norm(model, init) if channel else None
        self.channel = channel.build(d, init=init) if channel else None
        self.scale = model.branch_scale

    def __call__(
        self, x: Float[Array, "b t d"], cross: CrossLayerState, position: Position = None
    ) -> tuple[Float[Array, "b t d"], CrossLayerState, Aux]:
        if self.mixer is not None and self.mixer_norm is not None:
            y, cross = self.mixer.forward(self.mixer_norm(x), cross, position)
            x = sharding_constraint(self._add(x, y), BATCH)
        x, aux = self._channel(x)
        return sharding_constraint(x, BATCH), cross, aux

    def step(
        self, state: State, x: Float[Array, "b d"], cross: CrossLayerState
    ) -> tuple[State, Float[Array, "b d"], CrossLayerState]:
        if self.mixer is not None and self.mixer_norm is not None:
            state, y, cross = self.mixer.forward_step(state, self.mixer_norm(x), cross)
            x = self._add(x, y)
        return state, self._channel(x[:, None])[0][:, 0], cross

    def prefill(
        self, state: State, x: Float[Array, "b t d"], cross: CrossLayerState, lengths: Lengths
    ) -> tuple[State, Float[Array, "b t d"], CrossLayerState]:
        if self.mixer is not None and self.mixer_norm is not None:
            state, y, cross = self.mixer.forward_prefill(self.mixer_norm(x), state, cross, lengths)
            x = sharding_constraint(self._add(x, y), BATCH)
        if self.channel is not None and self.channel_norm is not None:
            x = self._add(x, self.channel.prefill(self.channel_norm(x), lengths))
        return state, sharding_constraint(x, BATCH), cross

    def _channel(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Aux]:
        if self.channel is None or self.channel_norm is None:
            return x, {}
        y, aux = self.channel(self.channel_norm(x))
        return self._add(x, y), aux

    def _add(self, x: Float[Array, "*batch d"], y: Float[Array, "*batch d"]) -> Array:
        return x + y if self.scale == 1.0 else x + self.scale * y


@partial(jax.jit, static_argnums=(0, 1))
def _call(method: str, graph: Any, params: Any, *args: Any) -> Any:
    """A block's method; blocks that are equal are traced and lowered once, not once a layer."""
    return getattr(nnx.merge(graph, params), method)(*args)


class LM(nnx.Module):
    def __init__(self, config: ModelConfig, *, init: Init):
        self.config = config
        d, v = config.d_model, config.vocab_size
        scale = d**-0.5 if config.tie_embeddings else 1.0
        self.embed = Embedding(init.normal((v, d), scale), axes="wd")
        self.blocks = nnx.List([BlockModule(block, config, init=init) for block in config.blocks])
        self.embed_norm = _norm(config, init) if config.embed_norm else None
        self.norm = _norm(config, init)
        self.head = None if config.tie_embeddings else Linear(d, v, axes="dw", init=init)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        segment_ids: Int[Array, "b t"] | None = None,
        neighbours: Int[Array, "b u"] | None = None,
    ) -> tuple[Float[Array, "b t w"], Aux]:
        """Logits (fp32) and the channel mixers' scalars, averaged over layers that report them.

        Each run of equal `segment_ids` is computed as if it stood alone; a loss over packed rows
        must leave out the last token of a segment, whose target is another segment's. `neighbours`
        are those of each whole chunk in turn, where the model reads any (`config.retrieval`).
        Raises UserError for neighbours that it does not read, or not such ones.
        """
        hidden, aux = self.hidden(tokens, segment_ids, neighbours)
        return self.logits(hidden), aux

    @full_precision
    def hidden(
        self,
        tokens: Int[Array, "b t"],
        segment_ids: Int[Array, "b t"] | None = None,
        neighbours: Int[Array, "b u"] | None = None,
    ) -> tuple[Float[Array, "b t d"], Aux]:
        """The normed activations that the head reads."""
        position = None if segment_ids is None else positions(segment_ids)
        cross = self._beside(tokens, segment_ids, neighbours)
        x = sharding_constraint(self._embed(tokens), BATCH)
        period = _period(self.config.blocks)
        if len(self.config.blocks) // period < SCAN_FROM:
            aux = []
            run = jax.checkpoint(_call, static_argnums=(0, 1)) if self.config.remat else _call
            for block in self.blocks:
                x, cross, scalars = run("__call__", *nnx.split(block), x, cross, position)
                aux.append(scalars)
        else:
            x, aux = self._scan(x, cross, position, period)
        return self.norm(x), _mean(aux)

    def _beside(
        self, tokens: Int[Array, "b t"], segment_ids: Any, neighbours: Any
    ) -> CrossLayerState:
        """What the blocks find beside the row: its neighbours' embeddings by chunk, if any."""
        retrieval = self.config.retrieval
        want = retrieval and retrieval.beside(tokens.shape[1])
        given = None if neighbours is None else neighbours.shape[1]
        if want != given:
            raise UserError(
                f"rows of {tokens.shape[1]} tokens are read with {want or 'no'} tokens of "
                f"neighbours by this model, and {given or 'none'} are given; take the batches of "
                f"the data that it is trained on"
            )
        if retrieval is None:
            return {}
        if segment_ids is not None:
            raise UserError("packed rows have no neighbours; give each segment a row of its own")
        rows = neighbours.reshape(len(tokens), -1, retrieval.tokens)
        return {"neighbours": self._embed(rows)}

    def _scan(
        self, x: Float[Array, "b t d"], beside: CrossLayerState, position: Position, period: int
    ) -> tuple[Float[Array, "b t d"], list]:
        """One compiled pattern for any depth: the repeats' parameters are stacked on the fly."""
        graph = [nnx.split(block)[0] for block in self.blocks[:period]]
        states = [nnx.split(block)[1] for block in self.blocks]
        repeats = [states[i : i + period] for i in range(0, len(states), period)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *repeats)

        def body(x, states):
            aux, cross = [], beside  # the first repeat needs nothing else, so none does
            for graphdef, state in zip(graph, states, strict=True):
                x, cross, scalars = _call("__call__", graphdef, state, x, cross, position)
                aux.append(scalars)
            return x, aux

        keep = self.config.remat is False
        return jax.lax.scan(body if keep else jax.checkpoint(body), x, stacked)

    @full_precision
    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch w"]:
        if self.head is None:
            logits = hidden @ self.embed[...].T.astype(hidden.dtype)
        else:
            logits = self.head(hidden)
        logits, cap = logits.astype(jnp.float32), self.config.logit_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        table = sharding_constraint(self.embed[...], "tensor")
        x = (table[tokens] * self.config.embed_scale).astype(self.config.dtype)
        return x if self.embed_norm is None else self.embed_norm(x)

    def init_state(self, batch: int, context: int) -> list[State]:
        """The state before any token, for `config.max_tokens(context)` of each sequence."""
        return [
            block.mixer.init_state(batch, context, self.config.dtype) if block.mixer else ()
            for block in self.blocks
        ]

    @full_precision
    def prefill(
        self,
        state: list[State],
        tokens: Int[Array, "b t"],
        lengths: Int[Array, " b"] | None = None,
        every: bool = False,
    ) -> tuple[list[State], Float[Array, "b w"] | Float[Array, "b t w"]]:
        """Read prompts at once, after what the state has taken: the state after them, and the
        logits of each one's last token, or those of `every` token.

        Row i has lengths[i] tokens at the left (None: all); the rest is padding, whatever tokens
        stand there, and changes nothing. What it and a row without tokens give means nothing.
        Raises UserError and gives NaN as `step` does.
        """
        self._check_room(state, tokens.shape[1] if lengths is None else lengths)
        x, cross = self._embed(tokens), CrossLayerState()
        after = []
        for block, before in zip(self.blocks, state, strict=True):
            before, x, cross = _call("prefill", *nnx.split(block), before, x, cross, lengths)
            after.append(before)
        if not every:
            x = x[jnp.arange(len(x)), -1 if lengths is None else lengths - 1]
        return after, self.logits(self.norm(x))

    @full_precision
    def read(self, state: list[State], neighbours: Int[Array, "b s"]) -> list[State]:
        """The state with the neighbours of the chunk that the next token of each sequence ends:
        it and the following ones see them, until the next chunk's are read. Where they are not
        read in time, `step` and `prefill` raise UserError or give NaN.

        Raises UserError, where that is known, if a sequence's next token ends no chunk.
        """
        retrieval, found = self.config.retrieval, self._embed(neighbours)
        if retrieval is None or neighbours.shape[1] != retrieval.tokens:
            raise UserError(
                f"this model reads {'no' if retrieval is None else retrieval.tokens} tokens of "
                f"neighbours for a chunk, and {neighbours.shape[1]} are given; give as many"
            )
        return [
            block.mixer.read(before, found) if block.mixer else before
            for block, before in zip(self.blocks, state, strict=True)
        ]

    @full_precision
    def step(
        self, state: list[State], tokens: Int[Array, " b"]
    ) -> tuple[list[State], Float[Array, "b w"]]:
        """Decode one token of each sequence: the next state and the next token's logits.

        Beyond what the state can take (`config.max_tokens`), a sequence's logits are NaN inside a
        compiled program; outside of one, where that is seen beforehand, it is a UserError.
        """
        self._check_room(state, 1)
        x, cross = self._embed(tokens), CrossLayerState()
        after = []
        for block, before in zip(self.blocks, state, strict=True):
            before, x, cross = _call("step", *nnx.split(block), before, x, cross)
            after.append(before)
        return after, self.logits(self.norm(x))

    def generate(
        self,
        tokens: Int[Array, "b t"],
        count: int,
        lengths: Int[Array, " b"] | None = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        state: list[State] | None = None,
    ) -> Written:
        """At most `count` tokens after each prompt, padded as for `prefill`: one compiled program
        that reads them at once and then decodes. Without a `state` one is made that just fits.
        Raises UserError for a sampling that is none, and as `step` does for a state without room.
        """
        sampling.check(self.config.vocab_size)
        if count < 1 or tokens.shape[1] < 1:
            raise UserError("writing needs prompts of at least one token, and one to write")
        if state is None:
            state = self.init_state(len(tokens), tokens.shape[1] + count - 1)
        self._check_room(state, count - 1 + (tokens.shape[1] if lengths is None else lengths))
        key = jax.random.key(seed)
        return generate(*nnx.split(self), state, tokens, lengths, count, sampling, key)

    def _check_room(self, state: list[State], tokens: int | Int[Array, " b"]) -> None:
        """Raise UserError if a sequence's state cannot take as many tokens, where that is known."""
        for i, (block, before) in enumerate(zip(self.blocks, state, strict=True)):
            room = block.mixer.room(before) if block.mixer else None
            if room is None or isinstance(tokens > room, jax.core.Tracer):
                continue
            if (tokens > room).any():
                kind, most = type(block.mixer).__name__, int(room[(tokens - room).argmax()])
                takes = f"takes {most} tokens more" if most > 0 else "has taken every token"
                last = "of the context that it was made for; init_state for a longer context"
                if (mixer := self.config.blocks[i].mixer) and mixer.retrieval is not None:
                    last = "before a chunk's neighbours are read; read them first"
                raise UserError(f"the decoding state of block {i} ({kind}) {takes} {last}")


def _period(blocks: tuple[Block, ...]) -> int:
    """Length of the shortest pattern that, repeated, gives `blocks`."""
    n = len(blocks)
    return next(p for p in range(1, n + 1) if n % p == 0 and blocks == blocks[:p] * (n // p))


def _mean(aux: list[Aux]) -> Aux:
    names = sorted({name for scalars in aux for name in scalars})
    return {
        name: jnp.mean(jnp.stack([jnp.mean(a[name]) for a in aux if name in a])) for name in names
    }


def round_to(value: float, multiple: int) -> int:
    """The nearest positive multiple."""
    return max(multiple, multiple * math.floor(value / multiple + 0.5))
