"""Files: read safely whoever wrote them, written whole or not at all, and locked by one process at a time."""

import errno
import fcntl
import gzip
import os
import platform
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Protocol

__all__ = ["Lock", "holder", "read", "replace"]

CHUNK = 1 << 20
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""What a file system without locks answers."""


def read(path: Path, most: int, *, unzip: bool = False) -> bytes:
    """Return a file's bytes, unpacked with ``unzip``.

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


def replace(path: Path, content: bytes) -> None:
    """Write a file whole and synced to disk, or not at all; raises OSError.

    Until it is complete it lies beside its place as ``.NAME.`` and a random number, so that writers of one file, even
    in different containers, do not collide; this part stays only if the process or the machine is killed.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Lock:
    """A file held by this process until ``release``, or until the process ends, however it ends.

    The kernel keeps the lock; the file only names the holder, and stays. Raises BlockingIOError if another process
    (or thread) holds it, other OSErrors if the file cannot be made. ``works`` is False on a file system without locks:
    nothing is held there.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)  # not inherited by what is executed
        try:
            self.works = _try(self._file, fcntl.LOCK_EX)
        except OSError:
            os.close(self._file)
            raise
        with suppress(OSError):  # on a full disk it is held all the same, only without a name
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {platform.node()}\n".encode())

    def release(self) -> None:
        """Release the lock."""
        os.close(self._file)


def holder(path: Path) -> str | None:
    """Return who holds a lock, as in ``process 17``, with the host if it is another one; None if nobody does."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        with suppress(BlockingIOError):
            _try(file, fcntl.LOCK_SH)
            return None
        said = re.fullmatch(rb"(process \d{1,10})( on [\w.-]{1,255})\n", os.read(file, 300))
    finally:
        os.close(file)
    if said is None:
        return "another process"
    process, host = said[1].decode(), said[2].decode()
    return process if host == f" on {platform.node()}" else process + host


def _try(file: int, how: int) -> bool:
    """Lock an open file at once; False if its file system has no locks. Raises BlockingIOError if it is held."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True
