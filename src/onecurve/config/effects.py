"""When each key of the recipe has an effect; a key that is set and has none is an error."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from onecurve.config.curve import FREE_TO_CHANGE
from onecurve.config.explain import known_keys
from onecurve.config.recipe import Recipe
from onecurve.config.sections.sources import shards_folders
from onecurve.config.suggest import meant
from onecurve.errors import ConfigError

_OPEN = {"task", "peft", "optim"}
_BESIDE_KEYS = {"data", "data.weights", "model.weights", "model.code", "reference", "regularization.code"}
"""What a resumed run compares besides keys: the examples and a mixture's weights, the frozen weights, a model's own
code, what a reference says of the examples, and the synonyms and code that change training texts."""


@dataclass(frozen=True)
class Needs:
    """What a key needs of the rest of the recipe to have an effect."""

    met: Callable[[Recipe], Any]
    otherwise: str
    """Why the key has no effect where this is not met."""
    fix: str
    """What to set instead of removing the key."""


_CHECKPOINTS_ON_THE_WAY = "only the last step is saved (checkpoint.every)"
_SPIKES = Needs(
    lambda r: r.train.on_spike != "ignore", "losses are not compared (train.on_spike is ignore)", "set train.on_spike"
)
_AVERAGE = Needs(
    lambda r: r.regularization.average not in (None, "best"),
    "nothing is averaged, or only the best evaluations are",
    "set regularization.average to ema, swa or last",
)

NEEDS: dict[str, Needs] = {
    "model.revision": Needs(
        lambda r: not _is_folder(r.model.path), "model.path is a local folder, which has one version", ""
    ),
    "model.tokenizer_revision": Needs(
        lambda r: r.model.tokenizer and not _is_folder(r.model.tokenizer),
        "it is for a model.tokenizer that is a hub name (model.revision also counts for the tokenizer of model.path)",
        "",
    ),
    "data.temperature": Needs(
        lambda r: isinstance(r.data.train, dict), "data.train names no sources to divide the draws among", "name some"
    ),
    "data.shuffle_window": Needs(
        lambda r: shards_folders(r.data.train),
        "data.train is not a folder of encoded shards, nor has one among its sources",
        "encode the data with onecurve data encode and set data.train to what it wrote",
    ),
    "data.stage_to": Needs(
        lambda r: r.data.shuffle_window and shards_folders(r.data.train),
        "shards are copied a window ahead, and there are no windows",
        "set data.shuffle_window",
    ),
    "optim.decay_steps": Needs(
        lambda r: r.optim.schedule == "wsd", "it is for optim.schedule wsd", "set optim.schedule to wsd"
    ),
    "optim.min_lr_ratio": Needs(
        lambda r: r.optim.schedule != "constant", "optim.schedule constant never falls", "set another schedule"
    ),
    "optim.rounding": Needs(
        lambda r: r.peft is None and r.model.dtype == "bfloat16",
        "trained weights are float32 here",
        "set model.dtype to bfloat16 and remove peft",
    ),
    "regularization.average_count": Needs(
        lambda r: r.regularization.average in ("last", "best"),
        "it is for regularization.average last and best",
        "set regularization.average to last or best",
    ),
    "regularization.average_decay": Needs(
        lambda r: r.regularization.average == "ema",
        "it is for regularization.average ema",
        "set regularization.average to ema",
    ),
    "regularization.average_every": _AVERAGE,
    "regularization.average_start": _AVERAGE,
    "regularization.synonym_share": Needs(
        lambda r: r.regularization.synonyms, "no words are replaced", "set regularization.synonyms"
    ),
    "train.emulate": Needs(
        lambda r: r.train.mixed_precision not in ("no", "auto"),
        "train.mixed_precision no and auto never emulate",
        "name the precision, such as bf16",
    ),
    "train.group_by_length": Needs(
        lambda r: r.train.micro_batch_size != r.train.global_batch_size,
        "a step is one micro-batch (train.micro_batch_size equals train.global_batch_size)",
        "lower train.micro_batch_size",
    ),
    "train.spike_window": _SPIKES,
    "train.spike_sigma": _SPIKES,
    "train.max_skipped": Needs(
        lambda r: {r.train.on_nonfinite, r.train.on_spike} & {"skip", "rewind"},
        "no step is ever skipped",
        "set train.on_nonfinite or train.on_spike to skip or rewind",
    ),
    "eval.every": Needs(lambda r: r.data.eval, "there is no dev split", "set data.eval"),
    "eval.micro_batch_size": Needs(
        lambda r: r.data.eval or r.data.test, "nothing is evaluated", "set data.eval or data.test"
    ),
    "eval.predictions": Needs(
        lambda r: r.data.eval or r.data.test, "nothing is evaluated", "set data.eval or data.test"
    ),
    "eval.samples": Needs(
        lambda r: (r.data.eval or r.data.test) and _writes(r.task.extras),
        "no texts are generated",
        "set task.generate, and data.eval or data.test",
    ),
    "eval.best_metric": Needs(
        lambda r: r.data.eval and r.eval.every,
        "the dev split is evaluated at most once, at the end, so no step can be chosen",
        "set data.eval and eval.every",
    ),
    "eval.patience": Needs(
        lambda r: r.eval.best_metric and r.eval.every,
        "it counts evaluations without an improvement of eval.best_metric",
        "set eval.best_metric and eval.every",
    ),
    "checkpoint.keep_every": Needs(lambda r: r.checkpoint.every, _CHECKPOINTS_ON_THE_WAY, "set checkpoint.every"),
    "tracking.project": Needs(lambda r: r.tracking.trackers, "there are no trackers", "set tracking.trackers"),
}
"""Key -> what it needs."""

ALWAYS = frozenset(
    "output_dir seed "
    "task.name "
    "model.path model.init model.tokenizer model.trust_remote_code model.dtype model.quantization "
    "model.attn_implementation model.add_tokens model.batch_norm "
    "data.train data.eval data.test data.max_samples data.columns data.on_bad_row data.max_length data.cache_dir "
    "peft.method "
    "optim.name optim.lr optim.schedule optim.warmup_steps optim.weight_decay optim.max_grad_norm "
    "regularization.class_weights regularization.cutmix_alpha regularization.dropout regularization.fgm "
    "regularization.focal_gamma regularization.label_smoothing regularization.mixup_alpha "
    "regularization.neftune_alpha regularization.r_drop "
    "regularization.average regularization.freeze regularization.freeze_blocks regularization.layer_decay "
    "regularization.unfreeze_every regularization.synonyms regularization.text_function "
    "regularization.word_deletion regularization.word_swap "
    "train.max_steps train.epochs train.global_batch_size train.micro_batch_size train.micro_batch_tokens "
    "train.mixed_precision train.activations train.compile train.deterministic train.packing train.on_nonfinite "
    "train.on_spike train.resume train.stop_after train.time_limit train.hang_timeout train.allow_changes "
    "checkpoint.every checkpoint.also checkpoint.keep checkpoint.on_error "
    "tracking.trackers tracking.log_every tracking.profile".split()
)
"""Keys that have an effect in every recipe, or are refused by a check of their own where they cannot. Of checkpoints:
a run that is stopped, or asked for one by the file SAVE, saves also where checkpoint.every is 0."""

BY_TASK = frozenset({"model.chat_template", "data.on_long", "data.workers", "train.logits"})
"""Keys of which the task says whether it reads them: `Task.without_effect`."""

BY_SPLIT = frozenset(
    "data.format data.encoding data.header data.delimiter data.quoting data.sample_by data.hub_config".split()
)
"""Keys of which the data says whether they are read: `Source.reads`."""


def check_effects(recipe: Recipe, sections: Mapping[str, BaseModel], without_effect: Mapping[str, str]) -> None:
    """Refuse a key that is set and has no effect in this recipe.

    Args:
        recipe: The recipe.
        sections: The schemas of further settings, by section: those of the task.
        without_effect: Keys that the task does not read, and why.

    Raises:
        ConfigError: There is one, or a value that has none.
    """
    everywhere = {name: getattr(recipe, name) for name in type(recipe).model_fields} | dict(sections)
    unmet = {key: needs for key, needs in NEEDS.items() if not needs.met(recipe)}
    reasons = {key: needs.otherwise for key, needs in unmet.items()} | dict(without_effect)
    refuse_without_effect(everywhere, reasons, {key: needs.fix for key, needs in unmet.items()})
    check_allowed(recipe)
    checkpoint = recipe.checkpoint
    for name in ("on_nonfinite", "on_spike"):
        if getattr(recipe.train, name) == "rewind" and not (checkpoint.every or checkpoint.also):
            raise ConfigError(
                f"rewind needs a checkpoint to go back to, but {_CHECKPOINTS_ON_THE_WAY}.",
                where=f"train.{name}",
                fix="Set checkpoint.every, or use skip.",
            )


def refuse_without_effect(
    sections: Mapping[str, BaseModel | None], reasons: Mapping[str, str], fixes: Mapping[str, str] | None = None
) -> None:
    """Refuse keys without effect that do not have their default.

    The default is not refused, wherever it was written: a resolved recipe holds every key.

    Args:
        sections: Settings by section.
        reasons: Dotted key -> why it has no effect.
        fixes: Dotted key -> what to do instead of removing it.

    Raises:
        ConfigError: Some are set; it names them all.
    """
    told = []
    for key, why in reasons.items():
        section, _, name = key.partition(".")
        settings = sections.get(section)
        if settings is not None and getattr(settings, name) != (default := default_of(settings, name)):
            otherwise = f", or {fix}" if (fix := (fixes or {}).get(key)) else ""
            plain = json.dumps(default) if default in (None, True, False) else default
            told.append(f"{key}: has no effect: {why}. Leave it at its default ({plain}){otherwise}.")
    if told:
        raise ConfigError("\n".join(told))


def check_allowed(recipe: Recipe) -> None:
    """Refuse names in `train.allow_changes` that allow nothing.

    Of the open sections (task, peft, optim) any key is allowed: an earlier run may have had others.

    Raises:
        ConfigError: A key that is not known, or one that may change anyway.
    """
    known = {*known_keys(type(recipe)), *_BESIDE_KEYS}
    for name in recipe.train.allow_changes:
        where, section = "train.allow_changes", name.partition(".")[0]
        if name in FREE_TO_CHANGE or section in FREE_TO_CHANGE:
            raise ConfigError(f"{name} may always change.", where=where, fix="Remove it from the list.")
        if name not in known and not (name.count(".") == 1 and section in _OPEN):
            raise ConfigError(f"no setting {name!r}. {meant(name, known)}", where=where)


def default_of(settings: BaseModel, name: str) -> Any:
    """Return a field's default."""
    return type(settings).model_fields[name].get_default(call_default_factory=True)


