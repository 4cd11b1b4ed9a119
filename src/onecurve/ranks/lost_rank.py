"""Tells errors that mean a lost rank from bugs."""

from onecurve.errors import TrainingError

_NCCL = ("ncclRemoteError", "ncclSystemError", "aborted", "imeout", "imed out")
"""Words in NCCL errors that mean a lost peer or connection. Other errors, such as ncclInvalidUsage, are bugs."""


class RankLost(TrainingError):
    """The ranks can no longer communicate; the message is the backend's."""


def is_loss(error: BaseException) -> bool:
    """Whether an error is what a backend raises when a peer is gone.

    Gloo raises a bare RuntimeError, which only its text tells from others: it names the file of gloo's transport
    ("Connection closed by peer", "Connection reset by peer", "Timed out waiting"). NCCL's has a type of its own. The
    store that ranks find each other by lies with the launcher, or with rank 0.
    """
    if isinstance(error, RankLost):
        return True
    if not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

    if isinstance(error, DistBackendError):
        return any(words in str(error) for words in _NCCL)
    return isinstance(error, (DistNetworkError, DistStoreError)) or "gloo/transport/" in str(error)
