"""The sections of the recipe, one file each."""
