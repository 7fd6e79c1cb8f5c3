"""OLMo 2 and 3: norms only after each part, and of q and k over all heads at once.

GGUF architecture ``olmo2``, for both. OLMo 3 has windows in three layers of four; those turn q and
k without the scaling (YaRN) of the others.
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Windows
from edge_rt.models.names import ATTENTION, MLP, POST_NORMS, QK_NORMS

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
    hugging_face=HuggingFace(("olmo2", "olmo3"), ATTENTION | MLP | POST_NORMS | QK_NORMS),
)
