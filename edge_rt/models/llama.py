"""Llama 2 and 3, Mistral, SmolLM2, TinyLlama: GGUF architecture ``llama``.

Mistral 7B v0.1's window of 4096 holds for every layer. llama.cpp leaves it out, transformers does
not; we follow the file.
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm, Windows
from edge_rt.models.names import LLAMA, sizes

ARCHITECTURE = Architecture(
    name="llama",
    layer=(Norm("attn_norm"), Attention(), Norm("ffn_norm"), GatedMlp()),
    rope_pairs="interleaved",
    windows=Windows(full_every=0),
    hugging_face=(
        HuggingFace("llama", LLAMA, sizes(32, 4096, 11008, 32, None, 2048, 1e-6)),
        HuggingFace(
            "mistral",
            LLAMA,
            sizes(32, 4096, 14336, 32, 8, 131072, 1e-6, sliding_window=4096),
            windows="all",
        ),
    ),
)
