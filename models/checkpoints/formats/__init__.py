"""The published layouts by their `model_type`, each one table.

Field and tensor names are those of Hugging Face transformers (read at 5.23.0), whose modules the
parity tests compare with ours; RWKV-7's are those of flash-linear-attention. Tables share their
parts: a family is what differs.
"""

from isoflop.models.checkpoints.formats import bamba, griffin, jamba, llama, mamba, qwen3_next, rwkv
from isoflop.models.checkpoints.translation import Layout

LAYOUTS: dict[str, Layout] = {
    layout.model_type: layout
    for layout in (
        llama.LLAMA,
        llama.MISTRAL,
        llama.QWEN2,
        llama.QWEN3,
        llama.MIXTRAL,
        llama.OLMOE,
        mamba.MAMBA,
        mamba.MAMBA2,
        mamba.FALCON_MAMBA,
        qwen3_next.QWEN3_NEXT,
        griffin.RECURRENT_GEMMA,
        jamba.JAMBA,
        bamba.BAMBA,
        rwkv.RWKV7,
    )
}
