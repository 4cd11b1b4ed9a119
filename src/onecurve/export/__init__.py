"""The model folder that a run leaves, and its card."""
