"""A recipe in the words of Hugging Face's TrainingArguments, as a user would carry it over."""

from pathlib import Path
from typing import Any

from onecurve.config import OptimSection, Recipe
from onecurve.errors import ConfigError
from onecurve.optim import check_optim

DEEPSPEED = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 2},
}
"""What the Trainer's documentation tells users to write: every number that is its own is `auto`."""


def training_arguments(recipe: Recipe, precision: str, ranks: int, max_steps: int, folder: Path) -> dict[str, Any]:
    """Return the keyword arguments of TrainingArguments.

    Args:
        recipe: The run.
        precision: no, bf16, fp16 or fp8.
        ranks: Processes.
        max_steps: Steps of the whole run.
        folder: The run directory.

    Raises:
        ConfigError: The Trainer has no such optimizer or schedule, or cannot cut the global batch so.
    """
    train, section = recipe.train, recipe.regularization
    if cures := section.model_dump(exclude_defaults=True):
        raise ConfigError(
            "the Trainer has no such feature, or another form of it.", where=f"regularization.{next(iter(cures))}"
        )
    if train.global_batch_size % (train.examples_a_pass * ranks):
        raise ConfigError(
            f"the Trainer cannot cut {train.global_batch_size} examples into equal micro-batches of "
            f"{train.examples_a_pass} on {ranks} ranks.",
            where="train.global_batch_size",
        )
    length = {"max_steps": train.max_steps} if train.max_steps else {"num_train_epochs": train.epochs}
    return {
        **length,
        **_optimizer(recipe.optim),
        **_schedule(recipe.optim, max_steps),
        "output_dir": str(folder / "trainer"),
        "seed": recipe.seed,
        "learning_rate": recipe.optim.lr,
        "warmup_steps": recipe.optim.warmup_steps,
        "weight_decay": recipe.optim.weight_decay,
        "max_grad_norm": recipe.optim.max_grad_norm,
        "per_device_train_batch_size": train.examples_a_pass,
        "gradient_accumulation_steps": train.global_batch_size // (train.examples_a_pass * ranks),
        "bf16": precision in ("bf16", "fp8"),  # whose layers come converted
        "fp16": precision == "fp16",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def _optimizer(section: OptimSection) -> dict[str, Any]:
    settings = check_optim(section)
    if section.name == "adamw":
        named = {"adam_beta1": settings["beta1"], "adam_beta2": settings["beta2"], "adam_epsilon": settings["eps"]}
        return {"optim": "adamw_torch_fused", **named}
    if section.name == "sgd" and not settings["momentum"]:
        return {"optim": "sgd"}
    raise ConfigError(f"the Trainer has no {section.name} with these settings.", where="optim.name")


def _schedule(section: OptimSection, max_steps: int) -> dict[str, Any]:
    floor, name = section.min_lr_ratio, section.schedule
    decay_steps = section.decay_steps if section.decay_steps is not None else max(1, max_steps // 10)
    known: dict[tuple[str, bool], tuple[str, dict[str, Any]]] = {
        ("constant", False): ("constant_with_warmup", {}),
        ("linear", False): ("linear", {}),
        ("cosine", False): ("cosine", {}),
        ("cosine", True): ("cosine_with_min_lr", {"min_lr_rate": floor}),
        ("wsd", False): ("warmup_stable_decay", {"num_decay_steps": decay_steps, "decay_type": "linear"}),
    }
    if (name, floor > 0) not in known:
        floored = " with a floor" if floor else ""
        raise ConfigError(f"the Trainer has no {name} schedule{floored}.", where="optim.schedule")
    kind, options = known[name, floor > 0]
    return {"lr_scheduler_type": kind, "lr_scheduler_kwargs": options}
