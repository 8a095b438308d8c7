"""Published layers that transformers lacks, and its own where a layer has no whole model here.

Recurrences, networks and RWKV-7 are the published files themselves (tests/references.txt), run by
torch in fp32. What `fla/layers` puts around a recurrence is in numpy here, since it needs Triton
there: projections, short convolutions, norms and gates. Nothing is shared with `models`.
"""

import importlib.util
import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import safetensors.numpy
import torch
from transformers import DeepseekV3Config, KimiLinearConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

torch.set_num_threads(1)  # threads of several test processes would wait for each other

HEADS_FIRST = {"retention", "delta_rule"}  # others have time before heads


@cache
def published(path: str) -> ModuleType:
    """A file of tests/references.txt, by itself."""
    file = Path(sys.prefix) / "references" / path
    spec = importlib.util.spec_from_file_location(path.removesuffix(".py").replace("/", "_"), file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def naive(op: str, function: str, options=None, **inputs):
    """What flash-linear-attention's slow form of `op` makes of inputs (t, h, …)."""
    swap = op in HEADS_FIRST
    tensors = {k: tensor(x.swapaxes(0, 1) if swap else x)[None] for k, x in inputs.items()}
    form = getattr(published(f"fla/ops/{op}/naive.py"), function)
    out = form(**tensors, **options or {})
    out = (out[0] if isinstance(out, tuple) else out)[0].numpy()
    return out.swapaxes(0, 1) if swap else out


def tensor(x) -> torch.Tensor:
    return torch.tensor(np.array(x), dtype=torch.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.logaddexp(0, x)


def rms_norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def elu_plus_one(x):
    return np.where(x > 0, x + 1, np.exp(x))


def turn(x, base):
    """Channels i and i + half of (t, h, k) as one complex number times e^{int}."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None, None] * base ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], -1)


def linear(w, x, config):
    """fla/layers/linear_attn.py, multiscale_retention.py, simple_gla.py and gla.py, all with an
    output gate and a norm whose ε is ours, or as linear_attn.py has it with φ = elu + 1, the sum of
    keys, and no norm: tokens (t, d) → (t, d).
    """
    heads = config.n_heads
    q, k, v = ((x @ w[f"{name}.kernel"]).reshape(len(x), heads, -1) for name in "qkv")
    if config.rope_base:
        q, k = turn(q, config.rope_base), turn(k, config.rope_base)
    keys = config.normalizer == "keys"
    if keys:
        q, k = elu_plus_one(q), elu_plus_one(k)
    if config.decay == "none":
        options = {"normalize": keys}
        out = naive("linear_attn", "naive_recurrent_linear_attn", options, q=q, k=k, v=v)
    if config.decay == "fixed":
        out = naive("retention", "naive_retention", q=q, k=k, v=v)
    if config.decay == "scalar":
        g = -softplus(-(x @ w["decay.kernel"] + w["decay.bias"])) / 16
        out = naive("simple_gla", "naive_recurrent_simple_gla", q=q, k=k, v=v, g=g)
    if config.decay == "channel":
        gates = x @ w["decay_down.kernel"] @ w["decay.kernel"] + w["decay.bias"]
        gk = -softplus(-gates).reshape(k.shape) / 16
        out = naive("gla", "naive_recurrent_gla", q=q, k=k, v=v, gk=gk)
    if keys:
        return out.reshape(len(x), -1) @ w["out.kernel"]
    out = rms_norm(out, w["norm.scale"], 1e-6).reshape(len(x), -1)
    return out * silu(x @ w["gate.kernel"]) @ w["out.kernel"]


def delta(w, x, config):
    """fla/layers/delta_net.py, gated_deltanet.py and kda.py: tokens (t, d) → (t, d)."""
    heads = config.n_heads
    qkv = np.concatenate([x @ w[f"{name}.kernel"] for name in "qkv"], -1)
    taps = w["conv.kernel"]
    padded = np.pad(qkv, ((len(taps) - 1, 0), (0, 0)))
    qkv = silu(sum(padded[i : i + len(qkv)] * tap for i, tap in enumerate(taps)))
    keys = w["q.kernel"].shape[1]
    q, k, v = (z.reshape(len(x), heads, -1) for z in np.split(qkv, [keys, 2 * keys], -1))
    q, k = (z / np.sqrt((z * z).sum(-1, keepdims=True) + 1e-6) for z in (q, k))
    inputs = {"q": q, "k": k, "v": v}
    inputs["beta"] = sigmoid(x @ w["beta.kernel"]) * (1 + config.negative_eigenvalues)
    if config.decay == "none":
        out, gate = naive("delta_rule", "delta_rule_recurrence", **inputs), 1
    if config.decay == "scalar":
        g = -np.exp(w["A_log"]) * softplus(x @ w["decay.kernel"] + w["dt_bias"])
        out = naive("gated_delta_rule", "naive_recurrent_gated_delta_rule", g=g, **inputs)
        gate = silu(x @ w["gate.kernel"])
    if config.decay == "channel":
        pace = softplus(x @ w["decay_down.kernel"] @ w["decay.kernel"] + w["dt_bias"])
        g = -np.exp(w["A_log"])[:, None] * pace.reshape(k.shape)
        out = naive("kda", "naive_recurrent_kda", g=g, **inputs)
        gate = sigmoid(x @ w["gate_down.kernel"] @ w["gate.kernel"] + w["gate.bias"])
    out = rms_norm(out, w["norm.scale"], config.norm_eps).reshape(len(x), -1)
    return out * gate @ w["out.kernel"]


def applied(module: torch.nn.Module, weights: dict, x):
    """A torch module with these weights, given (out, in), on tokens (t, d)."""
    module.load_state_dict({name: tensor(weight) for name, weight in weights.items()})
    with torch.no_grad():
        out = module(tensor(x)[None])
    return (out[0] if isinstance(out, tuple) else out)[0].numpy()


def kimi(w, x, config):
    """Kimi delta attention as transformers' kimi_linear has it, but for a bias of the output gate,
    which the released weights are without and flash-linear-attention's layer has.
    """
    names = {"b_proj": "beta", "g_a_proj": "gate_down", "g_b_proj": "gate", "o_proj": "out"}
    names |= {"forget_gate.f_a_proj": "decay_down", "forget_gate.f_b_proj": "decay"}
    names |= {f"{letter}_proj": letter for letter in "qkv"}
    weights = {f"{theirs}.weight": w[f"{ours}.kernel"].T for theirs, ours in names.items()}
    weights |= {"conv1d.weight": w["conv.kernel"].T[:, None], "o_norm.weight": w["norm.scale"]}
    weights["forget_gate.dt_bias"] = w["dt_bias"]
    weights["forget_gate.A_log"] = w["A_log"][None, None, :, None]
    weights["g_b_proj.bias"] = w["gate.bias"]
    heads = config.n_heads
    layer = KimiLinearDeltaAttention(
        KimiLinearConfig(
            hidden_size=x.shape[1],
            linear_num_heads=heads,
            linear_head_dim=w["q.kernel"].shape[1] // heads,
            linear_conv_kernel_dim=config.d_conv,
            rms_norm_eps=config.norm_eps,
            layer_types=["linear_attention"],
            num_hidden_layers=1,
        ),
        layer_idx=0,
    )
    layer.g_b_proj = torch.nn.Linear(*w["gate.kernel"].shape)
    return applied(layer, weights, x)


def mla(w, x, config):
    """DeepSeek-V3's attention as transformers has it, pairs that turn being neighbours there."""
    rope, yarn = config.d_rope, config.rope_scaling
    turned = np.arange(rope).reshape(2, -1).T.ravel()  # where of ours a channel of theirs is
    queries = np.arange(config.n_heads * config.d_key).reshape(config.n_heads, -1)
    queries[:, config.d_nope :] = queries[:, config.d_nope :][:, turned]
    down = np.append(np.arange(config.kv_rank), config.kv_rank + turned)
    names = {"kv_b_proj": w["up.kernel"], "o_proj": w["out.kernel"]}
    names["kv_a_proj_with_mqa"] = w["down.kernel"][:, down]
    names["q_b_proj" if config.q_rank else "q_proj"] = w["q.kernel"][:, queries.ravel()]
    if config.q_rank:
        names["q_a_proj"] = w["q_down.kernel"]
    weights = {f"{name}.weight": kernel.T for name, kernel in names.items()}
    weights["kv_a_layernorm.weight"] = w["norm.scale"]
    if config.q_rank:
        weights["q_a_layernorm.weight"] = w["q_norm.scale"]
    scaling = {"rope_type": "default", "rope_theta": config.rope_base}
    if yarn is not None:
        scaling |= {"rope_type": "yarn", "factor": yarn.factor, "mscale": 1.0}
        scaling |= {"mscale_all_dim": 1.0, "beta_fast": yarn.fast, "beta_slow": yarn.slow}
        scaling["original_max_position_embeddings"] = yarn.original
    published = DeepseekV3Config(
        hidden_size=x.shape[1],
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_heads,
        q_lora_rank=config.q_rank,
        kv_lora_rank=config.kv_rank,
        qk_nope_head_dim=config.d_nope,
        qk_rope_head_dim=rope,
        v_head_dim=config.d_value,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=4096,
        rope_parameters=scaling,
        attn_implementation="eager",
    )
    layer = DeepseekV3Attention(published, layer_idx=0)
    layer.load_state_dict({name: tensor(weight) for name, weight in weights.items()})
    hidden, places = tensor(x)[None], torch.arange(len(x))[None]
    ahead = torch.full((len(x), len(x)), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        turns = DeepseekV3RotaryEmbedding(published)(hidden, places)
        return layer(hidden, position_embeddings=turns, attention_mask=ahead)[0][0].numpy()


def lstm(w, x, config):
    """torch's LSTM, which has the bias twice, and a projection."""
    network = torch.nn.LSTM(x.shape[1], w["out.kernel"].shape[0], batch_first=True)
    weights = {"weight_ih_l0": w["inward.kernel"].T, "weight_hh_l0": w["across"].T}
    weights |= {"bias_ih_l0": w["bias"], "bias_hh_l0": 0 * w["bias"]}
    return applied(network, weights, x) @ w["out.kernel"]


def mingru(w, x, config):
    """minGRU-pytorch's layer, the paper's form in logarithms."""
    layer = published("minGRU_pytorch/minGRU.py").minGRU(x.shape[1], config.expand, proj_out=True)
    both = np.concatenate([w["candidate.kernel"], w["gate.kernel"]], 1).T
    weights = {"to_hidden_and_gate.weight": both, "to_out.weight": w["out.kernel"].T}
    return applied(layer, weights, x)


class Rwkv7:
    """RWKV-7 by its authors' `rwkv`, from a folder under flash-linear-attention's names; what the
    tests call is called as in transformers.
    """

    NAMES = (
        ("model.layers.", "blocks."),
        ("model.embeddings", "emb"),
        ("model.norm", "ln_out"),
        ("lm_head", "head"),
        ("pre_norm", "ln0"),
        ("attn_norm", "ln1"),
        ("ffn_norm", "ln2"),
        (".attn.", ".att."),
        ("r_proj", "receptance"),
        ("k_proj", "key"),
        ("v_proj", "value"),
        ("o_proj", "output"),
        ("g_norm", "ln_x"),
        ("_lora.lora.0.weight", "1"),
        ("_lora.lora.2.weight", "2"),
        ("_lora.lora.2.bias", "0"),
    )

    def __init__(self, folder: Path):
        self.weights = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.weights |= safetensors.numpy.load_file(file)
        os.environ |= {"RWKV_V7_ON": "1"}
        with tempfile.TemporaryDirectory() as scratch:
            torch.save(dict(map(self._renamed, self.weights.items())), f"{scratch}/model.pth")
            self.model = published("rwkv/model.py").RWKV(f"{scratch}/model", "cpu fp32")

    def _renamed(self, item):
        name, array = item
        array = tensor(array.T if "_lora" in name else array)
        for theirs, original in self.NAMES:
            name = name.replace(theirs, original)
        return name, array.contiguous()

    def num_parameters(self) -> int:
        return sum(array.size for array in self.weights.values())

    def __call__(self, ids, **_) -> SimpleNamespace:
        rows = [self.model.forward(row, None, full_output=True)[0] for row in ids.tolist()]
        return SimpleNamespace(logits=torch.stack(rows))

    def generate(self, prompts, max_new_tokens: int, **_) -> torch.Tensor:
        return torch.tensor([self._written(row, max_new_tokens) for row in prompts.tolist()])

    def _written(self, tokens: list[int], count: int) -> list[int]:
        logits, state = self.model.forward(list(tokens), None)
        for _ in range(count):
            tokens = [*tokens, int(logits.argmax())]
            logits, state = self.model.forward(tokens[-1:], state)
        return tokens


def write_rwkv7(rng, folder: Path, layers: int, heads: int, vocab_size: int, inner: int) -> None:
    """A random small RWKV-7 under flash-linear-attention's names. A head has 64 channels, as the
    authors' code has that in the ε of its norm.
    """
    d = 64 * heads
    ranks = {"w": 3, "a": 4, "g": 5, "v": 2}
    config = {
        "model_type": "rwkv7",
        "hidden_size": d,
        "num_hidden_layers": layers,
        "head_dim": 64,
        "intermediate_size": inner,
        "decay_low_rank_dim": ranks["w"],
        "a_low_rank_dim": ranks["a"],
        "gate_low_rank_dim": ranks["g"],
        "v_low_rank_dim": ranks["v"],
        "vocab_size": vocab_size,
        "norm_eps": 1e-5,
        "hidden_act": "sqrelu",
    }
    shapes = {"model.embeddings.weight": (vocab_size, d), "lm_head.weight": (vocab_size, d)}
    norms = ["model.norm", "model.layers.0.pre_norm"]
    for i in range(layers):
        attn, ffn = f"model.layers.{i}.attn", f"model.layers.{i}.ffn"
        norms += [f"model.layers.{i}.attn_norm", f"model.layers.{i}.ffn_norm", f"{attn}.g_norm"]
        shapes |= {f"{attn}.x_{letter}": (1, 1, d) for letter in "rwkvag"}
        shapes |= {f"{attn}.{letter}_proj.weight": (d, d) for letter in "rkvo"}
        shapes |= {f"{attn}.k_k": (d,), f"{attn}.k_a": (d,), f"{attn}.r_k": (heads, 64)}
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
        )
        .astype(np.float16)
        .astype(np.float32)
        for name, shape in shapes.items()
    }
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
