"""A trained model folder, loaded: a full model or an adapter on its base, and the task that it was trained for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecurve.adapters.folder import Continued, base_of, described_in, is_adapter
from onecurve.config import ModelSection, TaskSection
from onecurve.errors import ConfigError
from onecurve.machine.distributed import computes_natively
from onecurve.model.adapted import load_adapted
from onecurve.model.beside import following
from onecurve.model.reading import Reading, load_config, set_padding
from onecurve.model.remote_code import check_trusted, told_by_flag
from onecurve.model.task_file import NAME, TaskFile, is_model_folder
from onecurve.tasks import find_task, load_task, resolve_task, task_names
from onecurve.tasks.base import Follows, Survey, Task

_HEADS = (".classifier.weight", ".score.weight", ".classifier.out_proj.weight")
"""The last layer of a classifier, as PEFT names it in its file."""
_HALF = {"bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Trained:
    """A model to be asked, and all that is needed to ask it. It serves as the task's `Processing`."""

    task: Task
    survey: Survey
    columns: dict[str, str]
    processor: Any
    model: Any
    """On its device, in evaluation mode."""
    max_length: int

    @property
    def tokenizer(self) -> Any:
        """The processor, or the part of it that reads text."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def positions(self) -> int | None:
        """How many tokens the model has positions for; None where it names no limit."""
        text = self.config.get_text_config()
        found = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
        return found if isinstance(found, int) and found > 0 else None

    @property
    def labels(self) -> list[str]:
        """The labels that it was trained on."""
        return self.survey.labels

    @property
    def config(self) -> Any:
        """The model's transformers config."""
        return self.model.config


def load_trained(folder: Path, task_name: str | None = None, trust_remote_code: bool = False) -> Trained:
    """Load a model folder onto the accelerator where there is one, in the precision it is stored in.

    Args:
        folder: A run's model/, its directory, or what `onecurve checkpoint convert` wrote.
        task_name: The task to ask it for, where the folder has no task.json; where it has one, the same.
        trust_remote_code: Run Python code that comes with the model or its tokenizer.

    Raises:
        ConfigError: No model folder, no task that is known or another one, code that is not trusted, or weights that
            cannot be read.
    """
    if not is_model_folder(folder) and is_model_folder(folder / "model"):
        folder /= "model"  # a run's directory
    if not is_model_folder(folder):
        raise ConfigError(f"{str(folder)!r} is not a model folder: it has no config.json and no adapter_config.json.")
    known = TaskFile.read(folder)
    if known and task_name not in (None, known.name):
        raise ConfigError(f"{str(folder)!r} was trained for {known.name}; it cannot be asked as {task_name}.")
    with told_by_flag():
        check_trusted(ModelSection(path=str(described_in(folder)), trust_remote_code=trust_remote_code))
        known = known or _guess(folder, task_name, trust_remote_code)
        task = load_task(TaskSection(name=known.name, **known.settings))
        section = ModelSection(path=str(folder), trust_remote_code=trust_remote_code)
        reading = Reading(section, None, task.auto_processor)
        processor = reading.processor
        model = _load_model(folder, task, known.survey, trust_remote_code)
    pad = reading.tokenizer.pad_token_id if reading.reads_text else None
    if pad is not None and pad < getattr(model.config.get_text_config(), "vocab_size", 0):
        set_padding(model.config, reading.tokenizer, pretrained=True)  # by which a decoder finds a text's end
    model.to(_device()).eval()
    return Trained(task, known.survey, known.columns, processor, model, known.max_length)


def _guess(folder: Path, task_name: str | None, trusted: bool) -> TaskFile:
    """Find what a folder without task.json, such as a converted one, can be asked for."""
    config, fitting = _read_adapter(folder, trusted) if is_adapter(folder) else _read_model(folder, trusted)
    names = [task_name] if task_name else fitting
    if len(names) != 1:
        found = f"{' and '.join(names)} fit it" if names else "no task fits it"
        raise ConfigError(
            f"{str(folder)!r} has no {NAME} that says what it was trained for, and {found}.",
            fix="Name one with --task.",
        )
    labels = [config.id2label[number] for number in sorted(config.id2label or {})]
    kind = load_task(TaskSection(name=names[0])).Settings
    told = {key: getattr(config, key) for key in kind.model_fields if getattr(config, key, None) is not None}
    if "problem_type" in kind.model_fields and len(labels) == 1:
        told.setdefault("problem_type", "regression")  # what transformers takes one output for
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    length = limit if isinstance(limit, int) and limit > 0 else 2048
    if isinstance(task := load_task(TaskSection(name=names[0], **told)), Follows):
        task = following(task, ModelSection(path=str(folder)))
        told, length = resolve_task(task), min(length, task.longest or length)
    return TaskFile(names[0], told, Survey(labels), {}, length)


