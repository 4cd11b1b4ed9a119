"""Reward models: trained models that score the completions of a step, as the user's functions do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from onecurve.config import Recipe
from onecurve.content.completions import Completion
from onecurve.data.collation import as_scored
from onecurve.errors import BadRow, BetweenUpdates, ConfigError
from onecurve.machine.hub import fetched
from onecurve.model.architectures import reads_padding
from onecurve.model.attention_kernels import fastest_attention
from onecurve.model.loading import whole_parameters
from onecurve.model.positions import num_positions
from onecurve.model.text_batches import plan_texts
from onecurve.model.trained import Trained, load_trained
from onecurve.ranks.heartbeat import beat
from onecurve.tasks._reward_models import check_outputs
from onecurve.tasks.base import Asked, Example, OtherModel, Row

_TASK, _WHERE = "reward", "task.rewards"


@dataclass(frozen=True)
class Judges:
    """The reward models by name, each frozen and whole on every rank; ranks share out the completions."""

    models: Mapping[str, Trained]
    recipe: Recipe
    accelerator: Accelerator

    @classmethod
    def load(cls, others: Mapping[str, OtherModel], recipe: Recipe, accelerator: Accelerator) -> "Judges":
        """Load them, in the precision that a score is computed in; every rank calls this.

        Raises:
            ConfigError: One cannot be loaded, or was trained for something else.
        """
        models = {}
        for name, (path, revision, where) in others.items():
            folder = Path(path).expanduser()
            try:
                with whole_parameters():
                    models[name] = load_trained(folder if folder.is_dir() else fetched(path, revision), _TASK)
            except ConfigError as error:
                raise ConfigError(error.what, where=where, fix=error.fix) from None
            check_outputs(path, models[name].config.num_labels)
            models[name].model.requires_grad_(False)
        return cls(models, recipe, accelerator)

    def told(self, rows: Sequence[Row], completions: Sequence[Completion]) -> list[Completion]:
        """Return completions with what the reward models say of them, on every rank.

        Args:
            rows: Each completion with its prompt, as the task `reward` reads an answer.
            completions: All of a step.

        Raises:
            BetweenUpdates: A row cannot be read, or is longer than a model reads.
        """
        for name, trained in self.models.items():
            beat("rewards")
            scores = self._scores(name, trained, [self._encoded(name, trained, row) for row in rows])
            completions = [
                replace(one, rewards={**one.rewards, name: score})
                for one, score in zip(completions, scores, strict=True)
            ]
        return list(completions)

    def _encoded(self, name: str, trained: Trained, row: Row) -> Example:
        assert isinstance(trained.task, Asked)
        about = f"the completion {str(row['chosen'])[:200]!r} to {str(row.get('prompt'))[:200]!r}"
        try:
            example = trained.task.question(row, trained, truncate=False)
        except BadRow as error:
            raise BetweenUpdates(f"the reward model {name} cannot read {about}: {error}.", where=_WHERE) from None
        length, positions = trained.task.length(example), num_positions(trained.config)
        if positions and length > positions:
            raise BetweenUpdates(
                f"the reward model {name} reads {positions} tokens, and {about} has {length} with its prompt.",
                where=_WHERE,
                fix="Set task.max_completion_length or data.max_length to less.",
            )
        return example

    def _scores(self, name: str, trained: Trained, examples: Sequence[Example]) -> list[float]:
        """Return the score of each example; every rank passes the same ones."""
        lengths = [trained.task.length(example) for example in examples]
        step = plan_texts(lengths, 0, self.recipe, reads_padding(trained.config))
        found: list[tuple[int, float]] = []
        with torch.no_grad(), fastest_attention(self.accelerator.device):
            for _, numbers, counts in step.of_rank(self.accelerator.process_index, self.accelerator.num_processes):
                if not counts:  # only keeps ranks in step where they work on one model together
                    continue
                beat("rewards")
                batch = as_scored(trained.task, [examples[number] for number in numbers], trained)
                outputs = trained.task.forward(
                    trained.model, {key: value.to(trained.model.device) for key, value in batch.items()}
                )
                replies = trained.task.replies(outputs, batch, trained)  # type: ignore[attr-defined]
                found += [(int(number), reply["score"]) for number, reply in zip(numbers, replies, strict=True)]
        every = dict(gather_object(found))
        if bad := [number for number, score in sorted(every.items()) if not torch.isfinite(torch.tensor(score))]:
            raise BetweenUpdates(f"the reward model {name} says {every[bad[0]]} of a completion.", where=_WHERE)
        return [every[number] for number in range(len(examples))]
