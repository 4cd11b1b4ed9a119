"""Hides upstream messages that a user can do nothing about, in the commands that load models."""

import logging
import warnings


def hush_optional() -> None:
    """Leave only the errors of packages that transformers, PEFT and Accelerate import where they are installed."""
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # the last of what torchao registers there
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("DeepSpeed", "accelerate.accelerator"):  # which set their own level later
        logging.getLogger(name).addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def hush_transformers() -> None:
    """Leave only transformers' errors, no progress bars and no warnings; of what it imports too."""
    warnings.filterwarnings("ignore")
    hush_optional()
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
