"""What upstream says and a user can do nothing about, kept off the terminal of the commands that load models."""

import warnings


def hush_transformers() -> None:
    """Leave only transformers' errors, no progress bars and no warnings."""
    warnings.filterwarnings("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
