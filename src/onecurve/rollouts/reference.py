"""What the reference, the model before step 1, says of completions that were just drawn."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate.utils import gather_object

from onecurve.config import Recipe
from onecurve.content.completions import Completion
from onecurve.data.loader import Loader
from onecurve.data.plan import Step
from onecurve.errors import ConfigError
from onecurve.model.attention_kernels import fastest_attention
from onecurve.model.reference import Reference
from onecurve.ranks.heartbeat import beat
from onecurve.rollouts.drawing import as_read
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import OtherModel


def token_logps(
    model: Any,
    autocast: Callable[[], AbstractContextManager[Any]],
    loader: Loader,
    step: Step,
    completions: Sequence[Completion],
) -> list[list[float]]:
    """Return what a model says of completions, on every rank: the log-probability of each token.

    Args:
        model: Wrapped or not; it is left in evaluation mode.
        autocast: The context of its forward passes.
        loader: Of the step.
        step: With an example of each completion, in their order.
        completions: All of the step.
    """
    pairs: list[tuple[int, list[float]]] = []
    with torch.no_grad(), fastest_attention(loader.accelerator.device):
        model.eval()
        for micro_batch in loader.micro_batches(step):
            beat("log-probabilities")
            with autocast():
                outputs = loader.task.forward(model, micro_batch.batch).float().cpu().numpy()
            if micro_batch.counts:
                for number, row in zip(step.micro_batches[micro_batch.position].tolist(), outputs, strict=True):
                    first = len(loader.split[number]["input_ids"]) - 1
                    pairs.append((number, as_read(row[first : first + len(completions[number].ids)])))
    found = dict(gather_object(pairs))
    return [found[number] for number in range(len(completions))]


@dataclass
class Referee:
    """The reference, at hand in every step: the base below a new adapter, or else a second model."""

    recipe: Recipe
    strategy: Strategy
    copy: Any = field(default=None, repr=False)
    """The second model, once it was needed."""

    def told(self, loader: Loader, step: Step, completions: Sequence[Completion]) -> list[Completion]:
        """Return completions with the reference's log-probability of each token, on every rank.

        Args:
            loader: Of the step.
            step: With an example of each completion, in their order.
            completions: All of the step.
        """
        with self._model(loader) as (model, autocast):
            found = token_logps(model, autocast, loader, step, completions)
        return [replace(one, reference=logps) for one, logps in zip(completions, found, strict=True)]

    @contextmanager
    def _model(self, loader: Loader) -> Iterator[tuple[Any, Callable[[], AbstractContextManager[Any]]]]:
        own = Reference(None, self.recipe, self.strategy, loader.reading, loader.accelerator)
        if own.is_off():
            with own.loaded(loader.task) as found:
                yield found
            return
        if self.copy is None:
            if self.recipe.peft:
                raise ConfigError(
                    "the reference is the model before step 1, and the adapter that is trained is a part of it.",
                    where="task.beta",
                    fix="Merge that adapter first, train a new one that leaves the base as it is, or set beta to 0.",
                )
            start = self.recipe.model
            self.copy = own.load(OtherModel(start.path, start.revision, "model.path"), loader.task)
        yield self.copy, own.autocast
