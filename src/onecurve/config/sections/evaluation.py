"""When the dev split is scored, and which step is the best."""

from pydantic import Field, model_validator

from onecurve.config.sections.base import Section


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
