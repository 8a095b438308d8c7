"""What a piece of work must take on a device, at the least: seconds, joules and dollars.

    seconds ≥ max(FLOPs / (chips · peak), bytes / (chips · bandwidth))

The roofline of Williams et al. 2009 (CACM 52(4)). A decoded token of each of B sequences reads
every touched weight once and every state once; for routed experts B tokens touch
E·(1 − (1 − k/E)^B) of E in expectation, at uniform routing. Peaks are dense (no sparsity) bf16;
other formats have other peaks. Not included: links between chips, activations, kernel launches.

Specifications and prices are dated inputs, not constants: pass a `Device` or `Price` of your own.
Rent moves by 2.5 times between providers of one chip, so it is a range.
"""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.models.errors import UserError, quoted
from isoflop.models.lm import ModelConfig

Number = int | float

SECONDS_PER_HOUR = 3600
OPTIMIZER_BYTES = 28  # fp32 AdamW, per weight: read weight, gradient, 2 moments; write all but one


@dataclass(frozen=True)
class Price:
    """Dollars per chip-hour on demand, or per what its name says, over providers, at a date."""

    low: float
    median: float
    high: float
    date: str
    source: str


@dataclass(frozen=True)
class Device:
    """One chip, as its maker states it: upper bounds that no measurement may exceed."""

    name: str
    flops_per_second: float  # dense bf16 matmuls
    bytes_per_second: float  # of the chip's own memory
    watts: float | None  # the board's limit; None where the maker publishes none
    announced: str
    source: str
    listed: Price | None = None  # None: no dated source here
    memory_bytes: float = 0.0  # of the chip; 0: not stated here
    link_bytes_per_second: float = 0.0  # one way, over all links to other chips; 0: none
    multiples: tuple[tuple[str, float], ...] = ()  # format → times the bf16 peak

    @property
    def price(self) -> Price:
        if self.listed is None:
            raise UserError(
                f"{self.name} has no dated price here; pass a Price of your own, or --price"
            )
        return self.listed

    def peak(self, format: str) -> float:
        """FLOPs (or integer operations) per second of dense matmuls in a format: bf16's where the
        chip has no faster unit for it.
        """
        return self.flops_per_second * dict(self.multiples).get(format, 1.0)


def flat(rate: float, date: str, source: str) -> Price:
    """One rate instead of a range, as of one provider's list or one's own contract."""
    return Price(rate, rate, rate, date, source)


_MARKET = "mercatus-ai.com/blog/cloud-gpu-pricing"
_TIERS = f"{_MARKET}: lowest and highest tier; the middle is that of the middle tier's range"
_INDEX = f"range: {_MARKET}; median of 37 providers: aimultiple.com/gpu-index"
_BOOK = "jax-ml.github.io/scaling-book, part 8"
_TPU = "docs.cloud.google.com/tpu/docs"
_NVIDIA = "NVIDIA data sheet"

A100 = Price(0.80, 1.30, 3.00, "2026-05", _TIERS)
H100 = Price(1.99, 2.95, 5.00, "2026-05", _INDEX)
H200 = Price(2.50, 4.00, 7.00, "2026-05", _TIERS)
V5E, V5P = flat(1.20, "2025-02", _BOOK), flat(4.20, "2025-02", _BOOK)

_INT8 = (("int8", 2.0),)
_FP8 = (("fp8", 2.0), ("int8", 2.0))
_FP4 = (*_FP8, ("fp4", 4.0))
_AMD = "AMD data sheet"

