"""Gemma 2: norms before and after each part, soft caps, a window in every other layer.

GGUF architecture ``gemma2``. The scale of attention is config.json's ``query_pre_attn_scalar``;
GGUF does not store it: as in llama.cpp, only the model with 46 layers (27B) has another one than
its head's width.
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm, Windows
from edge_rt.models.names import CAPS, GEMMA, sizes

ARCHITECTURE = Architecture(
    name="gemma2",
    layer=(
        Norm("attn_norm"),
        Attention(post_norm="post_attention_norm"),
        Norm("ffn_norm"),
        GatedMlp(activation="gelu", post_norm="post_ffw_norm"),
    ),
    rope_pairs="halves",
    windows=Windows(full_every=2, size=4096),
    scaled_embedding=True,
    caps=(50.0, 30.0),
    hidden_scale_layers=46,
    hugging_face=(
        HuggingFace(
            "gemma2",
            GEMMA,
            sizes(
                26,
                2304,
                9216,
                8,
                4,
                8192,
                1e-6,
                head_dim=256,
                tie_word_embeddings=True,
                query_pre_attn_scalar=256,
                sliding_window=4096,
                full_every=2,
                attn_logit_softcapping=50.0,
                final_logit_softcapping=30.0,
            ),
            CAPS,
            norm_offset=1.0,
            windows="period",
        ),
    ),
)
