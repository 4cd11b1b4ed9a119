"""Where train.py, launch files, recipes and sample data lie: at a checkout's root, or in the installed package."""

from pathlib import Path

ASSETS = "assets"
"""The folder that setup.py fills where a wheel is built."""


def root() -> Path:
    """Return the folder that holds `train.py`, `accelerate_configs/`, `ds_configs/`, `recipes/` and `quickstart/`."""
    package = Path(__file__).parents[1]
    return package / ASSETS if (package / ASSETS).is_dir() else package.parents[1]
