"""Ministral 3 and the text part of Mistral 3: GGUF architecture ``mistral3``.

llama with YaRN, and with attention that grows sharper with the position ("Llama 4 scaling"):
scores are multiplied by 1 + beta ln(1 + floor(position / original context)).
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm, Windows
from edge_rt.models.names import LLAMA

ARCHITECTURE = Architecture(
    name="mistral3",
    layer=(Norm("attn_norm"), Attention(), Norm("ffn_norm"), GatedMlp()),
    rope_pairs="interleaved",
    windows=Windows(full_every=0),
    hugging_face=HuggingFace(("mistral3", "ministral3"), LLAMA, defaults={"head_dim": 128}),
)
