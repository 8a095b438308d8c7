"""Seeded, stateless token streams: everything that a run can be trained on, under one name.

Stored text: `Corpus`, `File`, `HuggingFace`. Generated, with exactly known entropy: `ZipfFacts`,
`HierarchyGrammar`, `Markov`. `compressed_bits_per_byte` is company for a model's loss.
The contract is `sim.data.source`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from isoflop.models.base import resolve
from isoflop.sim.data.compressors import compressed_bits_per_byte
from isoflop.sim.data.corpora import Corpus
from isoflop.sim.data.files import File
from isoflop.sim.data.huggingface import HuggingFace
from isoflop.sim.data.languages import HierarchyGrammar, Markov, ZipfFacts
from isoflop.sim.data.source import Batch, DataConfig, Source

AnyData = Annotated[
    SerializeAsAny[DataConfig], BeforeValidator(lambda value: resolve(DataConfig, value))
]

__all__ = [
    "AnyData",
    "Batch",
    "Corpus",
    "DataConfig",
    "File",
    "HierarchyGrammar",
    "HuggingFace",
    "Markov",
    "Source",
    "ZipfFacts",
    "compressed_bits_per_byte",
]
