"""Conversations as files: ``{"messages": [{"role": "user", "content": "hi"}, …]}``, JSON in UTF-8.

What is loaded is walked through, not parsed at once: a hostile file costs its texts and no more.
What is saved appears whole under its name or not at all, whatever fails on the way.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Final

from edge_rt.errors import ModelError, StorageError, UsageError
from edge_rt.flash_io.files import failed, open_file, storage_errors
from edge_rt.loaders.gguf_cursor import Cursor, clip
from edge_rt.loaders.json_stream import JsonStream
from edge_rt.sizes import KIB, MIB

ROLES: Final = ("system", "user", "assistant")
MAX_FILE_BYTES: Final = 1 * MIB
MAX_MESSAGES: Final = 4096
# Reading a text takes up to 12 times its bytes for a moment, which the slack must cover: a token
# has about 4 bytes, and few have more than 16 even as \u escapes.
_BASE_BYTES: Final = 16 * KIB
_TOKEN_BYTES: Final = 16
_KEYS: Final = ("role", "content")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def limit_bytes(ctx: int) -> int:
    """The largest file that is loaded into a context of ``ctx`` tokens."""
    return min(MAX_FILE_BYTES, _BASE_BYTES + _TOKEN_BYTES * ctx)


def load(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> list[dict[str, str]]:
    """The messages in ``path``, each with a ``role`` of `ROLES` and a ``content``.

    Raises `UsageError` with the reason for a file that is missing, larger than ``max_bytes`` (it is
    not read then), or anything but such a conversation; `StorageError` when the drive fails.
    """
    file = open_file(path)
    if file.size > max_bytes:
        raise UsageError(
            f"cannot load {clip(file.path, 300)}: it has {file.size} bytes, "
            f"a conversation may have {max_bytes}"
        )
    try:
        messages = _messages(JsonStream(Cursor(file, 0, file.size)), max_bytes)
        with storage_errors():
            file.check_unchanged()
    except ModelError as error:
        with storage_errors():
            file.check_unchanged()  # else it is half of two files, which are conversations perhaps
        raise UsageError(f"not a conversation: {error}") from None
    return messages


def _messages(stream: JsonStream, max_bytes: int) -> list[dict[str, str]]:
    """Walk through the document; raises `ModelError` for what does not belong there."""
    messages: list[dict[str, str]] | None = None
    for key in stream.members():
        if key != "messages":
            raise stream.fail(f"it has {clip(key)}; only messages are known")
        if messages is not None:
            raise stream.fail("messages occurs twice")
        messages = []
        if stream.peek() != b"[":
            raise stream.fail("messages is not a list")
        for _ in stream.items():
            if len(messages) == MAX_MESSAGES:
                raise stream.fail(f"more than {MAX_MESSAGES} messages")
            messages.append(_message(stream, f"message {len(messages)}", max_bytes))
    stream.end()
    if messages is None:
        raise stream.fail("it has no messages")
    return messages


def _message(stream: JsonStream, what: str, max_bytes: int) -> dict[str, str]:
    if stream.peek() != b"{":
        raise stream.fail(f"{what} is not an object")
    found: dict[str, str] = {}
    for key in stream.members():
        if key not in _KEYS:
            raise stream.fail(f"{what} has {clip(key)}; only role and content are known")
        if key in found:
            raise stream.fail(f"{what} has {key} twice")
        if stream.peek() != b'"':
            raise stream.fail(f"the {key} of {what} is not a string")
        found[key] = stream.string(max_bytes)
    for key in _KEYS:
        if key not in found:
            raise stream.fail(f"{what} has no {key}")
    if found["role"] not in ROLES:
        raise stream.fail(
            f"the role of {what} is {clip(found['role'])}; known are {', '.join(ROLES)}"
        )
    return {"role": ROLES[ROLES.index(found["role"])], "content": found["content"]}


def save(path: str | os.PathLike[str], messages: Sequence[Mapping[str, str]]) -> None:
    """Write ``messages`` so that ``path`` holds the old conversation or the whole new one, also
    after a power cut.

    A file that is there is replaced only if it is a conversation or empty; a link stays a link. A
    new file can be read by its owner alone. Raises `UsageError` for a name that cannot be
    written, `StorageError` when the drive is full or fails; the old file is unharmed then, or
    replaced as a whole where only its folder could not be written.
    """
    data, name = _encoded(messages), os.fspath(path)
    try:
        name = os.path.realpath(name)
        mode = _replaceable(name)
        part = os.path.join(os.path.dirname(name), f".edge-rt-{os.urandom(8).hex()}.part")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:
        raise _error(name, error) from None
    try:
        with open(fd, "wb") as file:
            if mode is not None:
                os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(part, name)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        if isinstance(error, OSError):
            raise _error(name, error) from None
        raise
    _sync_folder(name)


def _encoded(messages: Sequence[Mapping[str, str]]) -> bytes:
    plain = [{key: message[key] for key in _KEYS} for message in messages]
    try:
        data = json.dumps({"messages": plain}, ensure_ascii=False, indent=1).encode() + b"\n"
    except UnicodeEncodeError:
        raise UsageError("cannot save: a message is not Unicode") from None
    if len(data) > MAX_FILE_BYTES or len(plain) > MAX_MESSAGES:
        raise UsageError(
            f"cannot save {len(plain)} messages in {len(data)} bytes: a conversation may have "
            f"{MAX_MESSAGES} in {MAX_FILE_BYTES}"
        )
    return data


def _replaceable(name: str) -> int | None:
    """The permissions of the file at ``name``, None if there is none; raises `UsageError` for one
    that is something else than a conversation."""
    try:
        status = os.lstat(name)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"cannot save {clip(name, 300)}: not a regular file")
    if status.st_size:
        try:
            load(name)
        except UsageError as error:
            raise UsageError(f"it is not replaced, choose another name: {error}") from None
    return status.st_mode & 0o777


def _sync_folder(name: str) -> None:
    """Make the new name survive a power cut, where the file system has a way to."""
    try:
        fd = os.open(os.path.dirname(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # a folder that may be written, not read
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # no such call on this file system
            raise _error(name, error) from None
    finally:
        os.close(fd)


def _error(name: str, error: OSError | ValueError) -> StorageError | UsageError:
    """What to tell the user when saving failed."""
    if isinstance(error, (StorageError, UsageError)):
        return error
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else str(error)
    text = f"cannot save {clip(name, 300)}: {reason}"
    if isinstance(error, OSError) and (number in _FULL or failed(error)):
        return StorageError(text)
    return UsageError(text)
