"""Files that the user names: what is wrong with one is told in one line, and where it can be, before anything slow; and
what is written is there whole or not at all."""

from __future__ import annotations

import os
import pickle
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


def check_writable(file: Path, what: str) -> None:
    """Raise InputError unless a file can be written there; `what` it is, for the message: "report"."""
    if not file.parent.is_dir():
        raise InputError(f"the folder {str(file.parent)!r} for the {what} does not exist: make it, or name another")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(f"the {what} {str(file)!r} cannot be written: name a file in a folder of yours")


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
        self.file, self.unfinished = file, file.with_name(f".{file.name}.{os.getpid()}.part")

    def __enter__(self) -> Path:
        self.unfinished.touch()
        self.mode = self.unfinished.stat().st_mode
        return self.unfinished

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.unfinished.chmod(self.mode)
                self.unfinished.replace(self.file)
        finally:
            self.unfinished.unlink(missing_ok=True)
