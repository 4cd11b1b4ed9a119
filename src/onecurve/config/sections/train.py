"""Training: length, batch sizes, precision, memory, error handling, resuming and stopping."""

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from onecurve.config.sections.base import Section


class TrainSection(Section):
    max_steps: int | None = Field(default=None, gt=0, le=10**9)
    """Optimizer updates of the run. Set exactly one of this and `epochs`."""
    epochs: float | None = Field(default=None, gt=0, le=10**6)
    """Passes over the training set; of a mixture, so many times as many draws as it has examples."""
    global_batch_size: int = Field(default=32, gt=0)
    """Examples per optimizer update, summed over all ranks."""
    micro_batch_size: int | Literal["auto"] | None = 8
    """Examples per rank and forward-backward pass; auto: the largest power of two that fits in memory. Must be null
    when `micro_batch_tokens` is set."""
    micro_batch_tokens: int | None = Field(default=None, gt=0)
    """Instead of `micro_batch_size`: maximum tokens per rank and pass, so that a pass takes many short examples or few
    long ones. Counted with padding (examples x longest example); with packing, as the sum of the lengths."""
    group_by_length: bool = False
    """Split each step into micro-batches of similar length to reduce padding. Each step keeps its examples."""
    mixed_precision: Literal["no", "bf16", "fp16", "fp8", "auto"] = "no"
    """Precision of matrix products. fp8: float8 in the linear layers below the head, bf16 elsewhere. auto: bf16 where
    the device supports it natively, else no."""
    emulate: bool = False
    """Allow a precision that the device can only emulate, which is many times slower."""
    deterministic: bool = False
    """Use only kernels that give the same bits each time, so that a resumed run on a GPU equals the uninterrupted one
    bit for bit; slower there. An operator without such a kernel is an error."""
    activations: Literal["keep", "recompute", "selective", "offload"] = "keep"
    """What layers store for the backward pass; gradients stay the same. keep: everything. recompute: only their inputs.
    selective: also the outputs of matrix products and attention. offload: only their inputs, in host memory."""
    logits: Literal["whole", "chunked"] = "whole"
    """How a language model's loss is computed. whole: all logits of a pass at once. chunked: a few rows at a time,
    which saves memory; needs a plain linear output layer without an adapter."""
    compile: bool = False
    """Compile the model's repeated layers with torch.compile, with a few graphs for all lengths. This takes minutes at
    the start; the curve stays the same up to float rounding."""
    packing: Literal["off", "on", "auto"] = "off"
    """Concatenate the examples of a micro-batch in one row instead of padding them; attention stays within an example.
    on: refuse to start if the model does not support it. auto: pack if the model supports it."""
    on_nonfinite: Literal["stop", "skip", "rewind"] = "stop"
    """What to do when a loss or gradient is NaN or infinite; always before the update. stop: end the run and write a
    black box. skip: skip the update of that step. rewind: go back to the last checkpoint and leave that step out."""
    on_spike: Literal["ignore", "stop", "skip", "rewind"] = "ignore"
    """The same for a loss more than `spike_sigma` standard deviations above the mean of the last `spike_window`
    steps."""
    spike_window: int = Field(default=64, gt=1)
    """Number of recent losses used to detect a spike; detection starts once there are this many."""
    spike_sigma: float = Field(default=6.0, gt=0)
    """Threshold of a spike, in standard deviations above the mean."""
    max_skipped: int = Field(default=10, ge=0)
    """Maximum number of consecutive skipped steps; one more stops the run."""
    resume: str = "auto"
    """auto: resume from the newest checkpoint in output_dir. never: start again. Or the path of a checkpoint to start
    from. Both apply once; a restart then resumes from the run's own checkpoints."""
    stop_after: int | None = Field(default=None, gt=0)
    """Save a checkpoint after this step and end the launch; at once if the run resumes at or after it. The schedule
    stays that of the whole run."""
    time_limit: timedelta | None = Field(default=None, strict=False, gt=timedelta(0))
    """Save a checkpoint and end the launch before this time has passed: seconds, or HH:MM:SS. Under Slurm the job's
    time limit is respected without it."""
    hang_timeout: timedelta = Field(default=timedelta(minutes=30), strict=False, gt=timedelta(0))
    """Abort when no rank makes progress for this long, and name the one the others wait for: seconds, or HH:MM:SS. Set
    it above your slowest step, evaluation or save."""
    allow_changes: list[str] = Field(default_factory=list)
    """Settings that may differ from the checkpoint's although this changes the curve."""

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
            raise ValueError(f"{both} exclude each other: set one of them to null")
        if tokens is None and size is None and "micro_batch_size" in values:
            raise ValueError("set micro_batch_size or micro_batch_tokens; both are null")
        return values if tokens is None else {**values, "micro_batch_size": None}

    _found: int = PrivateAttr(default=1)

    @property
    def examples_a_pass(self) -> int:
        """micro_batch_size; with auto, the size that was found. 1 before that, and with micro_batch_tokens."""
        return self.micro_batch_size if isinstance(self.micro_batch_size, int) else self._found

    @property
    def cut_by(self) -> str:
        """The setting that limits the size of a micro-batch."""
        return "train.micro_batch_tokens" if self.micro_batch_tokens else "train.micro_batch_size"

    @property
    def cut(self) -> dict[str, Any]:
        """The settings that decide how a step is split into micro-batches."""
        tokens, size = self.micro_batch_tokens, None if self.micro_batch_tokens else self.examples_a_pass
        return {"micro_batch_size": size, "micro_batch_tokens": tokens, "group_by_length": self.group_by_length}

    def with_found(self, micro_batch_size: int) -> "TrainSection":
        """Return a copy with the size that auto found."""
        copy = self.model_copy()
        copy._found = micro_batch_size
        return copy
