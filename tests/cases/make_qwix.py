"""Integers and scales of qwix 0.1.8 (github.com/google/qwix) for one array, as qwix.npz.

In an environment with qwix: python tests/cases/make_qwix.py
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from qwix._src.core import qarray

rng = np.random.default_rng(0)
parts = rng.standard_normal((64, 6)), np.zeros((32, 6)), 1e-3 * rng.standard_cauchy((32, 6))
found = {"x": np.concatenate(parts).astype(np.float32)}
formats = {"int8": jnp.int8, "int4": jnp.int4, "int3": "int3", "int2": "int2"}
for name, kind in (formats | {"fp8": jnp.float8_e4m3fn}).items():
    how = qarray.HowToQuantize(qtype=kind, channelwise_axes=(1,), tiled_axes={0: 32})
    array = qarray.quantize(jnp.asarray(found["x"]), how)
    found[f"{name}_q"] = np.asarray(array.qvalue).astype(np.float32)
    found[f"{name}_scale"] = np.asarray(array.scale)
np.savez_compressed(Path(__file__).parent / "qwix.npz", **found)
