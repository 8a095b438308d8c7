"""Published layers in their slow obvious form: numpy in double precision, one token at a time.

Written from the equations of the papers and from the authors' own naive code, which each function
names; nothing is shared with `models`.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.logaddexp(0, x)


def rms_norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def layer_norm(x, scale, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale + bias


def gla(w, x, heads: int):
    """Gated linear attention (Yang et al. 2023, 2312.06635, eq. 3 and §4.4; flash-linear-attention
    fla/ops/gla/naive.py and fla/layers/gla.py) on tokens (t, d); gates temper at 16.
    """
    q, k, v, g = (x @ w[f"{name}.kernel"] for name in ("q", "k", "v", "gate"))
    gates = x @ w["decay_down.kernel"] @ w["decay.kernel"] + w["decay.bias"]
    return retain(w, q, k, v, g, -softplus(-gates) / 16, heads)


def retnet(w, x, heads: int):
    """Retention without its rotation (Sun et al. 2023, 2307.08621, §2.1–2.2): γ = 1 − 2^(−5−h)."""
    q, k, v, g = (x @ w[f"{name}.kernel"] for name in ("q", "k", "v", "gate"))
    gamma = 1 - 2.0 ** (-5 - np.arange(heads))
    gates = np.repeat(np.log(gamma), q.shape[-1] // heads)
    return retain(w, q, k, v, g, np.broadcast_to(gates, q.shape), heads)


def retain(w, q, k, v, g, log_a, heads):
    """S ← diag(a) S + k vᵀ, o = Sᵀ q / √d_k, normed for each head, gated and mapped."""
    q, k, v, log_a = (z.reshape(len(z), heads, -1) for z in (q, k, v, log_a))
    S = np.zeros((heads, k.shape[-1], v.shape[-1]))
    out = np.zeros(v.shape)
    for t in range(len(q)):
        S = np.exp(log_a[t])[..., None] * S + k[t][..., None] * v[t][:, None]
        out[t] = np.einsum("hk,hkv->hv", q[t], S) / np.sqrt(q.shape[-1])
    out = rms_norm(out, w["norm.scale"], 1e-6).reshape(len(q), -1)
    return out * silu(g) @ w["out.kernel"]


def kda(w, x, heads: int):
    """Kimi delta attention (Kimi team 2025, 2510.26692, eq. 1; flash-linear-attention
    fla/ops/kda/naive.py and fla/layers/kda.py) on tokens (t, d).
    """
    qkv = np.concatenate([x @ w[f"{name}.kernel"] for name in ("q", "k", "v")], -1)
    taps = w["conv.kernel"]
    padded = np.pad(qkv, ((len(taps) - 1, 0), (0, 0)))
    qkv = silu(sum(padded[i : i + len(qkv)] * tap for i, tap in enumerate(taps)))
    keys = w["q.kernel"].shape[1]
    q, k, v = (z.reshape(len(z), heads, -1) for z in np.split(qkv, [keys, 2 * keys], -1))
    q, k = (z / np.sqrt((z * z).sum(-1, keepdims=True) + 1e-6) for z in (q, k))
    pace = softplus(x @ w["decay_down.kernel"] @ w["decay.kernel"] + w["dt_bias"])
    log_a = -np.exp(w["A_log"])[:, None] * pace.reshape(q.shape)
    beta = sigmoid(x @ w["beta.kernel"])
    S = np.zeros((heads, k.shape[-1], v.shape[-1]))
    out = np.zeros(v.shape)
    for t in range(len(q)):
        S = np.exp(log_a[t])[..., None] * S
        error = v[t] - np.einsum("hk,hkv->hv", k[t], S)
        S = S + k[t][..., None] * (beta[t][:, None] * error)[:, None]
        out[t] = np.einsum("hk,hkv->hv", q[t], S) / np.sqrt(q.shape[-1])
    gate = sigmoid(x @ w["gate_down.kernel"] @ w["gate.kernel"] + w["gate.bias"])
    return rms_norm(out, w["norm.scale"], 1e-5).reshape(len(q), -1) * gate @ w["out.kernel"]


def rwkv7(w, config, tokens):
    """Logits of RWKV-7 (Peng et al. 2025, 2503.14456, §4; BlinkDL/RWKV-LM RWKV-v7/rwkv_v7_numpy.py)
    from weights under flash-linear-attention's names.
    """
    w = {name: np.asarray(array, np.float64) for name, array in w.items()}
    return np.stack([_rwkv7_sequence(w, config, row) for row in tokens])


def _rwkv7_sequence(w, config, tokens):
    eps, size = config["norm_eps"], config["head_dim"]

    def normed(x, name):
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], eps)

    x = normed(w["model.embeddings.weight"][tokens], "model.layers.0.pre_norm")
    first = None
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        y, first = _time_mix(w, f"{layer}.attn", normed(x, f"{layer}.attn_norm"), first, size, eps)
        x = x + y
        y = normed(x, f"{layer}.ffn_norm")
        y = y + w[f"{layer}.ffn.x_k"] * (_before(y) - y)
        y = np.maximum(y @ w[f"{layer}.ffn.key.weight"].T, 0) ** 2
        x = x + y @ w[f"{layer}.ffn.value.weight"].T
    return normed(x, "model.norm") @ w["lm_head.weight"].T


def _before(x):
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def _time_mix(w, name, x, first, size, eps):
    r, d, k, v, a, g = (
        x + w[f"{name}.x_{letter}"].reshape(-1) * (_before(x) - x) for letter in "rwkvag"
    )

    def low_rank(z, letter, inner=lambda z: z):
        z = inner(z @ w[f"{name}.{letter}_lora.lora.0.weight"].T)
        return z @ w[f"{name}.{letter}_lora.lora.2.weight"].T + w.get(
            f"{name}.{letter}_lora.lora.2.bias", 0
        )

    decay = np.exp(-np.exp(-0.5) * sigmoid(low_rank(d, "w", np.tanh)))
    rate = sigmoid(low_rank(a, "a"))
    gate = low_rank(g, "g", sigmoid)
    mixed = v
    r, k, v = (z @ w[f"{name}.{c}_proj.weight"].T for z, c in ((r, "r"), (k, "k"), (v, "v")))
    if first is None:
        first = v
    else:
        v = v + (first - v) * sigmoid(low_rank(mixed, "v"))
    key = k * w[f"{name}.k_k"]
    k = k * (1 + (rate - 1) * w[f"{name}.k_a"])
    r, k, v, key, rate, decay = (z.reshape(len(z), -1, size) for z in (r, k, v, key, rate, decay))
    key = key / np.maximum(np.linalg.norm(key, axis=-1, keepdims=True), 1e-12)
    S = np.zeros((*v.shape[1:], size))  # (head, value, key), as the paper has it
    out = np.zeros(v.shape)
    for t in range(len(v)):
        removed = np.einsum("hvk,hk->hv", S, key[t])
        S = S * decay[t][:, None] - removed[..., None] * (key[t] * rate[t])[:, None]
        S = S + v[t][..., None] * k[t][:, None]
        out[t] = np.einsum("hvk,hk->hv", S, r[t])
    out = layer_norm(out, 1, 0, eps * size).reshape(len(x), -1)
    out = out * w[f"{name}.g_norm.weight"] + w[f"{name}.g_norm.bias"]
    bonus = (r * k * w[f"{name}.r_k"]).sum(-1, keepdims=True) * v
    return ((out + bonus.reshape(out.shape)) * gate) @ w[f"{name}.o_proj.weight"].T, first


def random_rwkv7(rng, layers: int, d: int, heads: int, vocab: int):
    """Weights of a small RWKV-7 under flash-linear-attention's names, and its config.json."""
    ranks = {"w": 3, "a": 4, "g": 5, "v": 2}
    inner = 3 * d
    config = {
        "model_type": "rwkv7",
        "hidden_size": d,
        "num_hidden_layers": layers,
        "head_dim": d // heads,
        "intermediate_size": inner,
        "decay_low_rank_dim": ranks["w"],
        "a_low_rank_dim": ranks["a"],
        "gate_low_rank_dim": ranks["g"],
        "v_low_rank_dim": ranks["v"],
        "vocab_size": vocab,
        "norm_eps": 1e-5,
        "hidden_act": "sqrelu",
    }
    shapes = {"model.embeddings.weight": (vocab, d), "lm_head.weight": (vocab, d)}
    norms = ["model.norm", "model.layers.0.pre_norm"]
    for i in range(layers):
        attn, ffn = f"model.layers.{i}.attn", f"model.layers.{i}.ffn"
        norms += [f"model.layers.{i}.attn_norm", f"model.layers.{i}.ffn_norm", f"{attn}.g_norm"]
        shapes |= {f"{attn}.x_{letter}": (1, 1, d) for letter in "rwkvag"}
        shapes |= {f"{attn}.{letter}_proj.weight": (d, d) for letter in "rkvo"}
        shapes |= {f"{attn}.k_k": (d,), f"{attn}.k_a": (d,), f"{attn}.r_k": (heads, d // heads)}
        for letter, rank in ranks.items():
            if letter == "v" and i == 0:
                continue
            lora = f"{attn}.{letter}_lora.lora"
            shapes |= {f"{lora}.0.weight": (rank, d), f"{lora}.2.weight": (d, rank)}
            shapes |= {f"{lora}.2.bias": (d,)} if letter != "g" else {}
        shapes |= {f"{ffn}.x_k": (d,), f"{ffn}.key.weight": (inner, d)}
        shapes |= {f"{ffn}.value.weight": (d, inner)}
    shapes |= {f"{norm}.{part}": (d,) for norm in norms for part in ("weight", "bias")}
    weights = {
        name: (
            rng.normal(size=shape) / np.sqrt(shape[-1])
            if len(shape) == 2
            else rng.uniform(0, 1, shape)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }
    return weights, config
