class IoError(OSError): ...

def read_range(
    path: str,
    offset: int,
    length: int,
    request_bytes: int = 1048576,
    n_threads: int = 4,
    direct: bool = True,
) -> bytes: ...
def skip_strings(buffer: bytes, at: int, count: int) -> tuple[int, int]: ...
