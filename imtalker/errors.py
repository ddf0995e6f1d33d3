"""The one exception that means: the input was wrong, not the program."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: what was given, what is expected, what to do."""
