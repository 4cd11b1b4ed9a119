"""The recipe: every key, its type, its default and what it means."""

from pydantic import Field, model_validator

from onecurve.config.sections.base import Section
from onecurve.config.sections.checkpoint import CheckpointSection
from onecurve.config.sections.data import DataSection
from onecurve.config.sections.evaluation import EvalSection
from onecurve.config.sections.model import ModelSection
from onecurve.config.sections.optim import OptimSection
from onecurve.config.sections.peft import PeftSection
from onecurve.config.sections.regularization import RegularizationSection
from onecurve.config.sections.task import TaskSection
from onecurve.config.sections.tracking import TrackingSection
from onecurve.config.sections.train import TrainSection


class Recipe(Section):
    """A complete run."""

    output_dir: str
    """The run directory."""
    seed: int = Field(default=0, ge=0)
    """Random seed for the data order, new weights and dropout."""
    task: TaskSection
    model: ModelSection
    data: DataSection
    peft: PeftSection | None = None
    """The adapter. Leave the section out to train every weight."""
    optim: OptimSection = OptimSection()
    regularization: RegularizationSection = RegularizationSection()
    train: TrainSection
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()

    @property
    def eval_micro_batch_size(self) -> int:
        """Examples per rank and forward pass during evaluation; not used with train.micro_batch_tokens."""
        return self.eval.micro_batch_size or self.train.examples_a_pass

    @property
    def num_best(self) -> int:
        """Of how many of the best evaluations the weights are kept."""
        if not self.eval.best_metric:
            return 0
        return self.regularization.average_count if self.regularization.average == "best" else 1

    @property
    def pads(self) -> bool:
        """Whether to assume that micro-batches are padded; with packing auto they may turn out to be packed."""
        return self.train.packing != "on"

    @model_validator(mode="after")
    def _sections_agree(self) -> "Recipe":
        train = self.train
        if train.max_steps is None and train.epochs is None:
            raise ValueError("set train.max_steps or train.epochs: how long to train")
        if train.max_steps is not None and train.epochs is not None:
            raise ValueError(
                f"train.max_steps ({train.max_steps}) and train.epochs ({train.epochs:g}) exclude each other: "
                "set one of them to null"
            )
        if train.global_batch_size % train.examples_a_pass:
            raise ValueError(
                f"train.global_batch_size ({train.global_batch_size}) must be a multiple of "
                f"train.micro_batch_size ({train.micro_batch_size})"
            )
        if self.model.quantization and (self.peft is None or self.model.init == "random"):
            raise ValueError(
                f"model.quantization ({self.model.quantization}) needs frozen pretrained weights: set "
                "peft.method and model.init pretrained, or remove it"
            )
        if self.model.init == "random" and self.regularization.freezes:
            raise ValueError(
                "regularization.freeze and freeze_blocks keep pretrained weights, but model.init is random: set it to "
                "pretrained, or remove them"
            )
        if train.packing == "on" and self.model.attn_implementation not in (None, "sdpa"):
            raise ValueError("train.packing uses its own attention: remove model.attn_implementation or train.packing")
        return self

    @model_validator(mode="after")
    def _averages_what_can_be(self) -> "Recipe":
        if self.regularization.average in ("swa", "last", "best") and self.model.batch_norm == "train":
            raise ValueError(
                f"regularization.average {self.regularization.average} averages weights that lie far apart, whose "
                "statistics of batch normalisation would have to be measured anew: set model.batch_norm to frozen, or "
                "use ema, which averages the statistics as they move"
            )
        if self.regularization.average == "best" and not self.eval.best_metric:
            raise ValueError(
                "regularization.average best averages the steps that eval.best_metric finds best: set it, with "
                "data.eval and eval.every, or use last, which takes the last ones"
            )
        return self
