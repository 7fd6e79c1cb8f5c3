"""Llama 2 and 3, Mistral, SmolLM2, TinyLlama: GGUF architecture ``llama``."""

from edge_rt.models.description import (
    Architecture,
    Attention,
    GatedMlp,
    Norm,
    read_hyperparameters,
)

ARCHITECTURE = Architecture(
    name="llama",
    layer=(
        Norm("attn_norm"),
        Attention(q="attn_q", k="attn_k", v="attn_v", output="attn_output"),
        Norm("ffn_norm"),
        GatedMlp(gate="ffn_gate", up="ffn_up", down="ffn_down", activation="silu"),
    ),
    rope_pairs="interleaved",
    read=read_hyperparameters,
)
