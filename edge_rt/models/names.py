"""Names that Hugging Face folders give the tensors of a layer, and ours."""

from __future__ import annotations

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
