"""SmolLM 3: llama in which each fourth layer has no positions. GGUF architecture ``smollm3``."""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm
from edge_rt.models.names import LLAMA

ARCHITECTURE = Architecture(
    name="smollm3",
    layer=(Norm("attn_norm"), Attention(), Norm("ffn_norm"), GatedMlp()),
    rope_pairs="interleaved",
    rope_skips_every=4,
    hugging_face=HuggingFace(("smollm3",), LLAMA, defaults={"tie_word_embeddings": True}),
)
