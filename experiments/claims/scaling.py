"""What the literature says of loss against size, data and compute at small scale."""

from __future__ import annotations

from isoflop.sim.compare.known_entropy import in_capacity, in_data
from isoflop.sim.compare.points import columns, points
from isoflop.sim.compare.study import Study
from isoflop.sim.compare.verdicts import Finding, above, claim, told
from isoflop.sim.laws.forms import Chinchilla
from isoflop.sim.records.store import Row

DRAWS = 400
LADDER = "14k to 200k non-embedding parameters, 256k to 666k tokens of Python code, bytes"


@claim(
    "counting the embedding or not moves N* ∝ C^a from near .5 to near .75",
    source="Pearce & Song 2024, 2406.12907; Porian et al. 2024, 2406.19146",
    setting=f"dense, {LADDER}, one set of 45 runs counted twice",
    records=("ladder",),
)
def embeddings_move_the_exponent(rows: list[Row]) -> Finding:
    """a of the law without E, once with all parameters and once without the embedding and head.
    Reproduced if the 90 % interval without them lies wholly above that with them; not reproduced if
    wholly below; else not resolved.
    """
    cells = points([row for row in rows if row.labels["family"] == "dense"])
    found = {}
    for name in ("total", "non_embedding"):
        sizes = [cell.params[name] for cell in cells for _ in cell.losses]
        fit = Chinchilla.fit(
            columns(cells) | {"N": sizes}, asymptote=False, held_out=(), draws=DRAWS
        )
        found[name] = fit.estimate["a"], *fit.interval["a"]
    (_, *whole), (_, low, high) = found.values()
    said = f"a = {told(*found['total'])} with, {told(*found['non_embedding'])} without"
    return Finding(above(low, high, (whole[0], whole[1])), said, found)


@claim(
    "transformers gain on LSTMs as compute grows: their curves have different exponents",
    source="Gundlach et al. 2025, 2511.21622",
    setting=f"dense and lstm, {LADDER}, executed FLOPs",
    records=("ladder",),
)
def transformers_gain_on_lstms(rows: list[Row]) -> Finding:
    """Reproduced if the LSTM's compute-equivalent gain over dense falls through the shared window
    under every asymptote that both families' runs allow; not reproduced if it rises under every
    one; else not resolved.
    """
    pair = [row for row in rows if row.labels["family"] in ("dense", "lstm")]
    (found,) = Study(pair, draws=DRAWS, costs=("executed",)).gains["executed"]
    if found.trend is None or not found.ceg:
        return Finding(None, f"no gain: {found.reason}")
    first, last = (told(gain.value, gain.low, gain.high) for gain in (found.ceg[0], found.ceg[-1]))
    said = f"the LSTM's gain over dense is {first} where the window begins and {last} at its end"
    holds = {"falls": True, "rises": False}.get(found.trend.direction)
    return Finding(holds, f"{said}; direction: {found.trend.direction}", found.json())


FACTS = "2048 facts of which most are rare, α = .5, entropy known; two-layer dense models"


@claim(
    "on facts of a Zipf law the excess loss falls as D to the −α/(1 + α)",
    source="Hutter 2021, 2102.04074; Michaud et al. 2023, 2303.13506",
    setting=f"{FACTS} of width 64, 100k to 870k tokens, three seeds",
    records=("known_entropy",),
)
def excess_falls_by_theory(rows: list[Row]) -> Finding:
    """Slope of the logarithm of the mean loss over seeds less the known entropy, on that of D, with
    the line's 90 % t interval. Reproduced if the interval holds −α/(1 + α); not reproduced if it
    does not; not resolved where it is wider than the value itself.
    """
    line = in_data(rows)
    return Finding(line.agrees, line.told, line.json())


@claim(
    "on facts of a Zipf law the excess loss falls as capacity to the −α",
    source="Michaud et al. 2023, 2303.13506",
    setting=f"{FACTS} of widths 4 to 64, 870k tokens, three seeds; all parameters counted",
    records=("known_entropy",),
)
def excess_falls_with_capacity(rows: list[Row]) -> Finding:
    """Slope of the logarithm of the mean excess over seeds on that of all parameters, with the
    line's 90 % t interval. Reproduced if the interval holds −α; not reproduced if it does not; not
    resolved where it is wider than the value itself.
    """
    line = in_capacity(rows)
    return Finding(line.agrees, line.told, line.json())
