"""Hugging Face's ``tokenizer.json``, run by the tokenizers library itself.

It needs several times the memory that the same vocabulary needs from a GGUF file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_rt.errors import ModelError, StorageError, UsageError
from edge_rt.sizes import MIB
from edge_rt.tokenizer_bpe import bytes_of_piece
from edge_rt.tokenizer_spm import SPACE
from edge_rt.tokenizer_vocab import BYTE, CONTROL, NORMAL, USER_DEFINED, Vocabulary

_MAX_BYTES = 64 * MIB  # the largest known, gemma's, has 33 MiB


def read_text(path: Path, max_bytes: int) -> str:
    """Read a small text file; raises `UsageError`, `ModelError` or `StorageError`."""
    try:
        if not path.is_file():
            raise UsageError(f"no such file: {path}")
        if path.stat().st_size > max_bytes:
            raise ModelError(f"{path} has more than {max_bytes} bytes")
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise ModelError(f"{path} is not UTF-8") from None
    except PermissionError as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """``tokenizer_config.json`` of ``folder``, empty when there is none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(read_text(path, MIB * 4))
    except (ValueError, RecursionError) as error:
        if isinstance(error, (UsageError, ModelError)):
            raise
        raise ModelError(f"{path} is not JSON: {str(error)[:80]}") from None
    return settings if isinstance(settings, dict) else {}


class JsonModel:
    """Encodes whole texts, special tokens included."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._path = path
        text = read_text(path, _MAX_BYTES)
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except BaseException as error:  # the library also raises pyo3's PanicException
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ModelError(f"{path} is not a tokenizer: {str(error)[:160]}") from None
        decoder = str(self._tokenizer.decoder or "")
        self._byte_level = "ByteLevel" in decoder
        # The name that `Tokenizer` asks for: whether decoding takes the first space away.
        self.add_space_prefix = "Strip(" in decoder or "Metaspace" in decoder
        self.vocabulary = self._vocabulary()

    def _vocabulary(self) -> Vocabulary:
        tokenizer = self._tokenizer
        added = tokenizer.get_added_tokens_decoder()
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        n_tokens = 1 + max(ids, default=-1)
        if n_tokens > 2 * len(ids) + 65536:
            raise ModelError(f"{self._path}: {len(ids)} tokens have ids up to {n_tokens - 1}")
        del ids
        types = bytearray([NORMAL]) * n_tokens
        pieces = []
        for index in range(n_tokens):
            piece = tokenizer.id_to_token(index)
            if piece is None:  # a hole in the ids
                piece = f"[unused {index}]"
                types[index] = CONTROL
            elif index in added:
                types[index] = CONTROL if added[index].special else USER_DEFINED
            elif not self._byte_level and len(piece) == 6 and piece.startswith("<0x"):
                types[index] = BYTE
            pieces.append(piece.encode())
        return Vocabulary(pieces, n_tokens, types)

    def encode(self, text: str, special: bool) -> list[int]:
        """Encode ``text``; ``special``: control tokens in it are found."""
        self._tokenizer.encode_special_tokens = not special
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, index: int) -> bytes:
        """The bytes of an ordinary or byte token."""
        piece = self.vocabulary.piece(index)
        if self._byte_level:
            return bytes_of_piece(piece)
        if self.vocabulary.types[index] == BYTE:
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                return piece
        return piece.replace(SPACE.encode(), b" ")
