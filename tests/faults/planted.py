"""train.py with one rank that, at one step, goes no further: `PLACE:RANK:STEP` comes before its own arguments."""

import ctypes
import os
import time
from functools import wraps
from typing import Any

import train
from onecurve.data.loader import Loader
from onecurve.ranks.heartbeat import last_beat
from onecurve.strategies.plain import Plain
from onecurve.strategies.zero import Zero


def main(argv: list[str], run: Any) -> None:
    place, rank, step = argv[0].split(":")
    if os.environ.get("RANK", "0") == rank:
        PLACES[place](int(step))
    train.main(argv[1:], run)


def sleep_for_ever() -> None:
    while True:
        ctypes.CDLL(None).sleep(100_000)  # a signal ends it


def keep_the_interpreter_for_ever() -> None:
    c, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)  # which keeps the interpreter lock while it calls
    c.pthread_mutex_lock(mutex)
    c.pthread_mutex_lock(mutex)  # waits for itself, and no signal ends that


def fail() -> None:
    raise ValueError("planted")


def in_data(action: Any) -> Any:
    def plant(at: int) -> None:
        read = Loader.micro_batches

        @wraps(read)
        def late(self: Loader, step: Any) -> Any:
            for micro_batch in read(self, step):
                if step.number == at:
                    action()
                yield micro_batch

        Loader.micro_batches = late

    return plant


def in_backward(at: int) -> None:
    for strategy in (Plain, Zero):
        strategy.prepare = _with_a_hook(strategy.prepare, at)


def _with_a_hook(prepare: Any, at: int) -> Any:
    def hook(gradient: Any) -> None:
        if last_beat().step == at:
            sleep_for_ever()

    @wraps(prepare)
    def prepare_with_it(self: Any, model: Any, *arguments: Any) -> None:
        prepare(self, model, *arguments)
        next(model.parameters()).register_hook(hook)

    return prepare_with_it


def dawdle() -> None:
    for _ in range(100):
        time.sleep(0.1)  # in pieces: a longer one would go on while the process is stopped


PLACES = {
    "data": in_data(sleep_for_ever),
    "backward": in_backward,
    "locked": in_data(keep_the_interpreter_for_ever),
    "failing": in_data(fail),
    "slow": in_data(dawdle),
}
