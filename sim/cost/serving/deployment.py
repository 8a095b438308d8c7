"""What is served and to whom: a model on chips, in formats, and the traffic it gets.

A `Deployment` is one replica: `count` chips that hold one copy of the model. Attention and other
mixers are split over `tensor` chips and repeated over `data` groups of them, each with its own
share of the sequences; experts are split over all chips, whole over `expert` groups. That is how
vLLM, SGLang and TensorRT-LLM name it. Not included: pipeline stages, prompts and answers on
different chips, weights that are offloaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from isoflop.models.errors import UserError, quoted
from isoflop.models.lm import ModelConfig
from isoflop.sim.cost.hardware import Device, Price

BITS = {  # of a stored number, its share of the scales included
    "fp32": 32.0,
    "bf16": 16.0,
    "fp16": 16.0,
    "fp8": 8.0,
    "int8": 8.0,
    "fp4": 4.5,  # NVFP4: an fp8 scale for 16 numbers
    "mxfp4": 4.25,  # OCP microscaling: 8 bits for 32 numbers
    "int4": 4.5,  # groups of 32 with a bf16 scale
}
ACTIVATIONS = ("bf16", "fp16", "fp32", "fp8", "int8", "fp4")
ENGINES = ("vllm", "sglang", "trtllm", "native")
MOST_CHIPS = 100_000


@dataclass(frozen=True)
class Speculation:
    """A draft proposes `tokens` each turn, of which each is accepted with probability `acceptance`.

    Tokens a turn: (1 − a^(n+1)) / (1 − a) (Leviathan et al. 2022, 2211.17192, eq. 1). The draft is
    a model on the same chips in the same formats, or costs nothing (n-grams of the prompt).
    """

    acceptance: float
    tokens: int = 4
    draft: ModelConfig | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.acceptance <= 1 and 1 <= self.tokens <= 64):
            raise UserError(
                f"speculation needs an acceptance={self.acceptance:g} in [0, 1] and from 1 to 64 "
                f"tokens a turn, and has {self.tokens}; correct it"
            )

    @property
    def per_turn(self) -> float:
        """Tokens that a turn gives, in expectation."""
        a, n = self.acceptance, self.tokens
        return n + 1.0 if a == 1 else (1 - a ** (n + 1)) / (1 - a)


@dataclass(frozen=True)
class Deployment:
    """One replica. Raises UserError for parallelism or formats that cannot be, and for a model that
    reads neighbours.
    """

    model: ModelConfig
    device: Device
    count: int = 1  # chips
    tensor: int = 0  # chips that share a mixer; 0: all that `data` leaves
    data: int = 1  # groups of chips with attention of their own
    expert: int = 1  # groups of chips among which whole experts are split
    weights: str = "bf16"
    activations: str | None = None  # None: the weights' where the chip multiplies them, else bf16
    cache: str | None = None  # None: fp8 beside fp8 and fp4 weights, else bf16
    engine: str = "vllm"
    price: Price | None = None  # of a chip-hour; None: the device's
    speculation: Speculation | None = None
    extra_params: int = 0  # resident beside the model's own
    name: str = field(default="the model", compare=False)

    def __post_init__(self) -> None:
        for name, known in (
            ("weights", BITS),
            ("cache", BITS),
            ("activations", ACTIVATIONS),
        ):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise UserError(
                    f"{name}={quoted(value)} is no format; use one of {', '.join(known)}"
                )
        if self.engine not in ENGINES:
            raise UserError(
                f"engine={quoted(self.engine)} is not known; use one of {', '.join(ENGINES)}"
            )
        for name in ("count", "data", "expert"):
            if not 1 <= getattr(self, name) <= MOST_CHIPS:
                raise UserError(
                    f"{name}={getattr(self, name)} must be from 1 to {MOST_CHIPS}; correct it"
                )
        tensor = self.tensor or max(1, self.count // self.data)
        object.__setattr__(self, "tensor", tensor)
        if tensor < 1 or tensor * self.data != self.count:
            raise UserError(
                f"tensor={tensor} · data={self.data} must be the {self.count} chips; change one "
                "of the three"
            )
        if self.count % self.expert:
            raise UserError(
                f"expert={self.expert} must divide the {self.count} chips; change one of both"
            )
        if self.model.retrieval is not None:
            raise UserError(
                f"{self.name} reads neighbours, whose search and encoder this clock does not have; "
                "serve a model without them"
            )
        for i, block in enumerate(self.model.blocks):
            heads = getattr(block.mixer, "n_heads", None)
            if heads is not None and heads % tensor:
                raise UserError(
                    f"tensor={tensor} must divide the {heads} heads of {self.name}'s block {i}; "
                    "use fewer, and more data groups"
                )
            experts = getattr(block.channel, "n_experts", None)
            if experts is not None and experts % self.expert:
                raise UserError(
                    f"expert={self.expert} must divide the {experts} experts of {self.name}'s "
                    f"block {i}; change it"
                )
        if not self.device.memory_bytes > 0:
            raise UserError(
                f"{self.device.name} has no memory size here; pass a Device with memory_bytes"
            )
        if self.count > 1 and not self.device.link_bytes_per_second > 0:
            raise UserError(
                f"{self.device.name} has no link here to share a model over; use one chip, or pass "
                "a Device with link_bytes_per_second"
            )

    @property
    def multiplied(self) -> str:
        """The format in which weights and activations are multiplied."""
        if self.activations is not None:
            return self.activations
        fast = dict(self.device.multiples)
        return self.weights if self.weights in ("fp8", "fp4") and self.weights in fast else "bf16"

    @property
    def weight_bytes(self) -> float:
        return BITS[self.weights] / 8

    @property
    def cache_bytes(self) -> float:
        return BITS[self.cache or ("fp8" if self.weights in ("fp8", "fp4") else "bf16")] / 8


@dataclass(frozen=True)
class Workload:
    """Requests of `prompt` tokens and `answer` tokens, by so many users or at a rate.

    With `concurrency`, each of so many users sends its next request when it has the last answer
    (a closed loop, as benchmarks have it); with `rate`, requests come at random, so many a second
    on average (Poisson). `cached` is the share of the prompt whose state is still there from an
    earlier request. `p95` is what 95 % of whole answers should take at most, in seconds.
    """

    prompt: int
    answer: int
    concurrency: int | None = None
    rate: float | None = None
    cached: float = 0.0
    p95: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "answer"):
            if not 1 <= getattr(self, name) <= 10_000_000:
                raise UserError(f"{name}={getattr(self, name)} must be from 1 to 10,000,000 tokens")
        if (self.concurrency is None) == (self.rate is None):
            raise UserError("a workload has a concurrency or a rate (requests a second): give one")
        if self.concurrency is not None and not 1 <= self.concurrency <= 1_000_000:
            raise UserError(f"concurrency={self.concurrency} must be from 1 to 1,000,000")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UserError(f"rate={self.rate:g} must be above 0 requests a second")
        if not 0 <= self.cached < 1:
            raise UserError(f"cached={self.cached:g} must be a share from 0 to below 1")
        if self.p95 is not None and not 0 < self.p95 < math.inf:
            raise UserError(f"p95={self.p95:g} must be above 0 seconds")

    @property
    def read(self) -> int:
        """Tokens of a prompt that are computed."""
        return max(1, round(self.prompt * (1 - self.cached)))
