"""Reading files that somebody else may have put there: regular files only, and no more of them than fits."""

import errno
import gzip
import os
import stat
from pathlib import Path
from typing import Protocol

__all__ = ["read"]

CHUNK = 1 << 20


def read(path: Path, most: int, *, unzip: bool = False) -> bytes:
    """Return a file's bytes, or with ``unzip`` what they unpack to.

    Raises OSError for a device, a pipe or a folder, and beyond ``most`` bytes; unzipping also EOFError and zlib.error.
    """
    with open(path, "rb", opener=_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if not unzip:
            return _bounded(file, most, path)
        with gzip.open(file) as unzipped:
            return _bounded(unzipped, most, path)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _bounded(file: _Readable, most: int, path: Path) -> bytes:
    chunks, left = [], most
    while chunk := file.read(CHUNK):
        chunks.append(chunk)
        left -= len(chunk)
        if left < 0:
            raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
    return b"".join(chunks)


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for somebody at the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
