"""Whose messages a process prints: they begin with the name of the command that the user ran."""

import os

SPEAKER = "ONECURVE_SPEAKER"
"""The environment variable with that name, where it is not train.py."""


def spoken(message: str) -> str:
    """Return a message as a terminal shows it."""
    return f"{os.environ.get(SPEAKER, 'train.py')}: {message}"
