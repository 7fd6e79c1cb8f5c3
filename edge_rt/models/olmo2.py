"""OLMo 2 and 3: norms only after each part, and of q and k over all heads at once.

GGUF architecture ``olmo2``, for both. OLMo 3 has windows in three layers of four; those turn q and
k without the scaling (YaRN) of the others.
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Windows
from edge_rt.models.names import ATTENTION, MLP, POST_NORMS, QK_NORMS, sizes

NAMES = ATTENTION | MLP | POST_NORMS | QK_NORMS

ARCHITECTURE = Architecture(
    name="olmo2",
    layer=(
        Attention(
            q_norm="attn_q_norm",
            k_norm="attn_k_norm",
            norm_over="row",
            post_norm="post_attention_norm",
        ),
        GatedMlp(post_norm="post_ffw_norm"),
    ),
    rope_pairs="halves",
    windows=Windows(full_every=4, unscaled_rope=True),
    hugging_face=(
        HuggingFace("olmo2", NAMES, sizes(32, 4096, 11008, 32, None, 2048, 1e-5)),
        HuggingFace(
            "olmo3",
            NAMES,
            sizes(
                32,
                4096,
                11008,
                32,
                None,
                2048,
                1e-5,
                rope_theta=5e5,
                sliding_window=4096,
                full_every=4,
            ),
            windows="period",
        ),
    ),
)
