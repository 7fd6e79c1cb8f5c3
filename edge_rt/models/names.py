"""Names that Hugging Face folders give a layer's tensors, and the sizes that they leave out."""

from __future__ import annotations

from edge_rt.models.description import Architecture

ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
LLAMA = PRE_NORMS | ATTENTION | MLP
GEMMA = (
    {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm"}
    | POST_NORMS
    | ATTENTION
    | MLP
)
# Numbers that config.json and GGUF call alike; null is no cap.
FINAL_CAP = {"final_logit_softcapping": "final_logit_softcapping"}
CAPS = FINAL_CAP | {"attn_logit_softcapping": "attn_logit_softcapping"}


def name_in_folder(name: str, architecture: Architecture) -> str:
    """What a folder of ``architecture`` calls the tensor that is ``name`` in a GGUF."""
    stem, _, kind = name.rpartition(".")
    top = {
        architecture.embedding: "model.embed_tokens",
        architecture.final_norm: "model.norm",
        architecture.head: "lm_head",
    }
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, layer, ours = stem.split(".", 2)
    for family in architecture.hugging_face:
        for theirs, known in family.names.items():
            if known == ours:
                return f"model.layers.{layer}.{theirs}.{kind}"
    return name


def sizes(
    layers: int,
    hidden: int,
    ffn: int,
    heads: int,
    kv_heads: int | None,
    context: int,
    eps: float,
    **more: object,
) -> dict[str, object]:
    """What transformers' config class of a family assumes where config.json is silent."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "rms_norm_eps": eps,
        "rope_theta": 10000.0,
        **more,
    }
