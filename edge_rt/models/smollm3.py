"""SmolLM 3: llama in which each fourth layer has no positions. GGUF architecture ``smollm3``."""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm
from edge_rt.models.names import LLAMA, sizes

ARCHITECTURE = Architecture(
    name="smollm3",
    layer=(Norm("attn_norm"), Attention(), Norm("ffn_norm"), GatedMlp()),
    rope_pairs="interleaved",
    rope_skips_every=4,
    hugging_face=(
        HuggingFace(
            "smollm3",
            LLAMA,
            sizes(
                36,
                2048,
                11008,
                16,
                4,
                32768,
                1e-6,
                tie_word_embeddings=True,
                rope_theta=2e6,
                no_rope_layer_interval=4,
            ),
            windows="without_rope",
        ),
    ),
)
