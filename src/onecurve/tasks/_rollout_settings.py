"""The settings of a task that learns from its own completions, and how they must fit the rest of a recipe."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from onecurve.errors import ConfigError
from onecurve.tasks._rendering import TemplateSettings

if TYPE_CHECKING:
    from onecurve.config import Recipe

RECORDS = "rollouts"
"""Folder of a run directory with the completions of each step."""


def recorded(folder: Path) -> dict[int, Path]:
    """Return step -> the file with its completions."""
    numbered = ((path, path.stem.removeprefix("step-")) for path in folder.glob("step-*.jsonl"))
    return {int(number): path for path, number in numbered if number.isdecimal()}


_SERVED = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("use_rslora", "init_lora_weights", "fan_in_fan_out"),
)
"""Settings of LoRA that leave it a plain one, which vLLM computes."""


_OFF: tuple[Any, ...] = (None, False, {}, [], "none")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class GrpoSettings(TemplateSettings):
    rewards: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list)
    """Your reward functions: my_file.py:NAME or package.module:NAME. Each gets prompts and completions, and further
    parameters are columns of the data; all are lists, and it returns a list of numbers. Or reward models: the folder
    or hub name of a classifier of one output, such as the task reward trains."""
    reward_weights: list[Annotated[float, Field(allow_inf_nan=False)]] | None = None
    """Weight of each reward in the sum; default: 1 each."""
    completions: int = Field(default=8, ge=2)
    """Completions of each prompt in a step: a group."""
    max_completion_length: int = Field(default=256, gt=0)
    """The most tokens of a completion; a longer one is cut off."""
    temperature: float = Field(default=1.0, gt=0)
    """Of drawing; the loss is of the same distribution."""
    top_k: int | None = Field(default=None, gt=0)
    """Draw only from so many of the likeliest tokens; default: from all."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw only from the likeliest tokens that have this probability together; default: from all."""
    eval_sampled: bool = False
    """Whether evaluations draw their completions too; default: the likeliest token each time."""
    advantage: Literal["group", "rloo"] = "group"
    """What a reward is compared with: the mean of its group, or (rloo) that of the group's others."""
    scale_rewards: Literal["none", "group", "batch"] = "none"
    """What that difference is divided by: nothing, or the standard deviation of the group or of the whole step."""
    loss_type: Literal["dr_grpo", "dapo", "grpo"] = "dr_grpo"
    """What the loss of all tokens is divided by. dr_grpo: completions times max_completion_length. dapo: the step's
    tokens. grpo: the tokens of each completion, and then completions."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the reference, the model before step 1; 0: there is no reference."""
    steps_per_generation: int = Field(default=1, gt=0)
    """Of how many steps the completions are drawn at once, by the model as it is before the first of them."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """With steps_per_generation: how far a token's probability may fall by before it is learnt no more."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """The same for how far it may rise; default: epsilon."""
    server: str | None = None
    """Address of a vLLM server of model.path, such as http://node7:8000, which draws the completions with the adapter
    as it stands; default: the ranks that train draw them."""
    replay: str | None = None
    """The folder of a run with the same prompts, whose completions and rewards are taken in place of new ones."""
    rewards_hash: str | None = None
    """Hash of the reward functions' code and the reward models' weights, filled in at the start; a run is not resumed
    with others."""

    @model_validator(mode="after")
    def _agree(self) -> "GrpoSettings":
        if self.reward_weights is not None and len(self.reward_weights) != len(self.rewards):
            raise ValueError(f"reward_weights has {len(self.reward_weights)} weights for {len(self.rewards)} rewards")
        return self


def check_recipe(settings: GrpoSettings, recipe: "Recipe", code: str) -> GrpoSettings:
    """Check that settings fit the rest of a recipe; return them with the hash of the reward functions' code.

    Args:
        settings: Of the task.
        recipe: The run.
        code: That hash.

    Raises:
        ConfigError: The first that does not fit.
    """
    if not settings.rewards:
        raise ConfigError("names no reward.", where="task.rewards", fix="Set it to [my_file.py:NAME].")
    if settings.rewards_hash not in (None, code):
        raise ConfigError(
            f"is {settings.rewards_hash}, but the code of the reward functions, or the weights or config of a "
            f"reward model, have changed: it is {code} now.",
            where="task.rewards_hash",
            fix="Remove it to train with the current ones.",
        )
    _check_batch(settings.completions, recipe)
    if recipe.eval.best_metric and recipe.eval.best_metric.rpartition("/")[2] == "loss":
        raise ConfigError(
            "the loss says nothing of how good completions are: without groups their advantages are 0.",
            where="eval.best_metric",
            fix="Set it to reward.",
        )
    if settings.beta:
        _check_reference(recipe)
    if settings.server:
        _check_server(settings.server, recipe)
    if settings.replay:
        _check_replay(settings.replay, recipe)
    return settings.model_copy(update={"rewards_hash": code})


