"""The model: read, loaded or drawn, and how its layers compute."""
