"""Checks of the machines that a run will use, one file per kind of check."""
