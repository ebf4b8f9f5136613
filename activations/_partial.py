"""A file under its temporary name, and that nobody else writes it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


class Partial:
    """A file that is being written by this process alone, empty at first.

    Another process finds it locked, until it is removed or this process ends.

    Raises:
        FileExistsError: if it is there and must be `new`.
        BlockingIOError: if another process writes it.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path = path
        self._number = self._open(os.O_EXCL if new else 0)
        # what was there may have got its name, and lost this one or not, before it was locked: it is no longer ours
        while not self._is_ours() or os.fstat(self._number).st_nlink > 1:
            self.remove()
            self._number = self._open(0)

    def _open(self, flag: int) -> int:
        return _locked(os.open(self.path, os.O_RDWR | os.O_CREAT | flag, 0o666))

    def _is_ours(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._number), os.stat(self.path))
        return False

    def reserve(self, size: int) -> None:
        """Take room for so many bytes from the beginning on, where the system can do that."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._number, 0, size)

    def cut(self, size: int) -> None:
        """Give back what is beyond `size` bytes, if there is anything."""
        os.ftruncate(self._number, min(size, os.fstat(self._number).st_size))

    def begin(self, content: bytes) -> None:
        """Write over the beginning."""
        os.pwrite(self._number, content, 0)

    def name(self, final: Path) -> bool:
        """Give the file its name, once it is on the disk, unless another has it; tells whether none had."""
        os.fsync(self._number)
        try:
            os.link(self.path, final)  # unlike a rename, this never replaces anything
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if os.path.lexists(final):
                return False
            os.replace(self.path, final)
        self._let_go(final.parent)
        return True

    def replace(self, final: Path) -> None:
        """Give the file its name, once it is on the disk, whichever had it."""
        os.fsync(self._number)
        os.replace(self.path, final)
        self._let_go(final.parent)

    def _let_go(self, folder: Path) -> None:
        """End what was temporary at once, since a file that is locked cannot be read by everybody."""
        self.remove()
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

    def remove(self) -> None:
        """Remove the temporary name if the file still has it, and let go of it; nothing happens the second time."""
        if self._number < 0:
            return
        try:
            if self._is_ours():
                self.path.unlink()
        finally:
            os.close(self._number)
            self._number = -1


def remove_left(path: Path) -> None:
    """Remove a temporary file that a process left when it ended early, if there is one.

    Raises:
        BlockingIOError: if a process writes it.
    """
    if path.exists():  # to lock what is not there would make it
        Partial(path).remove()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """A new folder that this process writes into; nothing is left of it if the block fails.

    Raises:
        BlockingIOError: if another process writes into it.
        FileExistsError: if it was left by a process that was killed.
    """
    try:
        path.mkdir()
    except FileExistsError:
        os.close(_locked(os.open(path, os.O_RDONLY)))
        raise
    number = _locked(os.open(path, os.O_RDONLY))
    try:
        yield
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        os.close(number)


def _locked(number: int) -> int:
    """A file or folder that was opened, locked for this process; closed if another has it."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        raise
    except OSError:  # a file system without locks
        pass
    return number
