"""What rank 0 does alone while the others wait: they all get what came of it, or how it failed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from onecurve.errors import BetweenUpdates, ConfigError, TrainingError
from onecurve.ranks.heartbeat import beat

T = TypeVar("T")
_SECONDS_BETWEEN_BEATS = 5.0
_IN_A_THREAD = ThreadPoolExecutor(1, "rank 0 alone")


def of_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do something on rank 0, in its main thread: a function of the user's may set alarms.

    Raises:
        BetweenUpdates: On every rank, where it raised a `ConfigError`.
        TrainingError: On every rank, where it raised one.
    """
    told: list[Any] = [None, None, ""]
    if accelerator.is_main_process:
        try:
            told[0] = work()
        except ConfigError as error:
            told[1] = error.what, error.where, error.fix
        except TrainingError as error:
            told[2] = str(error)
    value, mistake, failure = broadcast_object_list(told) if accelerator.num_processes > 1 else told
    if mistake:
        raise BetweenUpdates(mistake[0], where=mistake[1], fix=mistake[2])
    if failure:
        raise TrainingError(failure)
    done: T = value
    return done


def of_first_aside(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do something on rank 0 that keeps deadlines of its own, in a thread; meanwhile all ranks say that they are alive.

    Raises:
        BetweenUpdates: On every rank, where it raised a `ConfigError`.
    """
    future: Future[T] = _IN_A_THREAD.submit(work) if accelerator.is_main_process else Future()
    done = [False]
    while not done[0]:
        beat("generation")
        if accelerator.is_main_process:
            wait([future], timeout=_SECONDS_BETWEEN_BEATS)
        done = [future.done()]
        if accelerator.num_processes > 1:
            broadcast_object_list(done)
    return of_first(accelerator, future.result)