def _read_model(folder: Path, trusted: bool) -> tuple[Any, list[str]]:
    """Return a whole model's config, and the tasks whose kind of model it is."""
    config = load_config(ModelSection(path=str(folder), trust_remote_code=trusted))
    return config, [name for name in task_names() if find_task(name).is_guessed and loads_as(name, config)]


def _read_adapter(folder: Path, trusted: bool) -> tuple[Any, list[str]]:
    """Return the config that an adapter needs, with as many labels as its head has, and the tasks for its kind."""
    from safetensors import safe_open

    adapter, described = Continued.read(str(folder)), described_in(folder)
    own = (described / "config.json").is_file()
    source, revision = (str(described), None) if own else (adapter.base, adapter.revision)
    config = load_config(ModelSection(path=source, revision=revision, trust_remote_code=trusted))
    weights = folder / "adapter_model.safetensors"
    if not own and weights.is_file():
        with safe_open(weights, framework="pt") as stored:
            rows = {stored.get_slice(key).get_shape()[0] for key in stored.keys() if key.endswith(_HEADS)}
        if len(rows) == 1 and config.num_labels not in rows:
            config.num_labels = rows.pop()
    alone = {name: find_task(name) for name in task_names() if not _needs_settings(name)}
    names = [name for name, kind in alone.items() if kind.is_guessed and kind.peft_task_type == adapter.task_type]
    return config, names if adapter.task_type else []


def _needs_settings(name: str) -> bool:
    """Whether a task is nothing without settings, which a folder that does not name them cannot tell."""
    return any(field.is_required() for field in find_task(name).Settings.model_fields.values())


def loads_as(name: str, config: Any) -> bool:
    """Whether a task's kind of model is the one that a config names."""
    if _needs_settings(name):
        return False
    auto = load_task(TaskSection(name=name)).auto_model()
    mapping, own = getattr(auto, "_model_mapping", {}), getattr(config, "auto_map", {}).get(auto.__name__)
    if own:
        return own.rpartition(".")[2] in (config.architectures or ())
    if type(config) not in mapping:
        return False
    found = mapping[type(config)]
    classes = found if isinstance(found, tuple) else (found,)
    return any(kind.__name__ in (config.architectures or ()) for kind in classes)


def _load_model(folder: Path, task: Task, survey: Survey, trusted: bool) -> Any:
    auto: Any = task.auto_model()
    told: dict[str, Any] = task.model_config(survey)
    try:
        if not (folder / "adapter_config.json").is_file():
            dtype = _dtype(str(folder), told, trusted)
            return auto.from_pretrained(folder, dtype=dtype, trust_remote_code=trusted)
        return _load_adapter(folder, auto, told, trusted)
    except (OSError, ValueError, RuntimeError) as error:
        line = str(error).strip().split("\n")[0]
        raise ConfigError(f"{str(folder)!r} cannot be loaded: {line}") from None


def _load_adapter(folder: Path, auto: Any, told: dict[str, Any], trusted: bool) -> Any:
    from peft import PeftConfig

    import onecurve.adapters.bottleneck  # noqa: F401  registers the bottleneck adapter with PEFT

    adapter, described = PeftConfig.from_pretrained(str(folder)), described_in(folder)
    base, revision = base_of(folder, adapter), adapter.revision or "main"
    dtype = _dtype(base, told, trusted, revision)
    if (described / "config.json").is_file():
        told = {"config": load_config(ModelSection(path=str(described), trust_remote_code=trusted))}
    return load_adapted(folder, auto, base, dtype=dtype, revision=revision, trust_remote_code=trusted, **told)


def _dtype(path: str, told: dict[str, Any], trusted: bool, revision: str = "main") -> str:
    """Return the precision that weights are stored in, or float32 where this device could only emulate it.

    A regression's numbers are always computed in float32: bfloat16 has nothing between 2008 and 2016.
    """
    heads = [head["config"] for head in told.get("task_heads", {}).values()]
    if any(one.get("problem_type") == "regression" for one in (told, *heads)):
        return "float32"
    config = load_config(ModelSection(path=path, revision=revision, trust_remote_code=trusted))
    stored = str(config.dtype or "float32").removeprefix("torch.")
    return "float32" if stored in _HALF and not computes_natively(_HALF[stored]) else stored


def _device() -> Any:
    import torch

    from onecurve.machine.accelerator import own_accelerator

    accelerator = own_accelerator()
    return accelerator.device if accelerator else torch.device("cpu")
