"""When the dev split is evaluated, and how the best step is chosen."""

from pydantic import Field

from onecurve.config.sections.base import Section


class EvalSection(Section):
    every: int = Field(default=0, ge=0)
    """Steps between evaluations of the dev split; 0: only at the end."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Examples per rank and forward pass; default: train.micro_batch_size, or train.micro_batch_tokens."""
    best_metric: str | None = None
    """Dev metric that selects the best step; `model/` then holds that step's weights. Default: the last step's."""
    predictions: bool = False
    """Whether the run's end writes predictions-dev.jsonl and predictions-test.jsonl: what the model in `model/` says of
    each example, the reference, and the example's own loss."""
    samples: int = Field(default=3, ge=0)
    """How many generated texts of each evaluation metrics.jsonl shows, with prompt and reference: those of the first
    rows."""
    patience: int | None = Field(default=None, gt=0)
    """Early stopping: stop after this many evaluations without an improvement of best_metric."""
