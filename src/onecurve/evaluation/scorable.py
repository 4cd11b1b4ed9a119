"""Whether the dev split has anything that the metric which chooses the best step can be computed of."""

import numpy as np

from onecurve.config import Recipe
from onecurve.data.splits import Data, Split
from onecurve.errors import ConfigError
from onecurve.tasks.base import RollsOut, Task


def scorable(data: Data, recipe: Recipe, task: Task) -> Data:
    """Return the data, whose dev split has items of `eval.best_metric`.

    Without any the metric would be undefined at every evaluation: no step would be chosen, and `eval.patience` would
    end the run.

    Raises:
        ConfigError: It has none, as a set whose rows have no label for a head.
    """
    metric, dev = recipe.eval.best_metric, data.eval
    if metric is None or dev is None or len(task.terms) < 2 or isinstance(task, RollsOut):
        return data
    part = next((one for one in dev.sets if metric.startswith(f"{one.title}/")), dev)
    own = metric.removeprefix(f"{part.title}/") if part.title else metric
    for term, count in zip(task.terms, _items(part), strict=True):
        if (own == task.metric_of_term(term) or own.startswith(f"{term}/")) and not count:
            others = [one.title for one in dev.sets if _items(one)[[*task.terms].index(term)]]
            raise ConfigError(
                f"{metric!r} would have no value: no example of data.{part.name.replace('/', '.')} has anything to "
                f"score for {term}.",
                where="eval.best_metric",
                fix=f"Name that of a set which has some ({', '.join(others)}), or another metric."
                if others
                else "Add rows with such labels to data.eval, or name another metric.",
            )
    return data


def _items(split: Split) -> list[int]:
    """Return the number of items of each term."""
    found: list[int] = split.num_items[np.arange(len(split))].sum(0).tolist()
    return found
