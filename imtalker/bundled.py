"""What comes with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from torch import nn

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


def load_bundled(network: nn.Module, given: str | os.PathLike[str] | None, own: str, what: str) -> None:
    """Fill a network from such a file, as float32. Raises InputError if it is no weights, or another network's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weights_file(given, own, what)
    try:
        stored = load_file(path)
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{str(path)!r} holds no weights of a {what} ({str(error).splitlines()[0]}): give the file "
                         f"that imtalker train {what.split()[-1]} wrote") from error
