"""Rollouts: a step's prompts become the completions that it learns from."""

from onecurve.rollouts.rollouts import loaders_of

__all__ = ["loaders_of"]
