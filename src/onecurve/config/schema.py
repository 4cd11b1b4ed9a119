"""The recipe's schema: every key, its type, its default and what it means."""

from datetime import timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PrivateAttr, field_validator, model_validator


class Section(BaseModel):
    """One frozen, strict group of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class OpenSection(Section):
    """A section whose further keys belong to what its first key names, which checks them (`extras`)."""

    model_config = ConfigDict(extra="allow")

    @property
    def extras(self) -> dict[str, Any]:
        """The keys this schema does not know, for their owner to check."""
        return dict(self.__pydantic_extra__ or {})


class TaskSection(OpenSection):
    name: str
    """A file of `onecurve/tasks/`, or your own my_file.py:Task or package.module:Task. Further keys are the task's."""


class ModelSection(Section):
    path: str
    """A folder with a model, or a hub name."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` draws the weights from the seed and needs only a config.json."""
    tokenizer: str | None = None
    """Where the tokenizer lies, when not beside the model."""
    chat_template: str | None = None
    """A Jinja file with the chat template to use and to save, when not the tokenizer's own."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What frozen weights are kept in; trained ones are float32, or bfloat16 with `optim.rounding`. auto:
    mixed_precision's under PEFT, else float32."""
    quantization: Literal["nf4", "int8"] | None = None
    """Quantise the frozen weights of linear layers as they are loaded, under PEFT: nf4 (4 bits, QLoRA) or int8. The
    rest stays in `dtype`."""
    attn_implementation: str | None = None
    """transformers' attention implementation, such as eager or sdpa; its own choice when absent."""


class DataSection(Section):
    train: str
    """File, folder or hub name (`org/name` or `org/name:split`)."""
    eval: str | None = None
    """The dev split, scored during training."""
    test: str | None = None
    """The test split, scored once at the end."""
    columns: dict[str, str] = Field(default_factory=dict)
    """What the task needs -> what the file calls it (a position from 0 where a CSV has no header); '': read none."""
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text"] = "auto"
    """auto: by the file's suffix."""
    encoding: str = "utf-8"
    """Of text files."""
    header: bool = True
    """Whether the first row of CSV and TSV names the columns."""
    quoting: Literal["auto", "minimal", "none"] = "auto"
    """Quotes in CSV and TSV: minimal, they enclose fields; none, they are plain characters, as in GLUE; auto, minimal
    but for a TSV in which some quotes enclose nothing."""
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """What one row of plain text is."""
    hub_config: str | None = None
    """The configuration of a hub dataset that has several."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What a broken row does; skipped ones are counted and reported."""
    on_long: Literal["error", "truncate", "drop"] = "error"
    """What an example longer than `max_length` does; each one is counted and reported."""
    max_length: int | None = Field(default=None, gt=1)
    """Tokens an example may have; the model's own limit when absent."""
    cache_dir: str | None = None
    """Where encoded examples are kept; the user's cache directory when absent."""


class PeftSection(OpenSection):
    method: str
    """A PEFT type (lora, ia3, prefix_tuning, ..., bottleneck). Further keys are that method's own fields in PEFT."""


class OptimSection(OpenSection):
    name: str = "adamw"
    """A function of `onecurve/optim/optimizers.py`. Further keys are its keyword arguments."""
    lr: float = Field(gt=0, default=2e-5)
    """Peak learning rate."""
    schedule: str = "linear"
    """A function of `onecurve/optim/schedules.py`: constant, linear, cosine, wsd."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from zero to its peak."""
    decay_steps: int | None = Field(default=None, ge=0)
    """wsd only: steps of the last descent; a tenth of the run when absent."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """The learning rate's floor, as a share of its peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled; never on biases and normalisation weights."""
    rounding: Literal["stochastic", "kahan"] | None = None
    """How trained weights are rounded where they are kept in bfloat16 (`model.dtype`): by chance, or with what was left
    over added to the next update. Plain rounding loses small updates."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this global norm; 0 never clips."""


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
    """auto: the newest checkpoint here. never, or a checkpoint's path: what a run begins from, once, then goes on."""
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