DEVICES = {
    device.name: device
    for device in (
        Device(
            *(
                "A100-80",
                312e12,
                2.039e12,
                400.0,
                "2020-11",
                f"{_NVIDIA}, A100 80GB SXM",
            ),
            *(A100, 80e9, 300e9, _INT8),
        ),
        Device(
            *("H100", 989e12, 3.35e12, 700.0, "2022-03", f"{_NVIDIA}, H100 SXM5"),
            *(H100, 80e9, 450e9, _FP8),
        ),
        Device(
            *(
                "H800",
                989e12,
                3.35e12,
                700.0,
                "2023-03",
                "H100; links: 2412.19437, §3.2.2",
            ),
            *(None, 80e9, 160e9, _FP8),
        ),
        Device(
            *("H200", 989e12, 4.8e12, 700.0, "2023-11", f"{_NVIDIA}, H200 SXM"),
            *(H200, 141e9, 450e9, _FP8),
        ),
        Device(
            *("B200", 2250e12, 8e12, 1000.0, "2024-03", f"{_NVIDIA}, HGX B200"),
            *(None, 180e9, 900e9, _FP4),
        ),
        Device(
            *(
                "GB200",
                2500e12,
                8e12,
                1200.0,
                "2024-03",
                f"{_NVIDIA}, GB200 NVL72, a 72nd",
            ),
            *(None, 186e9, 900e9, _FP4),
        ),
        Device(
            *("L40S", 362e12, 0.864e12, 350.0, "2023-08", f"{_NVIDIA}, L40S"),
            *(None, 48e9, 32e9, _FP8),
        ),
        Device(
            *("L4", 121e12, 0.3e12, 72.0, "2023-03", f"{_NVIDIA}, L4"),
            *(None, 24e9, 32e9, _FP8),
        ),
        Device(
            *("MI300X", 1307e12, 5.3e12, 750.0, "2023-12", f"{_AMD}, Instinct MI300X"),
            *(None, 192e9, 448e9, _FP8),
        ),
        Device(
            *("MI325X", 1307e12, 6e12, 1000.0, "2024-10", f"{_AMD}, Instinct MI325X"),
            *(None, 256e9, 448e9, _FP8),
        ),
        Device(
            *("v5e", 197e12, 0.81e12, None, "2023-08", _BOOK),
            *(V5E, 16 * 2**30, 200e9, _INT8),
        ),
        Device(
            *("v5p", 459e12, 2.765e12, None, "2023-12", f"{_TPU}/v5p"),
            *(V5P, 95 * 2**30, 600e9, _INT8),
        ),
        Device(
            *("v6e", 918e12, 1.638e12, None, "2024-05", f"{_TPU}/v6e"),
            *(None, 32 * 2**30, 400e9, _INT8),
        ),
        Device(
            *("TPU7x", 2307e12, 7.4e12, None, "2025-04", f"{_TPU}/tpu7x"),
            *(None, 192 * 2**30, 600e9, _FP8[:1]),
        ),
    )
}


def device(name: str) -> Device:
    """A row of the table. Raises UserError for a name that is not in it."""
    known = {key.lower(): key for key in DEVICES}
    if name.lower() not in known:
        raise UserError(f"there is no device {quoted(name)}; use one of {', '.join(DEVICES)}")
    return DEVICES[known[name.lower()]]


@dataclass(frozen=True)
class Work:
    """What is computed and what is moved to and from memory, in all."""

    flops: Number
    bytes: Number


@dataclass(frozen=True)
class Roofline:
    """The least time of some work on `chips` chips that share it perfectly."""

    compute_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> str:
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"


def roofline(work: Work, on: Device, chips: Number = 1) -> Roofline:
    """The least seconds of the work's FLOPs and of its bytes. Raises UserError without chips."""
    if not chips > 0:
        raise UserError(f"chips={chips} must be greater than 0")
    return Roofline(
        work.flops / (chips * on.flops_per_second),
        work.bytes / (chips * on.bytes_per_second),
    )


def decode(
    model: ModelConfig,
    context: int,
    batch: int = 1,
    weight_bytes: Number = 2,
    state_bytes: Number = 2,
) -> Work:
    """Decoding one token of each of `batch` sequences, with states made for `context` tokens.

    `weight_bytes` are those of a weight, `state_bytes` those of an element of the state: 2 for
    bf16, 1 for int8, 0.5 for int4. States are charged as read; a recurrent one is written as well.
    """
    read = weight_bytes * model.touched_params(batch)
    states = state_bytes * batch * model.state_size(context)
    return Work(model.step_cost(context, batch).flops, read + states)


def train_step(model: ModelConfig, seq_len: int, batch: int) -> Work:
    """Forward and backward (3 × the executed forward) and one pass of AdamW over fp32 weights.

    A lower bound: activations, and gradients between the passes, are not charged as traffic.
    """
    cost = model.cost(seq_len, batch)
    return Work(3 * cost.flops, OPTIMIZER_BYTES * cost.params)


def break_even_context(
    n_kv_heads: int,
    d_head: int,
    state_elements: int,
    cache_bytes: Number = 2,
    state_bytes: Number = 4,
) -> float:
    """The context, in tokens, from which an attention layer's KV cache (2·n_kv_heads·d_head
    elements a token) has more bytes than a recurrent layer's state of `state_elements`.
    """
    return state_elements * state_bytes / (2 * n_kv_heads * d_head * cache_bytes)


def joules(on: Device, seconds: Number, chips: Number = 1) -> float:
    """Energy of the chips at their boards' power limit, without hosts, network and cooling: a bound
    where `seconds` were measured, and none where they are a roofline's, which real steps exceed
    (LOG.md: up to 8 times). `serving.serve` has a
    range. Raises UserError for a device without a published power.
    """
    if on.watts is None:
        raise UserError(f"{on.name} has no published power; pass a Device with watts")
    return on.watts * seconds * chips


def dollars(price: Price, seconds: Number, chips: Number = 1) -> tuple[float, float, float]:
    """(low, median, high) rent of `chips` chips for `seconds`."""
    hours = chips * seconds / SECONDS_PER_HOUR
    return hours * price.low, hours * price.median, hours * price.high
