"""Tiny random models of every architecture: as transformers builds them, as Hugging Face folders
and as the GGUFs that llama.cpp's converter would write.

``variants`` is the table, ``weights`` and ``gguf_models`` need NumPy only, ``hugging_face`` needs
torch and transformers.
"""
