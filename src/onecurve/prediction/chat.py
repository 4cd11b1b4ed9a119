"""A conversation of several turns with a trained model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecurve.config import ModelSection, TaskSection
from onecurve.content.messages import Message
from onecurve.errors import ConfigError
from onecurve.model.reading import Reading, load_config
from onecurve.model.remote_code import told_by_flag
from onecurve.model.task_file import TaskFile, is_model_folder
from onecurve.model.trained import Trained, load_trained, loads_as
from onecurve.prediction.answers import encode_prompt
from onecurve.tasks import load_task
from onecurve.tasks._rendering import TemplateSettings
from onecurve.tasks.base import BadRow, Generates

"""The column of a task that learns conversations."""
_TASK = "sft"
"""What a folder that says of no task is asked for."""


@dataclass
class Chat:
    """A conversation, which grows by a question and its answer."""

    trained: Trained
    system: str | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    """0: the likeliest token each time; above, tokens are drawn."""
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, with the system prompt alone."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, question: str, streamer: Any = None) -> str:
        """Add a question and return its answer.

        Args:
            question: What the user says.
            streamer: Of transformers; is given the answer's tokens as they come.

        Raises:
            BadRow: The question does not fit what the model reads, or its template rejects it; it is not kept.
        """
        trained, task = self.trained, self.trained.task
        messages = [*self.messages, {"role": "user", "content": question}]
        assert isinstance(task, Generates)
        prompt = encode_prompt(trained, task, {"messages": messages}, self.max_new_tokens)
        if isinstance(prompt, str):
            raise BadRow(prompt)
        options: dict[str, Any] = {"do_sample": self.temperature > 0, "max_new_tokens": self.max_new_tokens}
        if self.temperature > 0:
            options["temperature"] = self.temperature
        if streamer is not None:
            options["streamer"] = streamer
        (answer,) = task.generate(trained.model, [prompt], trained, **options)
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer


def load_chat_model(folder: Path, trust_remote_code: bool = False) -> Trained:
    """Load a model that converses; of a folder without task.json, any causal language model with a chat template.

    Raises:
        ConfigError: Another task's model, or one without a chat template; no weights are loaded then. Or as
            `load_trained`.
    """
    section = ModelSection(path=str(folder), trust_remote_code=trust_remote_code)
    known = TaskFile.read(folder) if is_model_folder(folder) else None
    with told_by_flag():
        name = known.name if known else _TASK if _is_language_model(section) else None
    if name is None:
        return load_trained(folder, trust_remote_code=trust_remote_code)  # which says what is wrong
    task = load_task(TaskSection(name=name, **(known.settings if known else {})))
    if not isinstance(task, Generates) or not isinstance(task.settings, TemplateSettings):
        raise ConfigError(
            f"{str(folder)!r} was trained for {name}, not for conversations.", fix="Ask it with `onecurve predict`."
        )
    with told_by_flag():
        has_template = Reading(section, None, task.auto_processor).tokenizer.chat_template
    if not has_template:
        raise ConfigError(
            f"the tokenizer of {str(folder)!r} has no chat template, so it reads single prompts only.",
            fix="Ask it with `onecurve predict`.",
        )
    return load_trained(folder, name, trust_remote_code)


def _is_language_model(section: ModelSection) -> bool:
    return (Path(section.path) / "config.json").is_file() and loads_as(_TASK, load_config(section))
