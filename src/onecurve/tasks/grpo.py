"""Group-relative policy optimisation: a language model learns from rewards of its own completions."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from onecurve.content.completions import Completion
from onecurve.content.preferences import read_question
from onecurve.errors import ConfigError
from onecurve.losses import policy
from onecurve.losses.next_token import mark_learnt
from onecurve.tasks._answers import answer_token_logps
from onecurve.tasks._padding import pad
from onecurve.tasks._questions import QuestionTask
from onecurve.tasks._rendering import TemplateSettings
from onecurve.tasks._reward_facts import facts, scores
from onecurve.tasks._reward_models import RewardModel, is_reward_model, judged_rows
from onecurve.tasks._rewards import RewardFunction, check_names, code_hash, columns_read, rewards_of
from onecurve.tasks._rollout_settings import GrpoSettings, check_recipe
from onecurve.tasks.base import BadRow, Batch, Example, Limit, OtherModel, Processing, Row, Settings, Survey

if TYPE_CHECKING:
    from torch import Tensor, nn

    from onecurve.config import Recipe

_CLIPPED = "clip_ratio/region_mean"
_COLUMNS = {
    "prompt": "the question: non-empty text, or the messages before the answer",
    "system?": "a system prompt, placed before the other turns: text",
    "tools?": "the tools that answers may call: a list of JSON schemas (in CSV: as JSON)",
}


class Task(QuestionTask):
    """Learn from rewards of the model's own completions (GRPO, Dr. GRPO, RLOO).

    In each step the model answers each prompt several times. Reward functions of your own score the answers, and those
    that are better than others to the same prompt become likelier.
    """

    is_guessed: ClassVar[bool] = False
    Settings: ClassVar[type[Settings]] = GrpoSettings
    columns: Mapping[str, str] = _COLUMNS  # type: ignore[misc]
    targets: frozenset[str] = frozenset()  # type: ignore[misc]
    metric_names: Sequence[str] = ("loss", "reward", "completions/mean_length", "completions/clipped_ratio", "entropy")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "completions/clipped_ratio"})
    scoring_settings: ClassVar[frozenset[str]] = frozenset({"eval_sampled"})
    loss_settings: ClassVar[frozenset[str]] = (
        frozenset(GrpoSettings.model_fields) - set(TemplateSettings.model_fields) - scoring_settings
    )

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.rewards: list[RewardFunction | RewardModel] = []
        if settings.steps_per_generation > 1:
            self.terms = {"policy": 1.0, _CLIPPED: 0.0}

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        template = reading.tokenizer.chat_template if reading else None
        told = {"train.logits": "each token's own log-probability is needed, and chunks add up those of a batch"}
        if template:
            told["task.separator"] = "this model's chat template joins prompt and answer"
        if self.settings.steps_per_generation == 1:
            why = "each completion is learnt once, by the model that drew it (task.steps_per_generation is 1)"
            told |= {"task.epsilon": why, "task.epsilon_high": why}
        if self.settings.replay:
            told["task.server"] = "the completions are those of task.replay"
        return {**super().without_effect(reading), **told}

    def check_rollouts(self, recipe: "Recipe", identify: Callable[[OtherModel], str]) -> None:
        sources = self.settings.rewards
        self.rewards = [RewardModel(one) if is_reward_model(one) else RewardFunction.load(one) for one in sources]
        check_names(self.reward_names)
        models = [one for one in self.rewards if isinstance(one, RewardModel)]
        for model in models:
            model.check()
        code = code_hash(self.functions, [identify(model.other) for model in models])
        self.settings = check_recipe(self.settings, recipe, code)
        needed = columns_read(self.rewards)
        self.columns = _COLUMNS | needed
        self.targets = frozenset(name.removesuffix("?") for name in needed)
        self.metric_names = [*type(self).metric_names, *(f"rewards/{name}/mean" for name in self.reward_names)]

    # Rows

    def check_input(self, row: Row) -> None:
        read_question(row)

    def check(self, row: Row) -> None:
        read_question(row)
        self._asked(row)

    def _asked(self, row: Row) -> str:
        """Return what reward functions may ask of a row, as JSON."""
        asked = {name for reward in self.rewards for name in reward.columns} | {"prompt"}
        told = {name: row.get(name) for name in sorted(asked)}
        try:
            return json.dumps(told, ensure_ascii=False)
        except TypeError as error:
            raise BadRow(f"has a value that cannot be kept for the reward functions ({error}); use text") from None

    def limit(self, reading: Processing) -> Limit:
        new = self.settings.max_completion_length
        room = None if reading.positions is None else reading.positions - new
        if room is None or reading.max_length <= room:
            return Limit(reading.max_length)
        if room < 1:
            raise ConfigError(
                f"is {new}, and the model has {reading.positions} positions, for prompt and completion.",
                where="task.max_completion_length",
            )
        return Limit(room, f"tokens beside the {new} of task.max_completion_length", "")

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        example = self.prompt(row, reading)
        if not example["input_ids"]:
            return []
        if truncate and len(example["input_ids"]) > self.limit(reading).length:
            raise BadRow("has a long prompt, and prompts cannot be cut: set data.on_long to drop")
        return [{**example, "asked": self._asked(row), "num_items": self._counted(1)}]

    def length(self, example: Example) -> int:
        return len(example["input_ids"]) + len(example.get("completion", ()))

    def _counted(self, tokens: int) -> Any:
        """Return the items of a completion: with `dr_grpo` each counts as if it had the most tokens."""
        own = {"dr_grpo": self.settings.max_completion_length, "dapo": tokens, "grpo": 1}[self.settings.loss_type]
        return [own, tokens] if len(self.terms) > 1 else own

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        parts = [(example["input_ids"], example["completion"]) for example in examples]
        batch = {
            "input_ids": pad([[*prompt, *own] for prompt, own in parts], reading.tokenizer.pad_token_id),
            "attention_mask": pad([[1] * (len(prompt) + len(own)) for prompt, own in parts], 0),
            "completion_mask": pad([[0] * len(prompt) + [1] * len(own) for prompt, own in parts], 0),
            "advantages": torch.tensor([example["advantage"] for example in examples], dtype=torch.float32),
        }
        width = batch["input_ids"].shape[1]
        for name in ("drawn_logps", "reference_logps"):  # each where its token is predicted
            if name in examples[0]:
                rows = [
                    [0.0] * (len(prompt) - 1) + example[name] + [0.0] * (width + 1 - len(prompt) - len(own))
                    for example, (prompt, own) in zip(examples, parts, strict=True)
                ]
                batch[name] = torch.tensor(rows, dtype=torch.float32)
        facts = [
            [example[name] for name in ("reward", "entropy", "ended")] + example["rewards"] for example in examples
        ]
        batch["facts"] = torch.tensor(facts, dtype=torch.float64)
        return batch

    def num_items(self, batch: Batch) -> Any:
        counts = [self._counted(tokens) for tokens in batch["completion_mask"].sum(-1).tolist()]
        return [sum(of_term) for of_term in zip(*counts, strict=True)] if len(self.terms) > 1 else sum(counts)

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        prompt, own = example["input_ids"], example.get("completion")
        if own is None:
            drawn = f"{self.completions} completions of up to {self.settings.max_completion_length} tokens"
            return f"{tokenizer.decode(prompt)}«{drawn}»"
        return mark_learnt([*prompt, *own], [False] * len(prompt) + [True] * len(own), tokenizer)

    # The model

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        """Return the log-probability of each token of a completion where it is predicted: float32 [examples, longest].

        Of the distribution that completions are drawn from, at `task.temperature`.
        """
        return answer_token_logps(model, batch, self.settings.temperature)

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        """Return the loss and, of completions that are learnt in several steps, how many of their tokens are clipped.

        Shao et al. 2024 (arXiv:2402.03300), equation 3; divided as Liu et al. 2025 (arXiv:2503.20783) where
        `loss_type` is dr_grpo.
        """
        import torch
        from torch.nn import functional

        settings, logps = self.settings, outputs.float()
        mask = functional.pad(batch["completion_mask"][:, 1:], (0, 1)).float()
        high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
        drawn = batch["drawn_logps"] if "drawn_logps" in batch else logps.detach()
        loss, is_clipped = policy.clipped(logps, drawn, batch["advantages"][:, None], settings.epsilon, high)
        if settings.beta:
            loss = loss + settings.beta * policy.divergence(logps, batch["reference_logps"])
        if settings.loss_type == "grpo":
            loss = loss / mask.sum(-1, keepdim=True)
        total = (loss * mask).sum()
        return total if len(self.terms) == 1 else torch.stack([total, (is_clipped * mask).sum()])

    def metric_of_term(self, term: str) -> str:
        return term if term == _CLIPPED else super().metric_of_term(term)

    # Rollouts

    @property
    def completions(self) -> int:
        count: int = self.settings.completions
        return count

    @property
    def steps_per_generation(self) -> int:
        steps: int = self.settings.steps_per_generation
        return steps

    @property
    def replay(self) -> str | None:
        folder: str | None = self.settings.replay
        return folder

    @property
    def server(self) -> str | None:
        address: str | None = self.settings.server
        return None if self.replay else address

    @property
    def has_reference(self) -> bool:
        return bool(self.settings.beta)

    @property
    def reward_names(self) -> Sequence[str]:
        return [reward.name for reward in self.rewards]

    @property
    def functions(self) -> Sequence[RewardFunction]:
        """Those of the rewards that are the user's own code."""
        return [reward for reward in self.rewards if isinstance(reward, RewardFunction)]

    @property
    def reward_models(self) -> Mapping[str, OtherModel]:
        return {reward.name: reward.other for reward in self.rewards if isinstance(reward, RewardModel)}

    def drawing(self, training: bool) -> Mapping[str, Any]:
        settings = self.settings
        options = {"max_new_tokens": settings.max_completion_length, "temperature": settings.temperature}
        if not training and not settings.eval_sampled:
            return {**options, "do_sample": False}
        return {**options, "do_sample": True, "top_k": settings.top_k, "top_p": settings.top_p}

    def rewarded(self, examples: Sequence[Example], completions: Sequence[Completion]) -> list[Completion]:
        each = rewards_of(self.functions, [json.loads(example["asked"]) for example in examples], completions)
        return [
            replace(one, rewards={**one.rewards, **rewards}) for one, rewards in zip(completions, each, strict=True)
        ]

    def judged(self, examples: Sequence[Example], completions: Sequence[Completion]) -> list[Row]:
        return judged_rows([json.loads(example["asked"]) for example in examples], completions)

    def answered(self, examples: Sequence[Example], completions: Sequence[Completion], training: bool) -> list[Example]:
        import numpy as np

        settings = self.settings
        weights = settings.reward_weights or [1.0] * len(self.rewards)
        values = [[one.rewards[name] for name in self.reward_names] for one in completions]
        rewards = np.array(values) @ np.array(weights)
        advantages = np.zeros_like(rewards)
        if training:
            groups = rewards.reshape(-1, self.completions)
            advantages = policy.advantages(groups, settings.advantage, settings.scale_rewards).ravel()
        learnt_later = settings.steps_per_generation > 1
        return [
            {
                **example,
                "completion": one.ids,
                "advantage": float(advantages[place]),
                "num_items": self._counted(len(one.ids)),
                "reward": float(rewards[place]),
                "rewards": values[place],
                "entropy": one.entropy,
                "ended": int(one.ended),
                "logps": one.logps,
                **({"drawn_logps": one.logps} if learnt_later and training else {}),
                **({"reference_logps": one.reference} if one.reference is not None else {}),
            }
            for place, (example, one) in enumerate(zip(examples, completions, strict=True))
        ]

    def stand_in(self, example: Example) -> Example:
        reference = [0.0] if self.settings.beta else None
        rewards = dict.fromkeys(self.reward_names, 1.0)
        one = Completion(example["input_ids"][-1:], [0.0], 0.0, True, "", rewards, reference)
        return {**self.answered([example], [one], training=False)[0], "advantage": 1.0}

    # Scores

    def predict(self, outputs: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        """Return (reward, entropy, whether it ended, the reward of each function) and the length of each completion."""
        return list(zip(batch["facts"].tolist(), batch["completion_mask"].sum(-1).tolist(), strict=True))

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        return {"loss": loss, **scores(pairs, self.reward_names)}

    def facts(self, examples: Sequence[Example]) -> dict[str, float]:
        return facts(examples, self.reward_names, self.completions)
