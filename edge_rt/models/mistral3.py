"""Ministral 3 and the text part of Mistral 3: GGUF architecture ``mistral3``.

llama with YaRN, and with attention that grows sharper with the position ("Llama 4 scaling"):
scores are multiplied by 1 + beta ln(1 + floor(position / original context)). A Hugging Face folder
of Mistral 3 whose text part is a ``mistral`` runs as a llama, which is the same.
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm, Windows
from edge_rt.models.names import LLAMA, sizes

YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0,
    "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip

ARCHITECTURE = Architecture(
    name="mistral3",
    layer=(Norm("attn_norm"), Attention(), Norm("ffn_norm"), GatedMlp()),
    rope_pairs="interleaved",
    windows=Windows(full_every=0),
    hugging_face=(
        HuggingFace(
            "ministral3",
            LLAMA,
            sizes(34, 4096, 14336, 32, 8, 262144, 1e-5, head_dim=128, rope_parameters=YARN),
            windows="all",
        ),
    ),
)
