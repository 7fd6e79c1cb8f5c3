"""Gemma 3, text: gemma2 with norms of q and k instead of soft caps; five windowed layers of six.

GGUF architecture ``gemma3``. Windowed layers have a rope base of their own (10000) and no scaling.
The scale of attention is as in gemma2; the one model with its own has 62 layers (27B).
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm, Windows
from edge_rt.models.names import FINAL_CAP, GEMMA, QK_NORMS, sizes

ARCHITECTURE = Architecture(
    name="gemma3",
    layer=(
        Norm("attn_norm"),
        Attention(q_norm="attn_q_norm", k_norm="attn_k_norm", post_norm="post_attention_norm"),
        Norm("ffn_norm"),
        GatedMlp(activation="gelu", post_norm="post_ffw_norm"),
    ),
    rope_pairs="halves",
    windows=Windows(full_every=6, unscaled_rope=True, rope_base=10000.0),
    scaled_embedding=True,
    hidden_scale_layers=62,
    hugging_face=(
        HuggingFace(
            "gemma3_text",
            GEMMA | QK_NORMS,
            sizes(
                26,
                2304,
                9216,
                8,
                4,
                131072,
                1e-6,
                head_dim=256,
                tie_word_embeddings=True,
                query_pre_attn_scalar=256,
                sliding_window=4096,
                full_every=6,
                rope_theta=1e6,
                rope_local_base_freq=10000.0,
            ),
            FINAL_CAP,  # transformers' gemma3 never reads attn_logit_softcapping
            norm_offset=1.0,
            windows="period",
        ),
    ),
)
