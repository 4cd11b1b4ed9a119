"""The learning-rate range test: a short run whose rate rises from step to step, and what its losses suggest."""
