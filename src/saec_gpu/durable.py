"""Folders that are written whole or not at all, and put in place of the ones they replace.

A folder `out` is written as `<out>.writing` beside it, flushed, and renamed. Where one is replaced,
the two change places in one step (`renameat2` with RENAME_EXCHANGE, Linux); elsewhere the old one
is first renamed to `<out>.previous`, and `finish_swap` completes a swap that was interrupted
between the two renames. A file `replaces-previous` in the new folder says that this is under way: a
`<out>.previous` that somebody made by hand is never touched.

Who writes holds a lock (flock) on `<out>.writing`. So a folder that a killed process left there is
told from one that is being written.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from saec_gpu.errors import ArtifactError

MARKER = "replaces-previous"

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_error(path: Path, err: OSError) -> ArtifactError:
    """Return the error that says why the file or folder could not be written and what to do."""
    if err.errno in _NO_SPACE:
        return ArtifactError(
            f'"{path}" could not be written: the disk is full ({err.strerror}); '
            "free some space or give another folder, and run it again"
        )
    at = f' at "{err.filename}"' if err.filename is not None else ""
    return ArtifactError(f'"{path}" could not be written: {err.strerror or err}{at}')


def flush(path: Path) -> None:
    """Make a file, or the list of names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class OpenFolder:
    """An open folder. It stays the same one when another is put in its place or it is moved.

    Raises
    ------
    OSError
        There is no folder at path that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self._descriptor)

    def in_place(self) -> bool:
        """Return whether the folder still has its path."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except OSError:
            return False

    def open(self, name: str) -> BufferedReader:
        """Return a file of the folder, opened for reading.

        Raises
        ------
        ArtifactError
            It is not there any more or cannot be read.
        """
        try:
            return open(
                name, "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=self._descriptor)
            )
        except OSError as err:
            raise self._unreadable(name, err) from err

    def size(self, name: str) -> int:
        """Return the bytes of a file of the folder.

        Raises
        ------
        ArtifactError
            It is not there any more.
        """
        try:
            return os.stat(name, dir_fd=self._descriptor).st_size
        except OSError as err:
            raise self._unreadable(name, err) from err

    def has(self, name: str) -> bool:
        """Return whether the folder has a file of that name."""
        return os.access(name, os.F_OK, dir_fd=self._descriptor)

    def _unreadable(self, name: str, err: OSError) -> ArtifactError:
        return ArtifactError(
            f'"{self.path / name}" cannot be read ({err.strerror}); if the artifact was replaced '
            "or removed since it was loaded, load it again, else copy it again or make it anew"
        )


@contextmanager
def staged(
    out: Path, *, replace: bool, is_ours: Callable[[Path], bool], names: frozenset[str]
) -> Iterator[Path]:
    """Yield a folder to fill; then put it in place as out, whole and flushed, or leave no trace.

    Parameters
    ----------
    out : path
        Without symbolic links. Its parent folder exists.
    replace : bool
        Whether out is there and to be replaced. Otherwise it must not be there.
    is_ours : function of a path
        Whether a folder is a finished one of the kind that is written.
    names : set of str
        What such a folder holds, finished or not. A `<out>.writing` with anything else in it is not
        removed.

    Raises
    ------
    ArtifactError
        Another process writes the same out, or something that is not ours lies in the way.
    OSError
        Writing failed. What was at out still is.
    """
    folder = _beside(out, "writing")
    with _claimed(folder, is_ours, names), ExitStack() as locks:
        try:
            if replace:
                _drop_previous(out)
            yield folder
            for parent, _, files in os.walk(folder):
                for name in files:
                    flush(Path(parent, name))
                flush(Path(parent))
            if replace:
                # The old folder will have the name of this one until it is removed, so that it
                # must be locked like this one.
                locks.enter_context(_locked(out, wait=True))
                _replace(folder, out)
            else:
                _refuse_existing(out)
                os.rename(folder, out)
            flush(out.parent)
        finally:
            # What is there now is the unfinished folder, or the old one after the exchange.
            if not _half_done(out):
                shutil.rmtree(folder, ignore_errors=True)
                _drop_previous(out)


@contextmanager
def scratch_beside(out: Path, is_scratch: Callable[[str], bool]) -> Iterator[Path]:
    """Yield an empty folder on the file system of out; remove it at the end.

    Parameters
    ----------
    out : path
        Without symbolic links. Missing parents are made.
    is_scratch : function of a file's name
        Whether a killed process may have left the file; a folder with another one is refused.

    Raises
    ------
    ArtifactError
        Another process works for the same out, or something that is not ours lies in the way.
    """
    folder = _beside(out, "working")
    out.parent.mkdir(parents=True, exist_ok=True)
    left = os.listdir(folder) if folder.is_dir() else []
    with _claimed(folder, lambda _: False, frozenset(filter(is_scratch, left))):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def finish_swap(out: Path) -> None:
    """Complete the replacement of out, a path without symbolic links, if it was left half done.

    Raises
    ------
    OSError
        The folders cannot be renamed.
    """
    if not _half_done(out):
        return
    folder = _beside(out, "writing")
    with _locked(folder, wait=True):
        # While this process waited, the writer or another reader may have done it.
        if _half_done(out):
            os.rename(folder, out)
            flush(out.parent)
            _drop_previous(out)


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.name}.{what}")


def _half_done(out: Path) -> bool:
    return (
        not os.path.lexists(out)
        and (_beside(out, "writing") / MARKER).exists()
        and _beside(out, "previous").exists()
    )


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise ArtifactError(f'"{path}" is in the way; move it elsewhere or remove it')


@contextmanager
def _locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Yield whether this process holds the lock of the folder that has this path now."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as err:
            # Some network file systems lock no folders. Two writers at once are then not noticed.
            if err.errno not in _NOT_SUPPORTED | {errno.EBADF, errno.ENOLCK}:
                raise
        # It may have been removed, and made anew, before the lock was there.
        yield folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat())
    finally:
        os.close(descriptor)


@contextmanager
def _claimed(
    folder: Path, is_ours: Callable[[Path], bool], names: frozenset[str]
) -> Iterator[None]:
    """Make the folder, empty and locked; one that was left by a killed process is emptied."""
    made = not os.path.lexists(folder)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        _refuse_existing(folder)
    try:
        with _locked(folder) as mine:
            if not mine:
                raise ArtifactError(
                    f'another process is writing "{folder}"; wait for it, or give another folder'
                )
            found = list(folder.iterdir())
            if not is_ours(folder) and not {entry.name for entry in found} <= names | {MARKER}:
                _refuse_existing(folder)
            for entry in found:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            yield
    except BaseException:
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _replace(folder: Path, out: Path) -> None:
    """Put folder in place of out; the old one lies at folder or at `<out>.previous` then."""
    if _exchange(folder, out):
        return
    previous = _beside(out, "previous")
    _refuse_existing(previous)
    (folder / MARKER).touch()
    flush(folder / MARKER)
    flush(folder)
    try:
        os.rename(out, previous)
        os.rename(folder, out)
    except BaseException:
        if _half_done(out):
            os.rename(previous, out)
        raise


def _exchange(folder: Path, out: Path) -> bool:
    """Let two folders change names in one step; return whether that can be done here."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if sys.platform != "linux" or rename is None:
        return False
    paths = os.fsencode(folder), os.fsencode(out)
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(out))


def _drop_previous(out: Path) -> None:
    """Remove what `<out>.previous` a completed swap has left."""
    if (out / MARKER).exists():
        shutil.rmtree(_beside(out, "previous"), ignore_errors=True)
        (out / MARKER).unlink(missing_ok=True)
