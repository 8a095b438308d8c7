"""What tests of data share: known languages, and what every refusal must be."""

import pytest

from isoflop.models.errors import UserError
from isoflop.sim.data import ContextFacts, HiddenMarkov, HierarchyGrammar, Markov, ZipfFacts

LANGUAGES = [
    ZipfFacts(facts=300, symbols=16, alpha=0.5),
    HierarchyGrammar(symbols=6, rules=3, branching=2, depth=4),
    Markov(symbols=5, order=2),
    ContextFacts(facts=300, symbols=16, alpha=0.5),
    HiddenMarkov(states=3, symbols=5),
]


def refusal(action, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        action(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message, "no remedy"
    return message
