"""What FLOPs and parameters are counted by, and how each count is written for people."""

CONVENTIONS = {
    "executed": "3 × (matmuls + elementwise arithmetic: norms, activations, gates, scans, "
    "convolutions, softmax) of the forward pass to the logits, as the code runs it; what the "
    "backward pass recomputes to save memory is left out; and the matmuls of the optimiser",
    "matmul": "3 × matmuls of the forward pass as the code runs it, and the optimiser's",
    "causal": "3 × the same work done token by token: attention pays for the keys it sees, "
    "recurrences for one state update",
    "6ND": "6 × all parameters × tokens",
    "6ND_non_embedding": "6 × parameters without embedding and head × tokens",
    "6ND_active": "6 × parameters one token touches, without embedding and head, × tokens",
}
PARAMETERS = {
    "total": "every weight",
    "active": "weights that one token touches: all, except experts that were not chosen",
    "non_embedding": "without the embedding and the output head",
    "active_non_embedding": "active ones without the embedding and the output head",
}
NAMES = {  # how a cost or a count is written for people
    "executed": "executed",
    "matmul": "matrix products",
    "causal": "causal",
    "6ND": "6·N·D (all parameters)",
    "6ND_non_embedding": "6·N·D (non-embedding)",
    "6ND_active": "6·N·D (active non-embedding)",
    "seconds": "seconds of training",
    "state_bytes": "bytes of decoding state",
    "total": "total",
    "active": "active",
    "non_embedding": "non-embedding",
    "active_non_embedding": "active non-embedding",
}


def named(cost: str) -> str:
    """A convention, a count or another cost as people write it."""
    return NAMES.get(cost, cost)
