"""Completes each step of prompts: the model answers, reward functions score, and each completion is an example."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator

from onecurve.config import Recipe
from onecurve.content.completions import Completion, RewardError
from onecurve.data.loader import Completed, Loader
from onecurve.data.made_examples import MadeExamples
from onecurve.data.micro_batches import Cut
from onecurve.data.plan import Step
from onecurve.data.rows import Located
from onecurve.data.splits import Split
from onecurve.errors import ConfigError
from onecurve.machine.latest import follow
from onecurve.machine.vllm import Drawn, VllmServer
from onecurve.ranks.heartbeat import beat
from onecurve.regularization.base import Objective
from onecurve.rollouts.drawing import draw
from onecurve.rollouts.first_rank import of_first, of_first_aside
from onecurve.rollouts.judges import Judges
from onecurve.rollouts.records import Records
from onecurve.rollouts.reference import Referee, token_logps
from onecurve.rollouts.serving import Serving, completions_of, difference
from onecurve.run.directory import RunDirectory
from onecurve.seeds import stream_key
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Example, Processing, RollsOut, Task

_APART = "sampling/sampling_logp_difference/mean"  # TRL's name


class Checked(Protocol):
    """A valid recipe, as `preflight` returns it."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def task(self) -> Task: ...

    @property
    def directory(self) -> RunDirectory: ...


def loaders_of(
    splits: Sequence[Split],
    checked: Checked,
    strategy: Strategy,
    reading: Processing,
    accelerator: Accelerator,
    objective: Objective,
) -> dict[str, Loader]:
    """Return a loader of each split by its name; where the task's examples are prompts, they complete their steps."""
    task, complete = checked.task, None
    if isinstance(task, RollsOut):
        referee = Referee(checked.recipe, strategy) if task.has_reference else None
        judges = Judges.load(task.reward_models, checked.recipe, accelerator)  # in a replay evaluations ask them
        run = checked.directory.path
        patience = checked.recipe.train.hang_timeout.total_seconds() / 2
        serving = Serving(VllmServer(task.server, patience), strategy, run) if task.server else None
        complete = Rollouts(task, checked.recipe, run, strategy, judges, referee=referee, serving=serving)
    return {one.name: Loader(one, task, reading, accelerator, objective, complete) for one in splits}


