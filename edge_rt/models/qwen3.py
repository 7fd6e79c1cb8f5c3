"""Qwen 3, dense: llama with an RMS norm over each head of q and k. GGUF architecture ``qwen3``."""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm
from edge_rt.models.names import LLAMA, QK_NORMS, sizes

ARCHITECTURE = Architecture(
    name="qwen3",
    layer=(
        Norm("attn_norm"),
        Attention(q_norm="attn_q_norm", k_norm="attn_k_norm"),
        Norm("ffn_norm"),
        GatedMlp(),
    ),
    rope_pairs="halves",
    hugging_face=(
        HuggingFace(
            "qwen3",
            LLAMA | QK_NORMS,
            sizes(
                32,
                4096,
                22016,
                32,
                32,
                32768,
                1e-6,
                head_dim=128,
                sliding_window=4096,
                max_window_layers=28,
            ),
            windows="late",
        ),
    ),
)