class EvalSection(Section):
    every: int = Field(default=0, ge=0)
    """Steps between two scorings of the dev split; 0: only at the end."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Examples per rank and forward pass; train.micro_batch_size, or train.micro_batch_tokens, when absent."""
    best_metric: str | None = None
    """Keep the step that is best by this dev metric; `model/` is that step's. Absent: the last step's."""
    patience: int | None = Field(default=None, gt=0)
    """Stop after so many dev scorings without a better best_metric."""

    @model_validator(mode="after")
    def _patience_needs_a_metric(self) -> "EvalSection":
        if self.patience and not self.best_metric:
            raise ValueError("patience needs best_metric: say which metric has to get better")
        return self


class CheckpointSection(Section):
    every: int | None = Field(default=0, ge=0)
    """Steps between two checkpoints, the last step's besides; 0: only the last step's; null: none."""
    also: list[NonNegativeInt] = Field(default_factory=list)
    """Further steps to save after, always kept; 0 is the start, before the first update."""
    keep: int = Field(default=2, gt=0)
    """Newest checkpoints to keep; the best step's is kept besides."""
    on_error: Literal["stop", "continue"] = "stop"
    """What a save that fails (a full disk) does to a run that still trains; the last good checkpoint stays."""
    keep_every: int = Field(default=0, ge=0)
    """Keep every checkpoint whose step is a multiple of this; 0: none for that reason."""


class TrackingSection(Section):
    trackers: list[str] = Field(default_factory=list)
    """Accelerate's trackers, such as tensorboard, wandb, mlflow."""
    project: str = "onecurve"
    """The project's name in those trackers."""
    log_every: int = Field(default=1, gt=0)
    """Steps between two train lines of metrics.jsonl."""
    profile: int = Field(default=0, ge=0)
    """Steps to measure, after three that warm up: `<output_dir>/profile/` then says where their time went. 0: none."""


class Recipe(Section):
    """A complete run."""

    output_dir: str
    """The run directory."""
    seed: int = Field(default=0, ge=0)
    """Of the data order, new weights and every random draw."""
    task: TaskSection
    model: ModelSection
    data: DataSection
    peft: PeftSection | None = None
    """Absent: every weight is trained."""
    optim: OptimSection = OptimSection()
    train: TrainSection
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()

    @property
    def eval_micro_batch_size(self) -> int:
        """Examples per rank and forward pass when scoring, unless train.micro_batch_tokens says it."""
        return self.eval.micro_batch_size or self.train.examples_a_pass

    @property
    def pads(self) -> bool:
        """Whether a micro-batch is to be thought of as padded; with packing auto it may turn out not to be."""
        return self.train.packing != "on"

    @model_validator(mode="after")
    def _sections_agree(self) -> "Recipe":
        train = self.train
        if (train.max_steps is None) == (train.epochs is None):
            raise ValueError("set exactly one of train.max_steps and train.epochs")
        if train.global_batch_size % train.examples_a_pass:
            raise ValueError(
                f"train.global_batch_size ({train.global_batch_size}) must be a multiple of "
                f"train.micro_batch_size ({train.micro_batch_size})"
            )
        if self.model.quantization and (self.peft is None or self.model.init == "random"):
            raise ValueError(
                f"model.quantization ({self.model.quantization}) is for pretrained weights that stay frozen: set "
                "peft.method and model.init pretrained, or remove it"
            )
        if train.packing == "on" and self.model.attn_implementation not in (None, "sdpa"):
            raise ValueError("train.packing has its own attention: remove model.attn_implementation, or turn it off")
        if self.data.eval is None and (self.eval.every or self.eval.best_metric):
            raise ValueError("eval.every and eval.best_metric need a dev split: set data.eval")
        return self
