"""Gemma 1: scaled embeddings, a GELU gate. GGUF architecture ``gemma``.

transformers rounds the embedding scale to the weights' type (bfloat16, as a rule); like llama.cpp
we do not.
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm
from edge_rt.models.names import LLAMA, sizes

ARCHITECTURE = Architecture(
    name="gemma",
    layer=(Norm("attn_norm"), Attention(), Norm("ffn_norm"), GatedMlp(activation="gelu")),
    rope_pairs="halves",
    scaled_embedding=True,
    hugging_face=(
        HuggingFace(
            "gemma",
            LLAMA,
            sizes(28, 3072, 24576, 16, 16, 8192, 1e-6, head_dim=256, tie_word_embeddings=True),
            norm_offset=1.0,
        ),
    ),
)
