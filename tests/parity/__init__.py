"""Tiny random models of every architecture: as transformers builds them, as Hugging Face folders
and as the GGUFs that llama.cpp's converter would write.

``variants`` is the table, ``weights`` and ``gguf_models`` need NumPy only, ``hugging_face`` needs
torch and transformers.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))  # gguf_layout, make_model
