"""The block formats of GGUF tensors: their ids, sizes and names. No NumPy here: the runtime
imports this, and the NumPy reference lives in ``quant.reference``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockFormat:
    """One storage format: ``block_elements`` weights in ``block_bytes`` bytes."""

    name: str
    ggml_id: int
    block_elements: int
    block_bytes: int

    @property
    def quantized(self) -> bool:
        """Whether activations are quantized to int8 before a product with this format."""
        return self.block_elements > 1

    def row_bytes(self, n_elements: int) -> int:
        """Bytes of one row; ``n_elements`` must be whole blocks."""
        return n_elements // self.block_elements * self.block_bytes


F32 = BlockFormat("F32", 0, 1, 4)
F16 = BlockFormat("F16", 1, 1, 2)
Q4_0 = BlockFormat("Q4_0", 2, 32, 18)
Q4_1 = BlockFormat("Q4_1", 3, 32, 20)
Q8_0 = BlockFormat("Q8_0", 8, 32, 34)
BF16 = BlockFormat("BF16", 30, 1, 2)

FORMATS = {f.ggml_id: f for f in (F32, F16, Q4_0, Q4_1, Q8_0, BF16)}

# Known to the ecosystem but not readable here: named in the refusal.
UNSUPPORTED = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
