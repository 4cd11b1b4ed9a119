"""How steps are made: their size, their cut, their precision, and what ends them."""

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from onecurve.config.sections.base import Section


class TrainSection(Section):
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer updates of the run. Exactly one of this and `epochs` is set."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training set."""
    global_batch_size: int = Field(default=32, gt=0)
    """Examples per optimizer update, whatever the number of ranks."""
    micro_batch_size: int | Literal["auto"] | None = 8
    """Examples per rank and forward-backward pass; auto: the largest power of two that fits in memory. null where
    `micro_batch_tokens` is set."""
    micro_batch_tokens: int | None = Field(default=None, gt=0)
    """In place of `micro_batch_size`: tokens per rank and pass at most, so that a pass takes many short examples or few
    long ones. With packing on the sum of their lengths counts; else examples x the longest, as padding makes them."""
    group_by_length: bool = False
    """Cut each step into micro-batches of like length, so that little is padded. Which examples a step holds, and in
    which order it is told, stays."""
    mixed_precision: Literal["no", "bf16", "fp16", "fp8", "auto"] = "no"
    """What matrix products are computed in; fp8: those of linear layers below the head in float8, the rest as in bf16;
    auto: bf16 where the device computes it natively, else no."""
    emulate: bool = False
    """Allow a precision that this device can only emulate, many times slower."""
    activations: Literal["keep", "recompute", "selective", "offload"] = "keep"
    """What layers keep in memory for the backward pass; gradients stay the same. keep: all; recompute: their inputs;
    selective: what matrix products and attention return besides; offload: their inputs, in host memory."""
    logits: Literal["whole", "chunked"] = "whole"
    """How a language model's loss is computed. whole: from the logits of all that is learnt in a pass; chunked: from a
    few rows at a time, where the output layer is a plain one without adapter; or refuse to start."""
    compile: bool = False
    """Have torch compile the model's repeated layers, a few graphs for all lengths. It takes minutes before it saves
    any, and the curve stays but for float noise."""
    packing: Literal["off", "on", "auto"] = "off"
    """Run the examples of a micro-batch end to end in one row instead of padding them, each seeing only itself.
    auto: where the model can; on: or refuse to start."""
    on_nonfinite: Literal["stop", "skip", "rewind"] = "stop"
    """What a loss or gradient with NaN or infinity in it does, always before the update. stop: the run, with a black
    box; skip: the update of that step; rewind: back to the last checkpoint, to leave that step out."""
    on_spike: Literal["ignore", "stop", "skip", "rewind"] = "ignore"
    """The same for a loss that lies more than `spike_sigma` standard deviations above the mean of the last
    `spike_window` steps."""
    spike_window: int = Field(default=64, gt=1)
    """Steps a spike is told from; until there are so many, nothing is one."""
    spike_sigma: float = Field(default=6.0, gt=0)
    """Standard deviations above their mean."""
    max_skipped: int = Field(default=10, ge=0)
    """Steps in a row that may be left out; one more stops the run."""
    resume: str = "auto"
    """auto, never, or a checkpoint's path."""
    stop_after: int | None = Field(default=None, gt=0)
    """End this launch with a checkpoint after that step, or at once where it goes on from that step or a later one; the
    schedule stays that of the whole run."""
    time_limit: timedelta | None = Field(default=None, strict=False, gt=timedelta(0))
    """End this launch with a checkpoint before it has run so long: seconds, or HH:MM:SS. Under Slurm the job's own
    limit is known."""
    hang_timeout: timedelta = Field(default=timedelta(minutes=30), strict=False, gt=timedelta(0))
    """End a run that does not get on for so long, naming the rank that the others wait for: seconds, or HH:MM:SS. More
    than the longest pass, scoring or writing of a file takes."""
    allow_changes: list[str] = Field(default_factory=list)
    """Settings that may differ from the checkpoint's although the curve changes with them."""

    @field_validator("micro_batch_size", mode="plain")
    @classmethod
    def _a_size_or_auto(cls, value: Any) -> Any:
        if value not in ("auto", None) and (type(value) is not int or value < 1):
            raise ValueError(f"must be a whole number above 0, or auto; got {value!r}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _tokens_stand_in_for_the_size(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        size, tokens = (values.get(f"micro_batch_{unit}") for unit in ("size", "tokens"))
        if size is not None and tokens is not None:
            both = f"micro_batch_size ({size}) and micro_batch_tokens ({tokens})"
            raise ValueError(f"{both} cannot both be meant: set one of them to null")
        if tokens is None and size is None and "micro_batch_size" in values:
            raise ValueError("set micro_batch_size or micro_batch_tokens; both are null")
        return values if tokens is None else {**values, "micro_batch_size": None}

    _found: int = PrivateAttr(default=1)

    @property
    def examples_a_pass(self) -> int:
        """micro_batch_size; what was found where that is auto, and before that, or where tokens are counted, 1."""
        return self.micro_batch_size if isinstance(self.micro_batch_size, int) else self._found

    @property
    def cut_by(self) -> str:
        """The setting that says how large a micro-batch is."""
        return "train.micro_batch_tokens" if self.micro_batch_tokens else "train.micro_batch_size"

    @property
    def cut(self) -> dict[str, Any]:
        """The settings that say how a step is cut into micro-batches."""
        tokens, size = self.micro_batch_tokens, None if self.micro_batch_tokens else self.examples_a_pass
        return {"micro_batch_size": size, "micro_batch_tokens": tokens, "group_by_length": self.group_by_length}

    def with_found(self, micro_batch_size: int) -> "TrainSection":
        """Return a copy that knows what auto came to."""
        copy = self.model_copy()
        copy._found = micro_batch_size
        return copy
