"""Completions by a server: it is lent the adapter for each generation, and writes with it."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError
from torch import Tensor

from onecurve.content.completions import Completion
from onecurve.data.loader import Loader
from onecurve.errors import ConfigError
from onecurve.machine.vllm import Drawn, ServerError, VllmServer
from onecurve.rollouts.drawing import end_tokens
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Example, RollsOut

_WHERE, _FOLDER = "task.server", "served"
_FAR = 0.5
"""Nats by which two programs may part over a token, on average: bfloat16 parts them by hundredths."""
_SECONDS_TO_FORGET = 10.0


@dataclass
class Serving:
    """A vLLM server of the base model, which reads adapters from the run's folder."""

    server: VllmServer
    strategy: Strategy
    run: Path
    """The run's folder, which the server sees under the same path."""
    launch: str = field(default_factory=lambda: token_hex(4))
    """Of this launch alone: the server keeps what it computed with an adapter by the adapter's name."""
    count: int = 0
    """Adapters that were lent."""

    def gathered(self) -> dict[str, Tensor]:
        """Return the adapter's weights in host memory; every rank calls this."""
        # A copy: ZeRO-3 gathers each for the moment
        named = self.strategy.full_parameters(trained_only=True)
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in named}

    def draw(
        self, values: dict[str, Tensor], loader: Loader, prompts: Sequence[Example], keys: Sequence[int], training: bool
    ) -> list[Drawn]:
        """Return what the server draws for each prompt; rank 0 calls this.

        Args:
            values: The adapter's weights.
            loader: Of the split that the prompts are of.
            prompts: One for each completion.
            keys: Of each completion.
            training: Else how evaluation draws.

        Raises:
            ConfigError: The server fails, or the adapter cannot be written.
        """
        assert isinstance(loader.task, RollsOut)
        model = self.strategy.unwrapped()
        ends = sorted(end_tokens(model, loader.task, loader.reading.tokenizer))
        ids, options = [prompt["input_ids"] for prompt in prompts], loader.task.drawing(training)
        shutil.rmtree(self.run / _FOLDER, ignore_errors=True)  # a killed run's
        self.count += 1
        name = f"{self.run.name}-{self.launch}-{self.count}"
        folder = (self.run / _FOLDER / name).absolute()
        try:
            model.save_pretrained(folder, state_dict=dict(values), save_embedding_layers=False)  # type: ignore[operator]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ConfigError(f"the adapter cannot be written to '{folder}': {error}.", where=_WHERE) from None

        def drawn(again: bool) -> list[Drawn]:
            self.server.load_adapter(name, str(folder), again)
            return self.server.draw(name, ids, keys, ends, options)

        try:
            try:
                return drawn(again=False)
            except ServerError:  # once more: a server that was started anew has no adapters
                return drawn(again=True)
        except ServerError as error:
            raise ConfigError(
                f"{self.server.address}: {error}.",
                where=_WHERE,
                fix="Adapters need VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora, a --max-lora-rank that is "
                "enough, and a run's folder that the server sees under the same path.",
            ) from None
        finally:
            with suppress(ServerError):
                replace(self.server, patience=_SECONDS_TO_FORGET).unload_adapter(name)
            shutil.rmtree(folder.parent, ignore_errors=True)


def completions_of(drawn: Sequence[Drawn], logps: Sequence[list[float]], tokenizer: object) -> list[Completion]:
    """Return what was drawn, with what the model that is trained says of each token.

    Args:
        drawn: By the server.
        logps: Of each, the log-probabilities.
        tokenizer: The run's.
    """
    return [
        # The mean of -log p over what is drawn from p estimates its entropy
        Completion(one.ids, of_one, -sum(of_one) / len(of_one), one.ended, _text(one, tokenizer))
        for one, of_one in zip(drawn, logps, strict=True)
    ]


def _text(one: Drawn, tokenizer: object) -> str:
    told: str = tokenizer.decode(one.ids, skip_special_tokens=True)  # type: ignore[attr-defined]
    return told


def difference(address: str, drawn: Sequence[Drawn], logps: Sequence[list[float]]) -> float:
    """Return how far a server and the model that is trained part over a token, in nats on average.

    Args:
        address: Of the server.
        drawn: What it said, before temperature.
        logps: Of each, what the model says at temperature 1.

    Raises:
        ConfigError: They are so far apart that the server has another model.
    """
    pairs = [pair for one, ours in zip(drawn, logps, strict=True) for pair in zip(one.logps, ours, strict=True)]
    apart = sum(abs(theirs - ours) for theirs, ours in pairs) / len(pairs)
    if not apart <= _FAR:
        raise ConfigError(
            f"{address} finds its tokens otherwise likely than the model that is trained, by {apart:.2f} nats a token "
            "on average: it serves another model.",
            where=_WHERE,
            fix="Serve model.path.",
        )
    return apart
