"""Checks once, within seconds, whether the Hugging Face hub can be reached."""

import http.client
import urllib.error
import urllib.request
from functools import cache

_TIMEOUT_SECONDS = 5


@cache
def reachable() -> bool:
    """Ask the hub; where it does not answer, switch upstream to its local copies instead of a minute of retries."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not _answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
    return not constants.HF_HUB_OFFLINE


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException, ValueError):
        return False
    return True
