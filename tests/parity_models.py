"""Tiny random Hugging Face models of odd sizes, written as F32 GGUFs the way llama.cpp's converter
writes them: q/k rows permuted to interleaved rotary pairs, llama3 scaling as ``rope_freqs.weight``.

    python tests/parity_models.py DIR     writes every variant, its token ids and its HF logits

Needs the ``parity`` extra (torch, transformers). Tests reach it through the ``parity`` fixture.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers

N_TOKENS = 96

# name -> arguments of make_tiny_llama
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied": True},
    "llama3": {"rope": "llama3"},
    "linear": {"rope": "linear"},
    "bias": {"attention_bias": True},
    "mistral": {"family": "mistral"},
    "mha": {"heads": 4, "kv_heads": 4, "head_dim": 24},
    "one_kv_head": {"heads": 5, "kv_heads": 1, "head_dim": 8, "hidden": 80, "ffn": 44},
    "wide_head": {"heads": 2, "kv_heads": 2, "head_dim": 80, "theta": 1e6, "tied": True},
}


def _make_model() -> ModuleType:
    key = "edge_rt_scripts_make_model"
    if key not in sys.modules:
        path = Path(__file__).resolve().parent.parent / "scripts/make_model.py"
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key]


def _rope(kind: str, theta: float) -> dict[str, Any]:
    """Short original context: with 96 tokens every band of llama3 scaling takes part."""
    rope: dict[str, Any] = {"rope_type": "default" if kind == "none" else kind}
    if kind == "linear":
        rope["factor"] = 4.0
    if kind == "llama3":
        rope |= {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope["original_max_position_embeddings"] = 64
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {**rope, "rope_theta": theta}}
    return {"rope_theta": theta, "rope_scaling": None if kind == "none" else rope}


def llama3_factors(head_dim: int, theta: float) -> np.ndarray:
    """(head_dim / 2,) frequency divisors, as convert_hf_to_gguf computes them."""
    factor, low, high, original = 8.0, 1.0, 4.0, 64.0
    out = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            out.append(1.0)
        elif wavelength > original / low:
            out.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def permute(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows (heads * dim, ...) from rotary halves to interleaved pairs."""
    halves = w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(w.shape))


def make_tiny_llama(
    folder: Path,
    *,
    name: str = "tiny",
    family: str = "llama",
    layers: int = 3,
    hidden: int = 96,
    ffn: int = 172,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 20,
    vocab: int = 320,
    tied: bool = False,
    attention_bias: bool = False,
    rope: str = "none",
    theta: float = 10000.0,
    seed: int = 0,
) -> tuple[Path, Any]:
    """Build a random model; returns its GGUF and the Hugging Face model in float32."""
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    }
    config_class, model_class = classes[family]
    options: dict[str, Any] = {"attention_bias": attention_bias} if family == "llama" else {}
    if family == "mistral":
        options["sliding_window"] = None
    config = config_class(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
        **_rope(rope, theta),
        **options,
    )
    generator = torch.Generator().manual_seed(seed)
    model = model_class(config).float().eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in key:
                p.copy_(1 + 0.1 * noise)
            elif "embed_tokens" in key:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise / p.shape[-1] ** 0.5 if p.dim() == 2 else 0.3 * noise)

    maker = _make_model()
    shape = maker.Config(
        layers=layers, hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        vocab=vocab, context=512, format="F32", tied=tied, rope_theta=theta,
        rope_scaling="linear" if rope == "linear" else "none", rope_factor=4.0, name=name,
    )  # fmt: skip
    gguf = maker.build(shape, seed)
    gguf.tensors = []
    for key, value in tensors(model, heads, kv_heads).items():
        dims, data = tuple(reversed(value.shape)), value.astype("<f4").tobytes()
        gguf.tensors.append(maker.Tensor(key, dims, "F32", lambda out, data=data: out.write(data)))
    if rope == "llama3":
        gguf.tensors.append(maker.vector("rope_freqs.weight", llama3_factors(head_dim, theta)))
    path = folder / f"{name}.gguf"
    gguf.write(path)
    return path, model


_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(model: Any, heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    """GGUF names and arrays of a llama or mistral; a tied head is stored once."""
    out: dict[str, np.ndarray] = {}
    for key, p in model.named_parameters():
        stem, _, kind = key.removeprefix("model.").rpartition(".")
        value = p.detach().numpy()
        if stem.startswith("layers."):
            _, layer, part = stem.split(".", 2)
            if part.endswith((".q_proj", ".k_proj")):
                value = permute(value, heads if part.endswith(".q_proj") else kv_heads)
            out[f"blk.{layer}.{_NAMES[part]}.{kind}"] = value
        else:
            top = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
            out[f"{top[stem]}.{kind}"] = value
    return out


def token_ids(vocab: int = 320, n: int = N_TOKENS, seed: int = 0) -> np.ndarray:
    """(n,) int32: BOS, then anything."""
    ids = np.random.default_rng(seed).integers(3, vocab, n).astype(np.int32)
    ids[0] = 1
    return ids


def hf_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """(n, vocab) float32 of the Hugging Face model."""
    with torch.inference_mode():
        batch = torch.from_numpy(ids.astype(np.int64))[None]
        return np.asarray(model(batch, use_cache=False).logits[0].float().numpy())


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ids = token_ids()
    np.save(folder / "ids.npy", ids)
    for name, options in VARIANTS.items():
        path, model = make_tiny_llama(folder, name=name, **options)
        np.save(folder / f"{name}.hf.npy", hf_logits(model, ids))
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
