"""Regularization: what acts on the loss, the inputs and the weights in training; evaluation adds nothing of its own."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from onecurve.config.sections.base import Section


def _none_for_zero(value: Any) -> Any:
    return None if value == 0 and type(value) in (int, float) else value


_Positive = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_none_for_zero)]
_Share = Annotated[Annotated[float, Field(gt=0, lt=1)] | None, BeforeValidator(_none_for_zero)]


class RegularizationSection(Section):
    average: Literal["best", "ema", "last", "swa"] | None = None
    """Average the weights over the run; the average is what is scored, chosen as the best, and exported, while training
    goes on from its own weights. ema: exponential moving average. swa: running mean. last: mean of the last
    `average_count`. best: mean of the `average_count` that `eval.best_metric` finds best; they are scored each alone,
    and their mean once training has ended. Default: none."""
    average_count: int = Field(default=5, gt=1)
    """last and best only: how many weights are averaged."""
    average_decay: float = Field(default=0.999, gt=0, lt=1)
    """ema only: the share of the average that each step keeps; about 1 / (1 - decay) steps count."""
    average_every: int = Field(default=1, gt=0)
    """Not of best: steps between the weights that are averaged."""
    average_start: int = Field(default=1, gt=0)
    """Not of best: the first step whose weights are averaged."""
    class_weights: Literal["balanced"] | dict[str | int | bool, float] | None = None
    """Weight of each label's items in the loss. balanced: inversely proportional to the label's frequency in the
    training split. Or a map from labels to weights; a label that is not in it weighs 1. Scaled to a mean of 1 over the
    items of the training split."""
    cutmix_alpha: _Positive = None
    """CutMix: paste a rectangle of another image of the step; its share of the area is drawn from Beta(alpha, alpha).
    1 in the paper."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Set every dropout probability of the model to this value, in its config too. An adapter's own is
    `peft.lora_dropout`."""
    fgm: _Positive = None
    """Adversarial training (fast gradient method): length of the step that each example's token embeddings take
    against their gradient. Doubles the cost of a step."""
    focal_gamma: _Positive = None
    """Focal loss: items that the model is sure of count less, by the factor (1 - p)^gamma. 2 in the paper."""
    freeze: list[str] = Field(default_factory=list)
    """Parameters that are not trained: patterns of their names, such as `*.layer.0.*`, or the word `embeddings`, for
    all below the first block."""
    freeze_blocks: int = Field(default=0, ge=0)
    """How many of the lowest blocks are not trained, with the embeddings below them."""
    label_smoothing: _Share = None
    """Share of the target probability that is spread evenly over all classes."""
    layer_decay: float | None = Field(default=None, gt=0, lt=1)
    """Layer-wise learning-rate decay: each block's learning rate is this factor times that of the block above it. The
    head has the full rate, the embeddings the lowest. Default: one rate."""
    mixup_alpha: _Positive = None
    """Mixup: blend each image with another of the step, in a ratio drawn from Beta(alpha, alpha); 0.1 to 0.4 in the
    paper. Beside cutmix_alpha, each example is given one of the two at random."""
    neftune_alpha: _Positive = None
    """NEFTune: uniform noise on token embeddings, scaled by alpha / sqrt(tokens x embedding size). 5 to 15 in the
    paper."""
    r_drop: _Positive = None
    """R-Drop: weight of the divergence between two predictions for each example under different dropout masks. Doubles
    the cost of a step."""
    synonym_share: float = Field(default=0.1, gt=0, le=1)
    """synonyms only: the probability that a word in the list is replaced by one of its synonyms, anew in every pass."""
    synonyms: str | None = None
    """Text augmentation: a file of synonyms, each line a word, a tab, and its synonyms separated by commas."""
    text_function: str | None = None
    """Text augmentation of your own: `my_file.py:NAME` or `package.module:NAME`, a function of a text and a NumPy
    Generator, from which alone it draws, that returns the text to train on."""
    unfreeze_every: int | None = Field(default=None, gt=0)
    """Gradual unfreezing: train the head alone for this many steps, then a block more from the top after each as many
    steps, and the embeddings at last. Where nothing of the head is trained, as with LoRA on a language model, the top
    block is first. Default: train all from the start."""

    word_deletion: _Share = None
    """Text augmentation: the probability that a word is left out, anew in every pass. 0.1 in EDA."""
    word_swap: _Share = None
    """Text augmentation: the probability that a word is exchanged with another of its text, anew in every pass."""

    @field_validator("class_weights")
    @classmethod
    def _weighs(cls, value: Any) -> Any:
        if isinstance(value, dict) and (not value or any(weight < 0 for weight in value.values())):
            raise ValueError(f"must be balanced, or a map from labels to weights of at least 0; got {value}")
        return value or None

    @property
    def sweeps(self) -> int:
        """Forward and backward passes over each micro-batch."""
        return 2 if self.fgm else 1

    @property
    def on_embeddings(self) -> list[str]:
        """The keys that are set and change token embeddings."""
        return [name for name in ("fgm", "neftune_alpha") if getattr(self, name)]

    def located(self, locate: Callable[[str], str]) -> "RegularizationSection":
        """Return it with the user's function as it is found from the working directory."""
        return self.model_copy(update={"text_function": locate(name)}) if (name := self.text_function) else self

    @property
    def on_texts(self) -> list[str]:
        """The keys that are set and change training texts."""
        return [name for name in ("synonyms", "text_function", "word_deletion", "word_swap") if getattr(self, name)]

    @property
    def copies(self) -> int:
        """How many copies of the trained weights, in float32, the average takes, besides the best steps'."""
        return {None: 0, "best": 0, "last": self.average_count}.get(self.average, 1)

    @property
    def freezes(self) -> bool:
        """Whether some of the model stays as it was loaded, which a checkpoint then does not hold."""
        return bool(self.freeze or self.freeze_blocks)
