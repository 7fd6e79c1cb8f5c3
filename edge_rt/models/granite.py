"""Granite 3 and 4, dense: llama with scales of its own. GGUF architecture ``granite``.

Embeddings and what each part adds are multiplied, logits are divided by a number of the model's;
so is the scale of attention.
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm
from edge_rt.models.names import LLAMA, sizes

ARCHITECTURE = Architecture(
    name="granite",
    layer=(Norm("attn_norm"), Attention(), Norm("ffn_norm"), GatedMlp()),
    rope_pairs="interleaved",
    multipliers=True,
    hugging_face=(
        HuggingFace(
            "granite",
            LLAMA,
            sizes(
                32,
                4096,
                11008,
                32,
                None,
                2048,
                1e-6,
                embedding_multiplier=1.0,
                residual_multiplier=1.0,
                attention_multiplier=1.0,
                logits_scaling=1.0,
            ),
            {
                "embedding_multiplier": "embedding_scale",
                "residual_multiplier": "residual_scale",
                "attention_multiplier": "attention.scale",
                "logits_scaling": "logit_scale",
            },
        ),
    ),
)
