"""Regularization: what acts on the loss, the inputs and the model in training, and never in evaluation."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from onecurve.config.sections.base import Section


def _none_for_zero(value: Any) -> Any:
    return None if value == 0 and type(value) in (int, float) else value


_Positive = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_none_for_zero)]
_Share = Annotated[Annotated[float, Field(gt=0, lt=1)] | None, BeforeValidator(_none_for_zero)]


class RegularizationSection(Section):
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
    label_smoothing: _Share = None
    """Share of the target probability that is spread evenly over all classes."""
    mixup_alpha: _Positive = None
    """Mixup: blend each image with another of the step, in a ratio drawn from Beta(alpha, alpha); 0.1 to 0.4 in the
    paper. Beside cutmix_alpha, each example is given one of the two at random."""
    neftune_alpha: _Positive = None
    """NEFTune: uniform noise on token embeddings, scaled by alpha / sqrt(tokens x embedding size). 5 to 15 in the
    paper."""
    r_drop: _Positive = None
    """R-Drop: weight of the divergence between two predictions for each example under different dropout masks. Doubles
    the cost of a step."""

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
