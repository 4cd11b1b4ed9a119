"""What upstream says and a user can do nothing about, kept off the terminal of the commands that load models."""

import logging
import warnings


def hush_transformers() -> None:
    """Leave only transformers' errors, no progress bars and no warnings; of bitsandbytes too, which PEFT imports."""
    warnings.filterwarnings("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
