"""The model: loading or initialising it, and how its layers compute."""
