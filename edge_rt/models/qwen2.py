"""Qwen 2 and 2.5: llama with biases of q, k and v. GGUF architecture ``qwen2``.

Windows of config.json (``use_sliding_window``, layers from ``max_window_layers`` on) are kept;
llama.cpp's converter leaves them out.
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm
from edge_rt.models.names import LLAMA, sizes

ARCHITECTURE = Architecture(
    name="qwen2",
    layer=(Norm("attn_norm"), Attention(), Norm("ffn_norm"), GatedMlp()),
    rope_pairs="halves",
    hugging_face=(
        HuggingFace(
            "qwen2",
            LLAMA,
            sizes(32, 4096, 22016, 32, 32, 32768, 1e-6, sliding_window=4096, max_window_layers=28),
            windows="late",
        ),
    ),
)
