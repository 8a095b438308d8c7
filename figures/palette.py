"""A family has one colour and one mark wherever it appears, whoever else is there.

Known families stand in a table, kin in one colour. Any other name is hashed to one of the pairs of
colour and mark that the table leaves free, so that it looks the same from one figure to the next
and never like a known family; of two names that meet there, the later in the alphabet moves on.
Colours are petroff10 (Petroff 2021, arXiv 2107.02270), chosen for colour-blind readers; marks
repeat the information for those who print in grey.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

PETROFF10 = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#94a4a2"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
BLUE, ORANGE, RED, PURPLE, GREY, BROWN, FLAME, OLIVE, SLATE, CYAN = PETROFF10
PATHS = {  # matplotlib's markers as SVG paths about the origin, for the report
    "o": "M-1,0A1,1 0 1,0 1,0A1,1 0 1,0 -1,0Z",
    "s": "M-.9,-.9H.9V.9H-.9Z",
    "^": "M0,-1L1.05,.85H-1.05Z",
    "D": "M0,-1.2L1.2,0L0,1.2L-1.2,0Z",
    "v": "M0,1L1.05,-.85H-1.05Z",
    "P": "M-.38,-1.1H.38V-.38H1.1V.38H.38V1.1H-.38V.38H-1.1V-.38H-.38Z",
    "X": "M-.7,-1L0,-.3L.7,-1L1,-.7L.3,0L1,.7L.7,1L0,.3L-.7,1L-1,.7L-.3,0L-1,-.7Z",
    "<": "M-1,0L.85,1.05V-1.05Z",
    ">": "M1,0L-.85,1.05V-1.05Z",
    "p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",
}


class Style(NamedTuple):
    colour: str
    marker: str

    @property
    def path(self) -> str:
        return PATHS[self.marker]

    @property
    def on_dark(self) -> str:
        """The same hue, lightened until it stands out from a dark page."""
        channels = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return "#" + "".join(f"{round(c + 0.28 * (255 - c)):02x}" for c in channels)


FAMILIES = {
    "dense": Style(BLUE, "o"),
    "moe": Style(ORANGE, "s"),
    "mamba": Style(RED, "^"),
    "linear": Style(PURPLE, "D"),
    "hybrid": Style(GREY, "v"),
    "gated_deltanet": Style(BROWN, "P"),
    "lstm": Style(FLAME, "X"),
    "mamba2": Style(OLIVE, "<"),
    "rwkv7": Style(CYAN, "p"),
    "qwen3_next": Style(SLATE, ">"),
    "gpt2": Style(BLUE, "p"),
    "olmoe": Style(ORANGE, "p"),
    "deepseek_moe": Style(ORANGE, "o"),
    "gla": Style(PURPLE, ">"),
    "retnet": Style(PURPLE, "v"),
    "deltanet": Style(BROWN, "X"),
    "gated_deltanet_negative": Style(BROWN, "<"),
    "kda": Style(BROWN, "D"),
    "mingru": Style(FLAME, ">"),
    "griffin": Style(CYAN, "o"),
    "jamba": Style(GREY, "^"),
    "jamba_moe": Style(GREY, "s"),
    "samba": Style(GREY, "o"),
    "samba_moe": Style(GREY, "p"),
    "qwen3_next_moe": Style(SLATE, "s"),
    "kimi_linear": Style(SLATE, "D"),
    "kimi_linear_moe": Style(SLATE, "P"),
}
ORDER = tuple(FAMILIES)
FREE = tuple(
    look
    for colour in PETROFF10
    for marker in PATHS
    if (look := Style(colour, marker)) not in FAMILIES.values()
)
KINDS = ("*", "d", "h", "8", "H", "1", "2", "3", "4", "+", "x", "|")  # marks of no family


def styles(families: Iterable[str]) -> dict[str, Style]:
    """Of each name that is present: known ones in the table's order, then the others by name.

    More than len(FREE) unknown names share styles with each other.
    """
    present = set(families)
    chosen = {name: look for name, look in FAMILIES.items() if name in present}
    taken: set[Style] = set()
    for name in sorted(present - chosen.keys()):
        start = int.from_bytes(sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        if len(taken) == len(FREE):
            taken.clear()
        around = (FREE[(start + i) % len(FREE)] for i in range(len(FREE)))
        chosen[name] = next(look for look in around if look not in taken)
        taken.add(chosen[name])
    return chosen


def kinds(names: Iterable[str]) -> dict[str, Style]:
    """What is no family (a device, a shape): greys from dark to light, with marks of their own."""
    present = list(dict.fromkeys(names))
    greys = [round(35 + 135 * i / max(1, len(present) - 1)) for i in range(len(present))]
    return {
        name: Style(f"#{grey:02x}{grey:02x}{min(255, grey + 12):02x}", KINDS[i % len(KINDS)])
        for i, (name, grey) in enumerate(zip(present, greys, strict=True))
    }


def apart(names: Iterable[str], first: int = 0) -> dict[str, Style]:
    """Of a few names that are no families (models, ways to read one): as unlike as can be, by their
    order, from the colour and mark number `first` on.
    """
    marks = list(PATHS)
    places = enumerate(dict.fromkeys(names), first)
    return {name: Style(PETROFF10[i % len(PETROFF10)], marks[i % len(marks)]) for i, name in places}
