"""Phi-3 and Phi-4: q, k, v and gate, up as one matrix each. GGUF architecture ``phi3``.

LongRoPE's factors are chosen by the engine's context: the long ones where it exceeds the original
one, as in llama.cpp; transformers chooses by the length of each prompt. Phi-3's window holds for
every layer, as in transformers; llama.cpp leaves it out.
"""

from edge_rt.models.description import Architecture, Attention, GatedMlp, HuggingFace, Norm, Windows
from edge_rt.models.names import PRE_NORMS, sizes

ARCHITECTURE = Architecture(
    name="phi3",
    layer=(Norm("attn_norm"), Attention(), Norm("ffn_norm"), GatedMlp(gate=None)),
    rope_pairs="halves",
    windows=Windows(full_every=0),
    hugging_face=(
        HuggingFace(
            "phi3",
            PRE_NORMS
            | {
                "self_attn.qkv_proj": "attn_qkv",
                "self_attn.o_proj": "attn_output",
                "mlp.gate_up_proj": "ffn_up",
                "mlp.down_proj": "ffn_down",
            },
            sizes(32, 3072, 8192, 32, None, 4096, 1e-5, original_max_position_embeddings=4096),
            windows="all",
            partial_rope=True,
        ),
    ),
)
