"""Every source is plain data: impossible values are refused, JSON keeps it, imports are light."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from sources import LANGUAGES

from isoflop.sim.data import AnyData, Corpus, File, HierarchyGrammar, HuggingFace, Markov, ZipfFacts


@pytest.mark.parametrize(
    "make",
    [
        lambda: ZipfFacts(facts=-1, symbols=4, alpha=1),
        lambda: ZipfFacts(facts=9, symbols=4, alpha=math.nan),
        lambda: ZipfFacts(facts=9, symbols=4, alpha=-0.5),
        lambda: ZipfFacts(facts=9, symbols=4, alpha=1, seed=-1),
        lambda: HierarchyGrammar(symbols=4, rules=5, branching=2, depth=2),
        lambda: HierarchyGrammar(symbols=4, rules=0, branching=2, depth=2),
        lambda: HierarchyGrammar(symbols=2, rules=1, branching=2, depth=21),
        lambda: Markov(symbols=4, order=6),
        lambda: Markov(symbols=4, concentration=math.inf),
        lambda: Markov(symbols=4, concentration=0),
        lambda: Corpus(name="bible"),
        lambda: Corpus(name="kjv", bpe_vocab=256),
        lambda: Corpus(name="kjv", bpe_vocab=65_537),
        lambda: Corpus(name="kjv", wrong=1),
        lambda: HuggingFace(dataset="a/b", text_bytes=0),
        lambda: File(path=__file__),
        lambda: File(path="a.bin", digest="0"),
        lambda: File(path="a.txt", digest="0", bin_vocab=9),
        lambda: File(path="a.bin", digest="0", bin_vocab=9, bpe_vocab=300),
    ],
)
def test_an_impossible_value_is_refused(make):
    with pytest.raises(ValidationError):
        make()


@pytest.mark.parametrize(
    "config",
    [
        *LANGUAGES,
        Corpus(name="kjv", bpe_vocab=512),
        File(path="a.bin", digest="0", bin_vocab=9),
        HuggingFace(dataset="a/b"),
    ],
    ids=lambda config: config.kind,
)
def test_a_source_survives_json(config):
    adapter = TypeAdapter(AnyData)
    assert adapter.validate_json(adapter.dump_json(config)) == config


def test_importing_data_loads_no_heavy_package():
    heavy = ("pyarrow", "tokenizers", "datasets", "huggingface_hub", "sympy", "zstandard")
    files = [
        importlib.util.find_spec(name).origin
        for name in sys.modules
        if name.startswith("isoflop.sim.")
    ]
    at_the_top = [line for file in files for line in Path(file).read_text().splitlines()]
    assert any(line.startswith("from isoflop.sim.data.source import") for line in at_the_top)
    assert not [
        line
        for line in at_the_top
        if line.startswith(("import", "from")) and any(name in line for name in heavy)
    ]
