"""errors.py - what a user is told when something they gave cannot be used."""


class InvalidInput(ValueError):
    """A value, file or model given by the user cannot be used.

    The message is one sentence that quotes what was given, followed by what to do instead.
    The command line prints it without a traceback and exits with code 2.
    """


class UnsupportedModel(InvalidInput):
    """The model contains something that a method has no rule for; the message names the node and the operation."""
