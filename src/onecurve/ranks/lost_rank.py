"""Which errors mean that another rank is lost, and which are mistakes of our own."""

from onecurve.errors import TrainingError

_NCCL = ("ncclRemoteError", "ncclSystemError", "aborted", "imeout", "imed out")
"""In an error of NCCL's: a peer or the way to it is gone. The others, such as ncclInvalidUsage, are bugs."""


class RankLost(TrainingError):
    """The ranks can no longer talk to each other; the message is the backend's."""


def is_loss(error: BaseException) -> bool:
    """Whether an error is what a backend raises when a rank it talks to is gone.

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
