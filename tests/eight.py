"""Training on eight simulated devices, in a process of its own: `python eight.py FAMILY`, to stdout

{name: {"losses": [of each step], "share": [of each weight's elements, on the first device],
        "restored": whether a saved state comes back as it was, here, on four devices, on one}}
"""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the tests import the names alone, and have one device
    import quick

    os.environ["XLA_FLAGS"] = quick.devices(8)

import jax
import numpy as np

from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.delta import DeltaNet
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.moe import Moe
from isoflop.sim.data import Batch
from isoflop.sim.optim import AdamW
from isoflop.sim.train.checkpoints import Checkpoints
from isoflop.sim.train.loop import Trunk
from isoflop.sim.train.program import Program, jitted
from isoflop.sim.train.sharding import ONE_DEVICE, Layout

WIDTH, BATCH, LENGTH, STEPS = 32, 8, 16, 3
MLP = SwiGLU(d_ff=64)
BLOCKS = {
    "dense": Block(mixer=Attention(n_heads=4, n_kv_heads=2), channel=MLP),
    "moe": Block(mixer=Attention(n_heads=2), channel=Moe(n_experts=4, top_k=2, d_expert=32)),
    "steered": Block(
        mixer=Attention(n_heads=2),
        channel=Moe(n_experts=4, top_k=2, d_expert=32, gate="sigmoid", steered=True),
    ),
    "mamba": Block(mixer=Mamba(d_state=4), channel=MLP),
    "delta": Block(mixer=DeltaNet(n_heads=2), channel=MLP),
}
LAYOUTS = {
    "dense": (Layout(data=2, fsdp=2, tensor=2), Layout(fsdp=8)),
    "moe": (Layout(fsdp=2, tensor=2, expert=2),),
    "steered": (Layout(fsdp=2, tensor=2, expert=2),),
    "mamba": (Layout(data=2, fsdp=2, tensor=2),),
    "delta": (Layout(data=2, fsdp=2, tensor=2),),
}


def name(family: str, layout: Layout) -> str:
    return " ".join([family, *(f"{axis}={size}" for axis, size in layout.split.items())])


def steps(family: str, layout: Layout) -> dict:
    model = ModelConfig(d_model=WIDTH, vocab_size=64, blocks=(BLOCKS[family],))
    mesh = layout.mesh() if layout.devices > 1 else None
    program = Program(model, AdamW(lr=0.01), mesh=mesh)
    rng = np.random.default_rng(0)
    batches = rng.integers(64, size=(STEPS, 1, BATCH, LENGTH + 1), dtype=np.int32)
    state, losses = jitted(program)["advance"](
        program.init([0]),
        program.rates(program.optim),
        np.ones(STEPS, np.float32),
        program.put(Batch(batches)),
        np.int32(STEPS),
    )
    weights = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 2]  # the seed batch is one
    share = [leaf.addressable_shards[0].data.size / leaf.size for leaf in weights]
    return {
        "losses": np.asarray(losses)[:, 0].tolist(),
        "share": share,
        "restored": restored(program, state),
    }


def restored(program: Program, state: Any) -> bool:
    """On the same devices, on four of them, and on one."""
    equal = []
    four = Layout(fsdp=4).mesh()
    with tempfile.TemporaryDirectory() as folder:
        saved = Checkpoints(Path(folder), "trained", note=print)
        saved.save("trunk", Trunk(state, STEPS, losses=[np.zeros((STEPS, 1))]).checkpoint())
        for mesh in (program.mesh, four, None):
            fresh = replace(program, mesh=mesh).init([1])
            found = saved.newest("trunk", STEPS, fresh)
            trees = (jax.tree.leaves(tree) for tree in (found.state, fresh, state))
            for new, place, old in zip(*trees, strict=True):
                equal.append(
                    new.sharding == place.sharding and (np.asarray(new) == np.asarray(old)).all()
                )
    return all(equal)


if __name__ == "__main__":
    family = sys.argv[1]
    layouts = (ONE_DEVICE, *LAYOUTS[family])
    print(json.dumps({name(family, layout): steps(family, layout) for layout in layouts}))
