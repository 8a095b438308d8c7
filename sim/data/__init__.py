"""Seeded, stateless token streams: everything that a run can be trained on, under one name.

Stored text: `Corpus`, `File`, `HuggingFace`. Generated, with known entropy: `ZipfFacts`,
`ContextFacts`, `HierarchyGrammar`, `Markov`, `HiddenMarkov`; `FactTable` writes `ZipfFacts` down
for a store. Tasks with right and wrong answers are in the files of `sim.data.tasks`. `Mixture`
joins sources, `Corrupted` and `Duplicated` make one worse, `Retrieved` puts passages of a store
beside it. `compressed_bits_per_byte` is a baseline
for a model's loss. The contract is
`sim.data.source`.
"""

from __future__ import annotations

import isoflop.sim.data.tasks  # noqa: F401 (so that their kinds are known)
from isoflop.sim.data.compressors import compressed_bits_per_byte
from isoflop.sim.data.corpora import Corpus
from isoflop.sim.data.fact_table import FactTable
from isoflop.sim.data.files import File
from isoflop.sim.data.hidden_markov import HiddenMarkov
from isoflop.sim.data.huggingface import HuggingFace
from isoflop.sim.data.languages import ContextFacts, HierarchyGrammar, Markov, ZipfFacts
from isoflop.sim.data.mixture import Mixture, Part
from isoflop.sim.data.quality import Corrupted, Duplicated
from isoflop.sim.data.retrieved import Retrieved
from isoflop.sim.data.source import AnyData, Batch, DataConfig, Source

__all__ = [
    "AnyData",
    "Batch",
    "ContextFacts",
    "Corpus",
    "Corrupted",
    "DataConfig",
    "Duplicated",
    "FactTable",
    "File",
    "HiddenMarkov",
    "HierarchyGrammar",
    "HuggingFace",
    "Markov",
    "Mixture",
    "Part",
    "Retrieved",
    "Source",
    "ZipfFacts",
    "compressed_bits_per_byte",
]
