"""Text to token ids and back: `Tokenizer`, usable without weights."""

from edge_rt.tokenizer.tokenizer import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
