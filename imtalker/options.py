"""Options of every command: a parser that says what is wrong in one line, and the kinds of values that options take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import field, fields


class OptionParser(argparse.ArgumentParser):
    """Says what is wrong with the options in one line. No abbreviations: they break when options are added."""

    def __init__(self, **settings):
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str):
        self.exit(2, f"imtalker: error: {' '.join(message.split())}: see {self.prog} --help\n")

    def add_fields(self, config: type) -> None:
        """An option for every field of a dataclass of numbers and names, with the field's name and default. Numbers
        are from 0 on unless the field is an `option` of another kind."""
        for each in fields(config):
            kind = each.metadata.get("kind") or {int: INDEX, float: AMOUNT}.get(type(each.default), str)
            name = f"--{each.name.replace('_', '-')}"
            self.add_argument(name, type=kind, default=each.default, help=f"(default: {each.default})")


def take_fields(config: type, given: dict):
    """The dataclass of `add_fields`, from parsed options, which are removed from `given`."""
    return config(**{each.name: given.pop(each.name) for each in fields(config)})


def option(default, kind: Callable):
    """A field of a dataclass for `add_fields` whose values are of a kind below."""
    return field(default=default, metadata={"kind": kind})


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
AMOUNT = _typed("a number from 0", float, lambda x: 0 <= x < math.inf)
POSITIVE = _typed("a number above 0", float, lambda x: 0 < x < math.inf)
SHARE = _typed("a number from 0 to 1", float, lambda x: 0 <= x <= 1)
GUIDANCE = _typed("a number from 0 to 20", float, lambda x: 0 <= x <= 20)
RATE = _typed("frames per second from 1 to 240", float, lambda x: 1 <= x <= 240)
MINUTES = _typed("a number of minutes above 0", float, lambda x: 0 < x < math.inf)
SECONDS = _typed("seconds from 0.2 to 600", float, lambda x: 0.2 <= x <= 600)
