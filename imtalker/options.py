"""Options of every command: a parser that says what is wrong in one line, and the kinds of values that options take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import fields


class OptionParser(argparse.ArgumentParser):
    """Says what is wrong with the options in one line. No abbreviations: they break when options are added."""

    def __init__(self, **settings):
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str):
        self.exit(2, f"imtalker: error: {' '.join(message.split())}: see {self.prog} --help\n")

    def add_fields(self, config: type) -> None:
        """An option for every field of a dataclass of numbers and names, with the field's name and default."""
        for field in fields(config):
            kind = {int: INDEX, float: NUMBER}.get(type(field.default), str)
            name = f"--{field.name.replace('_', '-')}"
            self.add_argument(name, type=kind, default=field.default, help=f"(default: {field.default})")


def take_fields(config: type, given: dict):
    """The dataclass of `add_fields`, from parsed options, which are removed from `given`."""
    return config(**{field.name: given.pop(field.name) for field in fields(config)})


def _typed(expected: str, convert: Callable, accept: Callable) -> Callable:
    def parse(text: str):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"{text!r} given, {expected} expected")
        return value

    return parse


def count_to(most: int) -> Callable[[str], int]:
    return _typed(f"a whole number from 1 to {most}", int, lambda n: 1 <= n <= most)


INDEX = _typed("a whole number from 0", int, lambda n: n >= 0)
PORT = _typed("a port from 0 to 65535", int, lambda n: 0 <= n <= 65535)
SEED = _typed("a whole number from 0 to 2**63 - 1", int, lambda n: 0 <= n < 2**63)
NUMBER = _typed("a finite number", float, math.isfinite)
GUIDANCE = _typed("a number from 0 to 20", float, lambda x: 0 <= x <= 20)
RATE = _typed("frames per second from 1 to 240", float, lambda x: 1 <= x <= 240)
MINUTES = _typed("a number of minutes above 0", float, lambda x: 0 < x < math.inf)
SECONDS = _typed("seconds from 0.2 to 600", float, lambda x: 0.2 <= x <= 600)
