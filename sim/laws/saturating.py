"""Two laws with a third axis that saturates: routed experts, and repeated tokens.

    Routed     log L = a log N + b log Ê + c log N log Ê + d   Clark 2202.01169, eq. 1
    Repeated   L = E + A / N′^α + B / D′^β                     Muennighoff 2305.16264, eq. 5-6

Ê, N′ and D′ are effective values: what many experts, and sizes and tokens beyond what the unique
data call for, are worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from isoflop.sim.laws.fit import Fittable
from isoflop.sim.laws.law import Value, asymptote_of, boxed, grid, starts_nd
from isoflop.sim.laws.resample import Floats, Form


@dataclass(frozen=True)
class Routed(Fittable):
    """log10 L = a log10 N + b log10 Ê + c log10 N · log10 Ê + d (Clark et al. 2022, eq. 1).

    N counts the dense parameters, `experts` the routed experts (1 is dense), and Ê saturates:
    1/Ê = 1/(experts − 1 + (1/E_start − 1/E_max)^−1) + 1/E_max. E_start and E_max are loosely
    identified; a to d are the result.
    """

    a: Value
    b: Value
    c: Value
    d: Value
    E_start: Value
    E_max: Value

    inputs: ClassVar = ("N", "experts")
    levels: ClassVar = {"N": 2, "experts": 3}

    def __call__(self, N: Any, experts: Any) -> Any:
        inner = 1.0 / (1.0 / self.E_start - 1.0 / self.E_max)
        experts = np.asarray(experts, dtype=float)
        effective = 1.0 / (1.0 / (experts - 1.0 + inner) + 1.0 / self.E_max)
        n, e = np.log10(N), np.log10(effective)
        return 10.0 ** (self.a * n + self.b * e + self.c * n * e + self.d)

    @classmethod
    def cost(cls, x: Sequence[Floats]) -> Floats | None:
        return None  # the form has no data axis

    @classmethod
    def form(cls, x: Sequence[Floats], y: Floats) -> tuple[Form, Floats]:
        n, experts = np.log(x[0]), x[1]
        n = n - n.mean()

        def saturate(s: Floats, m: Floats) -> tuple[Floats, Floats, Floats]:
            q = 1.0 / (np.exp(-s) - np.exp(-m))
            inner = experts - 1.0 + q
            hat = 1.0 / (1.0 / inner + np.exp(-m))
            by_q = hat / inner**2
            return np.log(hat), by_q * q * q * np.exp(-s), (hat - by_q * q * q) * np.exp(-m)

        def terms(theta: Floats) -> tuple[Floats, Floats]:
            a, b, c, d, s, m = theta.T[..., None]
            e, e_s, e_m = saturate(s, m)
            steep = b + c * n
            u = a * n + steep * e + d
            one = np.ones_like(u)
            du = np.stack([one * n, e, n * e, one, steep * e_s, steep * e_m], axis=-1)
            return u[..., None], du[:, :, None, :]

        low = np.array([-4.0, -4.0, -4.0, y.min() - 9.0, 0.0, math.log(64.0)])
        high = np.array([4.0, 4.0, 4.0, y.max() + 9.0, math.log(32.0), math.log(1e5)])
        shapes = grid([0.2, 0.7, 1.5, 2.5], [4.5, 6.0, 8.0])
        starts = []
        for s, m in shapes:
            e = saturate(np.array(s), np.array(m))[0]
            basis = np.stack([n, e, n * e, np.ones_like(n)], axis=1)
            starts.append([*np.linalg.lstsq(basis, y, rcond=None)[0], s, m])
        return Form(terms, low, high), np.array(starts)

    @classmethod
    def unpack(cls, theta: Floats, x: Sequence[Floats]) -> Routed:
        a, b, c, d, s, m = theta.T
        centre = np.log(x[0]).mean()
        # centred natural logs to base ten: c ln·ln = (c ln 10) log10·log10, over ln 10 outside
        ten = math.log(10.0)
        return cls(a, b - c * centre, c * ten, (d - a * centre) / ten, np.exp(s), np.exp(m))


@dataclass(frozen=True)
class Repeated(Fittable):
    """Chinchilla at the effective N′ and D′ of D tokens of which U are unique.

    D′ = U + U·R_D·(1 − e^(−(D/U − 1)/R_D)) and N′ likewise from U_N = min(N, N*(U)), the size
    that U unique tokens would call for (Muennighoff et al. 2023, eq. 5-6 and appendix A). Unlike
    the paper, which fits R_N and R_D on a surface fitted before, all seven are fitted together.
    """

    E: Value
    A: Value
    B: Value
    alpha: Value
    beta: Value
    R_N: Value
    R_D: Value

    inputs: ClassVar = ("N", "D", "U")
    levels: ClassVar = {"N": 3, "D": 3, "D/U": 3}

    def __call__(self, N: Any, D: Any, U: Any) -> Any:
        N, D, U = (np.asarray(v, dtype=float) for v in (N, D, U))
        unique = np.minimum(D, U)
        # the size whose compute-optimal D this is: α·A·N^−α = β·B·D^−β
        balance = self.alpha * self.A / (self.beta * self.B)
        call = (balance * unique**self.beta) ** (1.0 / self.alpha)
        N = _effective(np.minimum(N, call), N, self.R_N)
        D = _effective(unique, D, self.R_D)
        return self.E + self.A * N**-self.alpha + self.B * D**-self.beta

    @classmethod
    def form(cls, x: Sequence[Floats], y: Floats) -> tuple[Form, Floats]:
        n, d = np.log(x[0]), np.log(x[1])
        unique = np.log(np.minimum(x[1], x[2]))
        n0, d0 = n.mean(), d.mean()

        def terms(theta: Floats) -> tuple[Floats, Floats]:
            a, b, e, alpha, beta, rn, rd = theta.T[..., None]
            # log U_N where the size is more than the unique tokens call for, else log N
            call = (np.log(alpha / beta) + a + alpha * n0 - b + beta * (unique - d0)) / alpha
            excess = n > call
            n_eff, by_r, by_call = _log_effective(np.where(excess, call, n), n, rn)
            by_call = by_call * excess / alpha
            d_eff, d_by_r, _ = _log_effective(unique, d, rd)
            ones = np.broadcast_to(e, n_eff.shape)
            u = np.stack([a - alpha * (n_eff - n0), b - beta * (d_eff - d0), ones], axis=-1)
            du = np.zeros((*u.shape, 7))
            du[..., 0, 0] = 1.0 - alpha * by_call
            du[..., 0, 1] = alpha * by_call
            du[..., 0, 3] = -(n_eff - n0) - alpha * by_call * (1.0 / alpha + n0 - call)
            du[..., 0, 4] = -alpha * by_call * (unique - d0 - 1.0 / beta)
            du[..., 0, 5] = -alpha * by_r
            du[..., 1, 1] = du[..., 2, 2] = 1.0
            du[..., 1, 4], du[..., 1, 6] = -(d_eff - d0), -beta * d_by_r
            return u, du

        form = boxed(terms, y, "ccexxcc")
        form.lower[3:5] = 0.01
        form.lower[5:], form.upper[5:] = math.log(0.05), math.log(1e3)
        powers = (0.2, 0.4, 0.8)
        return form, starts_nd(y, powers, powers, [1.5], [0.5, 2.5])

    @classmethod
    def unpack(cls, theta: Floats, x: Sequence[Floats]) -> Repeated:
        a, b, e, alpha, beta, rn, rd = theta.T
        A = np.exp(a + alpha * np.log(x[0]).mean())
        B = np.exp(b + beta * np.log(x[1]).mean())
        return cls(asymptote_of(e), A, B, alpha, beta, np.exp(rn), np.exp(rd))


def _effective(unique: Any, total: Any, r: Any) -> Any:
    return unique * (1.0 + r * -np.expm1(-(total / unique - 1.0) / r))


def _log_effective(unique: Floats, total: Floats, log_r: Floats) -> tuple[Floats, Floats, Floats]:
    """log of the effective size, from logs, and its slopes in log r and in log unique."""
    r = np.exp(log_r)
    ratio = np.exp(np.minimum(total - unique, 600.0))  # where the effective size is flat
    left = np.exp(-(ratio - 1.0) / r)
    gain = r * (1.0 - left)
    by_r = (gain - (ratio - 1.0) * left) / (1.0 + gain)
    return unique + np.log1p(gain), by_r, 1.0 - ratio * left / (1.0 + gain)