@dataclass
class Rollouts:
    """Completes the steps of a run.

    A completion is drawn by a key of the seed, the pass over the data, the prompt and its number, so one launch form
    always draws the same ones. Under another, sums are rounded otherwise, and where two tokens are about equally good
    another may be drawn: from there on the runs differ. `Records` has what was drawn; a run that replays them draws the
    same curve under any.
    """

    task: Any
    """Which is a `Task` and `RollsOut`."""
    recipe: Recipe
    run: Path
    """The run's folder."""
    strategy: Strategy
    judges: Judges
    """The reward models."""
    drawn: dict[int, list[Completion]] = field(default_factory=dict)
    """Step -> its completions, of those steps whose completions are drawn at once."""
    referee: Referee | None = None
    """The reference, where the loss reads what it says."""
    serving: Serving | None = None
    """Draws completions in the model's place, where the task names a server."""
    said: list[Drawn] = field(default_factory=list)
    """What it drew and is not scored yet."""
    apart: dict[int, float] = field(default_factory=dict)
    """Step -> how far it and the model part over a token, in nats on average, where that is known."""
    latest: tuple[Step, Completed] | None = None
    """What was returned last: a bad step is looked at again."""

    def __call__(self, loader: Loader, step: Step) -> Completed:
        """Return a step of prompts as one of completions; every rank calls it, and gets the same.

        Raises:
            BetweenUpdates: A reward function failed, or what is to be replayed is of other prompts.
            TrainingError: The completions cannot be written.
        """
        if self.latest and self.latest[0] is step:
            return self.latest[1]
        if loader.split.name.partition("/")[0] != "train":
            return self._scored(loader, step)
        if step.number not in self.drawn:
            self._find(loader, step)
        numbers, prompts = self._prompts(loader, step)
        examples = self.task.answered(prompts, self.drawn.pop(step.number), training=True)
        completed = self._completed(loader, step, numbers, examples)
        apart = {_APART: self.apart.pop(step.number)} if step.number in self.apart else {}
        self.latest = step, completed._replace(facts=self.task.facts(examples) | apart)
        return self.latest[1]

    def _scored(self, loader: Loader, step: Step) -> Completed:
        """Complete a step of a split that is scored: one completion a prompt."""
        split, seed = loader.split, self.recipe.seed
        prompts = split.take(range(len(split)))
        keys = [stream_key(seed, "completion", split.name, int(row)) for row in split.rows]
        drawn = self._answers(loader, prompts, keys, training=False)
        drawn = self._rewarded(loader, step, np.arange(len(split)), prompts, drawn)
        examples = self.task.answered(prompts, drawn, training=False)
        return self._completed(loader, step, np.arange(len(split)), examples)

    def _find(self, loader: Loader, step: Step) -> None:
        """Draw or read the completions of a step, and of the following ones that are drawn with it."""
        together = self.task.steps_per_generation
        steps = [step]
        while steps[-1].number % together and (following := steps[-1].following()):
            steps.append(following)
        self.drawn.clear()
        self.apart.clear()
        if replay := self.task.replay:
            self._read(loader, [step], Records(Path(replay).expanduser()), "task.replay")
        elif (step.number - 1) % together and (there := self._there(loader, step)):
            # The run goes on amid steps whose completions are there; to which end, another max_steps may have said
            kept = of_first(loader.accelerator, lambda: [one.number for one in steps if there.has(one.number)])
            self._read(loader, [one for one in steps if one.number in kept], there, "train.resume")
        else:
            self._draw(loader, steps)
        of_first(loader.accelerator, lambda: self._record(loader, steps))

    def _record(self, loader: Loader, steps: Sequence[Step]) -> None:
        own = Records(self.run)
        for one in (one for one in steps if one.number in self.drawn):
            own.write(one, self._prompts(loader, one)[1], self.drawn[one.number])
        own.remove_after(steps[-1].number)

    def _draw(self, loader: Loader, steps: Sequence[Step]) -> None:
        of_steps = [self._prompts(loader, one) for one in steps]
        keys = [key for one in steps for key in self._keys(one)]
        drawn = self._answers(loader, [p for _, of in of_steps for p in of], keys, training=True)
        for one, (numbers, prompts) in zip(steps, of_steps, strict=True):
            own, drawn = drawn[: len(prompts)], drawn[len(prompts) :]
            self.drawn[one.number] = self._rewarded(loader, one, numbers, prompts, own)

    def _answers(
        self, loader: Loader, prompts: Sequence[Example], keys: Sequence[int], training: bool
    ) -> list[Completion]:
        """Return a completion of each prompt, on every rank, by the model or by the server of its adapter."""
        serving = self.serving
        if not serving:
            return draw(self.strategy, self.recipe, loader, prompts, keys, training)
        values, unsaid = serving.gathered(), 0.0
        drawn = of_first_aside(loader.accelerator, lambda: serving.draw(values, loader, prompts, keys, training))
        self.said += drawn
        return completions_of(drawn, [[unsaid] * len(one.ids) for one in drawn], loader.reading.tokenizer)

    def _keys(self, step: Step) -> list[int]:
        passes = np.full(len(step.sample_ids), step.epoch) if step.sample_passes is None else step.sample_passes
        return [
            stream_key(step.seed, "completion", int(of_pass), int(number), place)
            for of_pass, number in zip(passes, step.sample_ids, strict=True)
            for place in range(self.task.completions)
        ]

    def _there(self, loader: Loader, step: Step) -> Records | None:
        """Return where the completions of a step lie that was drawn before the checkpoint that the run goes on from."""
        roots, resume = [self.run], self.recipe.train.resume
        if resume not in ("auto", "never"):
            roots.append(follow(Path(resume)).resolve().parent.parent)
            if not (self.run / "checkpoints" / f"step-{step.number - 1:08d}").is_dir():
                roots.reverse()  # it went on from there, and what lies here may be another run's
        found = next((root for root in roots if Records(root).has(step.number)), None)
        return of_first(loader.accelerator, lambda: None if found is None else Records(found))

    def _read(self, loader: Loader, steps: Sequence[Step], records: Records, where: str) -> None:
        names = self.task.reward_names
        for one in steps:
            prompts = self._prompts(loader, one)[1]
            drawn = of_first(loader.accelerator, lambda: records.read(one, prompts, names, where))  # noqa: B023
            if self.referee and drawn[0].reference is None:
                raise ConfigError(
                    f"{str(records.folder)!r} has nothing of a reference: task.beta was 0 there.", where=where
                )
            self.drawn[one.number] = drawn

    def _prompts(self, loader: Loader, step: Step) -> tuple[np.ndarray, list[Example]]:
        """Return the number and the prompt of each completion of a step, groups together, in plan order."""
        numbers = np.repeat(step.sample_ids, self.task.completions)
        return numbers, loader.split.take(numbers)

    def _rewarded(
        self,
        loader: Loader,
        step: Step,
        numbers: np.ndarray,
        prompts: Sequence[Example],
        drawn: list[Completion],
    ) -> list[Completion]:
        """Have the reference, the reward models and the reward functions say what they do of a step's completions.

        Rank 0 calls the functions: whatever they do, all ranks have the same rewards.
        """
        if self.referee or self.serving:
            unscored = [replace(one, rewards=dict.fromkeys(self.task.reward_names, 0.0)) for one in drawn]
            examples = self.task.answered(prompts, unscored, training=False)
            whole = self._completed(loader, step, numbers, examples)
            if self.serving:
                drawn = self._likely(whole, drawn)
            if self.referee:
                drawn = self.referee.told(whole.loader, whole.step, drawn)

        drawn = self.judges.told(self.task.judged(prompts, drawn), drawn)

        def score() -> list[Completion]:
            try:
                rewarded: list[Completion] = self.task.rewarded(prompts, drawn)
            except RewardError as error:
                place = error.place
                about = "" if place is None else _about(loader.split, int(numbers[place]), drawn[place])
                fix = "Other code needs task.rewards_hash in train.allow_changes."
                raise ConfigError(f"{error.what}{about}.", where="task.rewards", fix=fix) from None
            return rewarded

        beat("rewards")
        return of_first(loader.accelerator, score)

    def _likely(self, whole: Completed, drawn: Sequence[Completion]) -> list[Completion]:
        """Return what the server drew with what the model itself says of it: the server's kernels round otherwise."""
        assert self.serving
        loader, address = whole.loader, self.serving.server.address
        said, self.said = self.said[: len(drawn)], self.said[len(drawn) :]
        found = token_logps(self.strategy.model, self.strategy.autocast, loader, whole.step, drawn)
        if self.task.drawing(training=True)["temperature"] == 1:  # else what both say cannot be compared
            apart = of_first(loader.accelerator, lambda: difference(address, said, found))
            if loader.split.name.partition("/")[0] == "train":
                self.apart[whole.step.number] = apart
        return completions_of(said, found, loader.reading.tokenizer)

    def _completed(self, loader: Loader, step: Step, numbers: np.ndarray, examples: Sequence[Example]) -> Completed:
        """Return a step whose examples are completions, cut into micro-batches by the lengths that they have."""
        train = self.recipe.train
        made = MadeExamples(examples, loader.split.rows[numbers].tolist(), self.task)
        split = replace(loader.split, examples=made, annotations=None, sets=(), workers=None)
        scoring = split.name.partition("/")[0] != "train"
        size = self.recipe.eval_micro_batch_size if scoring else train.examples_a_pass
        tokens = None if scoring and self.recipe.eval.micro_batch_size else train.micro_batch_tokens
        cut = Cut(made.lengths, scoring or train.group_by_length, tokens, self.recipe.pads)
        completed = replace(
            step,
            micro_batches=cut(np.arange(len(made)), size),
            num_items=made.num_items.sum(0).tolist(),
            passes=None,
            following=lambda: None,
        )
        return Completed(replace(loader, split=split, complete=None), completed, {})


def _about(split: Split, number: int, completion: Completion) -> str:
    """Return of which row's completion a message is."""
    row = int(split.rows[number])
    rows = split.source.rows() if split.source else iter(())
    place = next((one.place for one in rows if isinstance(one, Located) and one.number == row), f"row {row}")
    return f", for the completion {completion.text[:200]!r} of {place}"
