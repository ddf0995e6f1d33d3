"""What comes with the package."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import InputError

ASSETS = Path(__file__).parent / "assets"


def weights_file(given: str | os.PathLike[str] | None, own: str, what: str) -> Path:
    """The file of weights that was given; None: our own, which is called `own`. Raises InputError if it is not there.

    what: the network's name, of which the last word is that of the training that writes such files.
    """
    path = ASSETS / own if given is None else Path(given)
    if not path.is_file():
        training = what.split()[-1]
        raise InputError(f"no {what} at {str(path)!r}: give the file that imtalker train {training} wrote")
    return path
