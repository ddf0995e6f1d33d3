"""The command that trains one of evaluation's judges, or measures what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..options import SEED, OptionParser
from .loop import prepare


def command(
    network: str,
    about: str,
    train: Callable,
    measure: Callable[[Path, Path], None],
    arguments: list[str] | None,
    more: Callable[[OptionParser], None] = lambda parser: None,
) -> None:
    """Run `train`(data, out, seed, and what `more` adds to the parser), or `measure`(out, data)."""
    parser = OptionParser(prog=f"imtalker train {network}", description=about)
    parser.add_argument("data", type=Path, help="folder made by `imtalker synth`")
    parser.add_argument("out", type=Path, help="weights to write, a .safetensors file")
    more(parser)
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--measure", action="store_true", help="train nothing; print how well the weights in OUT do")
    given = vars(parser.parse_args(arguments))
    if given.pop("measure"):
        measure(given["out"], given["data"])
    else:
        prepare(given["out"])
        train(**given)
        print(given["out"])