def _check_batch(completions: int, recipe: "Recipe") -> None:
    train = recipe.train
    if train.global_batch_size % completions:
        raise ConfigError(
            f"({train.global_batch_size}) counts completions, and must be a multiple of task.completions "
            f"({completions}).",
            where="train.global_batch_size",
        )
    if train.micro_batch_size == "auto":
        raise ConfigError(
            "auto is found on the longest examples, and how long completions become is not known before.",
            where="train.micro_batch_size",
            fix="Set it to a number.",
        )


def _check_reference(recipe: "Recipe") -> None:
    """The reference must still be there in a run that goes on: a base below an adapter, or the folder that is read."""
    if recipe.model.init == "random" or (recipe.peft is None and recipe.model.add_tokens):
        what = "model.init is random" if recipe.model.init == "random" else "model.add_tokens draws new rows"
        raise ConfigError(
            f"the reference is the model before step 1, which is not kept, and {what}.",
            where="task.beta",
            fix="Save such a model first and train from it, or set beta to 0.",
        )
    if recipe.peft and recipe.peft.moves_base:
        kind = recipe.peft.extras["init_lora_weights"]
        raise ConfigError(
            f"the reference is the base below the adapter, and peft.init_lora_weights {kind} takes a part of its "
            "weights into the adapter.",
            where="task.beta",
            fix="Set peft.init_lora_weights to true, gaussian or orthogonal, or set beta to 0.",
        )
    if recipe.peft and (Path(recipe.model.path).expanduser() / "adapter_config.json").is_file():
        raise ConfigError(
            "the reference is the model before step 1, and the adapter that is trained further is a part of it.",
            where="task.beta",
            fix="Merge that adapter first and train a new one, or set beta to 0.",
        )


def _unfit_for_server(recipe: "Recipe") -> str:
    """Say what keeps a recipe's adapter from a server; empty if nothing does."""
    peft = recipe.peft
    if peft is None:
        return "there is no adapter"
    if peft.method != "lora":
        return f"peft.method is {peft.method}"
    if unfit := [name for name in peft.extras if name not in _SERVED and peft.extras[name] not in _OFF]:
        return f"peft.{unfit[0]} is set"
    if peft.moves_base:
        return "peft.init_lora_weights takes weights out of the base"
    if recipe.model.add_tokens:
        return "model.add_tokens trains rows of the embeddings"
    is_adapter = (Path(recipe.model.path).expanduser() / "adapter_config.json").is_file()
    return "model.path is an adapter already" if is_adapter else ""


def _check_server(address: str, recipe: "Recipe") -> None:
    """Weights travel as a LoRA adapter of linear layers, which is what vLLM loads while it serves."""
    where = "task.server"
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"must begin with http:// or https://; got {address!r}.", where=where)
    if address.rstrip("/").endswith("/v1"):
        raise ConfigError(f"must be the server's address without /v1; got {address!r}.", where=where)
    if what := _unfit_for_server(recipe):
        raise ConfigError(
            f"what is trained is lent to the server as a plain LoRA adapter of the model that it serves, and {what}.",
            where=where,
            fix="Train a plain LoRA adapter, or remove task.server.",
        )


def _check_replay(folder: str, recipe: "Recipe") -> None:
    where = "task.replay"
    steps = recorded(Path(os.path.expanduser(folder)) / RECORDS).keys()
    if not steps:
        raise ConfigError(f"{folder!r} has no {RECORDS}/ with completions.", where=where)
    if recipe.train.max_steps and (lacking := sorted({*range(1, recipe.train.max_steps + 1)} - {*steps})):
        raise ConfigError(
            f"{folder!r} has no completions of step {lacking[0]}, and the run has {recipe.train.max_steps} steps.",
            where=where,
        )
    if Path(folder).expanduser().resolve() == Path(recipe.output_dir).expanduser().resolve():
        raise ConfigError("is this run's own folder.", where=where, fix="Choose another output_dir.")
