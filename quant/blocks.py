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
Q5_0 = BlockFormat("Q5_0", 6, 32, 22)
Q5_1 = BlockFormat("Q5_1", 7, 32, 24)
Q8_0 = BlockFormat("Q8_0", 8, 32, 34)
Q2_K = BlockFormat("Q2_K", 10, 256, 84)
Q3_K = BlockFormat("Q3_K", 11, 256, 110)
Q4_K = BlockFormat("Q4_K", 12, 256, 144)
Q5_K = BlockFormat("Q5_K", 13, 256, 176)
Q6_K = BlockFormat("Q6_K", 14, 256, 210)
IQ2_XXS = BlockFormat("IQ2_XXS", 16, 256, 66)
IQ2_XS = BlockFormat("IQ2_XS", 17, 256, 74)
IQ3_XXS = BlockFormat("IQ3_XXS", 18, 256, 98)
IQ1_S = BlockFormat("IQ1_S", 19, 256, 50)
IQ4_NL = BlockFormat("IQ4_NL", 20, 32, 18)
IQ3_S = BlockFormat("IQ3_S", 21, 256, 110)
IQ2_S = BlockFormat("IQ2_S", 22, 256, 82)
IQ4_XS = BlockFormat("IQ4_XS", 23, 256, 136)
IQ1_M = BlockFormat("IQ1_M", 29, 256, 56)
BF16 = BlockFormat("BF16", 30, 1, 2)
TQ1_0 = BlockFormat("TQ1_0", 34, 256, 54)
TQ2_0 = BlockFormat("TQ2_0", 35, 256, 66)
MXFP4 = BlockFormat("MXFP4", 39, 32, 17)

FORMATS = {
    f.ggml_id: f
    for f in (
        F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ2_XXS, IQ2_XS,
        IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4,
    )
}  # fmt: skip

# Known to the ecosystem but not readable here: named in the refusal. Q8_1 and Q8_K hold
# activations, never weights; ggml withdrew 4, 5, 31..33 and 36..38, but files of them are around.
UNSUPPORTED = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