def beyond_the_end(recipe: Recipe, max_steps: int) -> Iterator[str]:
    """Yield a remark on each setting that a run of so many steps never, or only in part, gets to.

    Not refused: a few steps of a recipe are how people try it.
    """
    warmup, also = recipe.optim.warmup_steps, [step for step in recipe.checkpoint.also if step > max_steps]
    if warmup >= max_steps and warmup > 1:
        yield (
            f"optim.warmup_steps is {warmup} and the run has {max_steps} steps: the learning rate is still rising at "
            f"the end, and reaches {recipe.optim.lr * (max_steps - 1) / warmup:.2e} of {recipe.optim.lr:.2e}"
        )
    if recipe.regularization.average and (start := recipe.regularization.average_start) > max_steps:
        yield f"regularization.average_start is {start} and the run has {max_steps} steps: nothing is averaged"
    if (asked := recipe.num_best) > (scored := ceil(max_steps / (recipe.eval.every or max_steps))) > 1:
        yield f"regularization.average_count is {asked} and the run has {scored} evaluations: all of them are averaged"
    if also:
        yield f"checkpoint.also: the run has {max_steps} steps, so {', '.join(map(str, also))} will not be saved"
    if recipe.train.on_spike != "ignore" and recipe.train.spike_window >= max_steps:
        yield f"train.spike_window is {recipe.train.spike_window}: in {max_steps} steps no spike will be detected"
    if recipe.eval.best_metric and recipe.eval.every >= max_steps:
        yield f"eval.best_metric: the dev split is evaluated once, after step {max_steps}, so no step is chosen"
    if (recipe.train.stop_after or 0) > max_steps:
        yield f"train.stop_after is {recipe.train.stop_after}, beyond the run's last step, {max_steps}"


def _writes(settings: Mapping[str, Any]) -> bool:
    """Whether a task has texts written: those that it scores, or those that it learns from."""
    return settings.get("generate") is not None or bool(settings.get("rewards"))


def _is_folder(path: str) -> bool:
    return Path(path).expanduser().is_dir()
