"""Learning-rate schedules: pure functions of the steps done; a new schedule is a new function here.

Each returns the factor, in [min_lr_ratio, 1] after warm-up, that multiplies the peak learning rate of the update
after `done` of `max_steps`. Warm-up and its edges are those of transformers' schedules of the same names.
"""

from collections.abc import Callable
from math import cos, pi

Schedule = Callable[[float, float], float]
"""(share of the steps after warm-up that is done, share that the last descent takes) -> factor without floor."""


def constant(done: float, descent: float) -> float:
    """Stay at the peak."""
    return 1.0


def linear(done: float, descent: float) -> float:
    """Fall on a straight line to the floor."""
    return 1.0 - done


def cosine(done: float, descent: float) -> float:
    """Fall on half a cosine to the floor. Source: Loshchilov & Hutter, SGDR, ICLR 2017, eq. 5 (one cycle)."""
    return 0.5 * (1.0 + cos(pi * done))


def wsd(done: float, descent: float) -> float:
    """Stay at the peak, then fall linearly over the last steps. Source: Hu et al., MiniCPM, 2024, section 4.2."""
    return 1.0 if done < 1.0 - descent else (1.0 - done) / descent


def lr_factor(
    schedule: Schedule, done: int, max_steps: int, warmup_steps: int, decay_steps: int, floor: float
) -> float:
    """Return the factor for the update after `done` steps: a linear warm-up from 0, then the schedule above its floor.

    Args:
        schedule: One of this module's functions.
        done: Optimizer steps done, from 0.
        max_steps: Optimizer steps of the whole run.
        warmup_steps: Steps of warm-up.
        decay_steps: Steps of the last descent (wsd).
        floor: Least factor after warm-up.
    """
    if done < warmup_steps:
        return done / warmup_steps
    left = max(1, max_steps - warmup_steps)
    shape = schedule(min(1.0, (done - warmup_steps) / left), decay_steps / left)
    return floor + (1.0 - floor) * shape
