"""Files that the user names: what is wrong with one is told in one line, and where it can be, before anything slow; and
what is written is there whole or not at all."""

from __future__ import annotations

import os
import pickle
import secrets
import textwrap
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError

# What reading .npz, .pt, .safetensors, .json and pictures raises where they are damaged or hold something else than is
# expected
FAULTS = (OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, AttributeError, zipfile.BadZipFile,
          zlib.error, pickle.UnpicklingError, SafetensorError)  # fmt: skip


def check_writable(file: str | os.PathLike[str], what: str) -> Path:
    """Raise InputError unless `complete` can write a file there; return where (links followed). `what` it is, for the
    message: "report"."""
    name = repr(os.fspath(file))
    target = Path(os.path.realpath(file))
    try:
        if target.is_dir():
            raise InputError(f"{what} {name} is a folder, expected a file name: name a file in it")
        if not target.parent.is_dir():
            raise InputError(f"the folder of {what} {name} does not exist: make it first, or choose another one")
        if target.exists() and not target.is_file():
            raise InputError(f"{what} {name} is not a regular file, expected a file name: choose another name")
        _beside(target).unlink()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what} {name} cannot be written ({reason}): choose another place") from None
    return target


def _beside(target: Path) -> Path:
    """A new, empty, hidden file in the same folder, so that renaming it is atomic; its end tells its format, too."""
    path = target.with_name(f".imtalker-{secrets.token_hex(6)}{target.suffix.lower()}")
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # not mkstemp: its files are private
    return path


@contextmanager
def readable(file: str | Path, advice: str) -> Iterator[None]:
    """What goes wrong inside, where no more is done than read `file`, is an InputError that names it; `advice` says
    what to do."""
    try:
        yield
    except InputError:
        raise
    except FAULTS as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"{error} is missing"
        if isinstance(error, pickle.UnpicklingError):  # PyTorch explains at length how to trust a file
            reason = "it is no file of PyTorch"
        raise InputError(f"{str(file)!r} cannot be used ({textwrap.shorten(reason, 200)}): {advice}") from error


class complete:
    """`with complete(file) as unfinished:` write to `unfinished`; it becomes `file` if all went well, else it goes.

    Who may read it follows from the user's umask, even where what writes it keeps files private, as safetensors does.
    """

    def __init__(self, file: Path):
        self.file = Path(os.path.realpath(file))

    def __enter__(self) -> Path:
        self.unfinished = _beside(self.file)
        self.mode = self.unfinished.stat().st_mode
        return self.unfinished

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.keep()
        finally:
            self.discard()

    def keep(self) -> None:
        self.unfinished.chmod(self.mode)
        self.unfinished.replace(self.file)

    def discard(self) -> None:
        """Does nothing after `keep`."""
        self.unfinished.unlink(missing_ok=True)
