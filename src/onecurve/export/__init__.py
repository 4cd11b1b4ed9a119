"""Writes the model folder of a run, and its card."""
