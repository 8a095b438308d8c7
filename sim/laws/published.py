"""Published laws with the numbers that were printed, to draw beside one's own and to plan with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isoflop.sim.laws.forms import Chinchilla, Coupled, PowerLaw
from isoflop.sim.laws.isoflop import Allocation
from isoflop.sim.laws.law import Law
from isoflop.sim.laws.saturating import Repeated, Routed
from isoflop.sim.laws.sparse import Sparse


@dataclass(frozen=True)
class Published:
    """A law as printed, its source, and what it counts: which N, and the loss on which data. Laws
    that count differently cannot be compared.
    """

    law: Law | Allocation
    source: str
    counts: str


def _porian(a: float, coefficient: float) -> Allocation:
    none = np.zeros(0)
    return Allocation(a, coefficient, (math.nan, math.nan), none, none, ())


# ln E, ln A and ln B are what the paper's fit prints
_MUENNIGHOFF = Repeated(
    E=math.exp(0.6254804),
    A=math.exp(6.255414),
    B=math.exp(7.3049974),
    alpha=0.3526596,
    beta=0.3526596,
    R_N=5.309743,
    R_D=15.387756,
)
_PF_DAY = 1e15 * 86_400  # FLOPs
_KAPLAN = "Kaplan et al. 2020, arXiv 2001.08361"
_CLARK = "Clark et al. 2022, arXiv 2202.01169, table 3"
_PORIAN = "Porian et al. 2024, arXiv 2406.19146; RefinedWeb, repository fit"
_OWT = "N without embeddings; nats per token of WebText2"
_HOFFMANN = "all parameters; MassiveText"

PUBLISHED: dict[str, Published] = {
    "kaplan-n": Published(PowerLaw(A=8.8e13**0.076, alpha=0.076), f"{_KAPLAN}, eq. 1.1", _OWT),
    "kaplan-d": Published(PowerLaw(A=5.4e13**0.095, alpha=0.095), f"{_KAPLAN}, eq. 1.2", _OWT),
    "kaplan-c": Published(
        PowerLaw(A=(3.1e8 * _PF_DAY) ** 0.05, alpha=0.05), f"{_KAPLAN}, eq. 1.3, C in FLOPs", _OWT
    ),
    "kaplan": Published(
        Coupled(0.0, 6.4e13 ** (0.076 / 0.103), 1.8e13, 0.076 / 0.103, 1.0, 0.103),
        f"{_KAPLAN}, eq. 1.5 and table 2",
        _OWT,
    ),
    "chinchilla-printed": Published(
        Chinchilla(1.69, 406.4, 410.7, 0.34, 0.28),
        "Hoffmann et al. 2022, arXiv 2203.15556, appendix D.2, rounded as printed",
        _HOFFMANN,
    ),
    "chinchilla-unrounded": Published(
        Chinchilla(1.6934, 406.4, 410.7, 0.3392, 0.2849),
        "Hoffmann et al. 2022, TeX source, quoted in Besiroglu et al. 2024, arXiv 2404.10102",
        _HOFFMANN,
    ),
    "sardana": Published(
        Chinchilla(1.69, 406.4, 410.7, 0.336, 0.283),
        "Hoffmann's law as Sardana et al. 2024, arXiv 2401.00448, take it: gives their figure 1",
        _HOFFMANN,
    ),
    "chinchilla-corrected": Published(
        Chinchilla(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
        "Besiroglu et al. 2024, arXiv 2404.10102, refit of the reconstructed runs",
        _HOFFMANN,
    ),
    "gemstones": Published(
        Chinchilla(math.exp(0.7623), math.exp(5.361), math.exp(15.416), 0.2929, 0.7129),
        "McLeish et al. 2025, arXiv 2502.06857; hot runs, Huber 1e-3",
        "active parameters",
    ),
    "muennighoff": Published(
        _MUENNIGHOFF,
        "Muennighoff et al. 2023, arXiv 2305.16264, appendix A",
        "all parameters; C4",
    ),
    "clark-s-base": Published(
        Routed(-0.082, -0.108, 0.009, 1.104, 1.847, 314.478), _CLARK, "dense parameters"
    ),
    "clark-rl-r": Published(
        Routed(-0.083, -0.126, 0.012, 1.111, 1.880, 469.982), _CLARK, "dense parameters"
    ),
    "clark-hash": Published(
        Routed(-0.087, -0.136, 0.012, 1.157, 4.175, 477.741), _CLARK, "dense parameters"
    ),
    "frantar-t5": Published(
        Sparse(16.8, 0.722, 45.0, 0.245, 6.9e8, 0.203, 0.651),
        "Frantar et al. 2023, arXiv 2309.08520; T5 on C4, rounded as printed",
        "weights that stay, without embeddings; tokens seen; share of weights that stay",
    ),
    "porian-kaplan": Published(_porian(0.8338, 4.5098e-08), _PORIAN, "without embeddings and head"),
    "porian-head": Published(_porian(0.7009, 1.6106e-05), _PORIAN, "with head"),
    "porian-warmup": Published(_porian(0.6035, 1.3422e-03), _PORIAN, "with head, short warm-up"),
    "porian-decay": Published(_porian(0.5714, 4.7814e-03), _PORIAN, "with head, matched decay"),
    "porian-tuned": Published(
        _porian(0.4970, 1.1820e-01), _PORIAN, "with head, tuned batch and lr"
    ),
}
