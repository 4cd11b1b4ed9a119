"""A classifier's trained head: rows are matched to labels by name, or initialised again if that is not possible."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from onecurve.adapters.folder import Continued
from onecurve.content.labels import are_placeholders, head_rows, model_labels
from onecurve.errors import ConfigError
from onecurve.model.pretrained import Fit
from onecurve.tasks.base import Survey

_NAMED = 10


@dataclass(frozen=True)
class HeadRows:
    """Which rows of the checkpoint's head the run's labels have, if the checkpoint has a head."""

    labels: list[str]
    """The run's, by id; empty where the model has none."""
    known: list[str]
    """Those in the checkpoint's config, by row."""
    rows: list[int] | None
    """The row of each label; None where nothing tells."""

    @classmethod
    def find(cls, config: Any, survey: Survey) -> "HeadRows":
        """Compare the run's labels with a config that has not been told of them yet."""
        known = model_labels(config)
        return cls(survey.labels, known, head_rows(survey.labels, known, survey.order == "recipe"))

    @property
    def are_in_order(self) -> bool:
        """Whether rows can stay as they are loaded."""
        return self.rows == list(range(len(self.labels)))

    def check_continued(self, continued: Continued | None, in_given_order: bool) -> None:
        """Check that the head of an adapter, which is trained further as it is, has a row for each label, in order.

        Raises:
            ConfigError: It has not, or nothing tells.
        """
        unnamed = are_placeholders(self.known)
        if continued and self.labels and not self.are_in_order and not (unnamed and in_given_order):
            known = "(unnamed)" if unnamed else shown(self.known)
            raise ConfigError(
                f"the adapter {str(continued.folder)!r} is for the labels {known}, and this run's are "
                f"{shown(self.labels)}.",
                where="model.path",
                fix="Name them in the order of the adapter's rows in task.labels, or merge the adapter into its base.",
            )

    def remark(self) -> str:
        """Say what becomes of a head that the checkpoint has, and how to keep one that is drawn anew."""
        unnamed = are_placeholders(self.known)
        if self.rows is None:
            rows = "has rows without names" if unnamed else f"is for {shown(self.known)}"
            keep = ""
            if unnamed and len(self.known) == len(self.labels):
                keep = "; task.labels in the order of its rows keeps it"
            elif set(self.labels) < set(self.known):
                keep = f"; task.labels: [{', '.join(self.known)}] keeps it"
            return f"drawn anew: the checkpoint's {rows}{keep}"
        moved = "" if self.are_in_order else ", rows reordered"
        return f"the checkpoint's, {'in the order of the labels' if unnamed else 'each label by its name'}{moved}"


def settle_head(fit: Fit, head: HeadRows, auto_model: Any, config: Any) -> tuple[Fit, dict[str, int], str]:
    """Give each label its row of a head that the checkpoint has, or have the head drawn where nothing tells which.

    Args:
        fit: What the checkpoint gives.
        head: Which row each label has.
        auto_model: Builds the model.
        config: The model's, told of the labels.

    Returns:
        The fit, with what is to be drawn of the head besides; the parameters whose rows are to be put into the order of
        `head.rows`, and along which axis; and what became of the head, for people.
    """
    prefix, missing = f"{fit.skeleton.base_model_prefix}.", fit.new.keys() - fit.reshaped.keys()
    outside = {name for name, _ in fit.skeleton.named_parameters() if not name.startswith(prefix)}
    if not head.labels or (outside and outside <= missing):  # there is no head, or none in the checkpoint
        return fit, {}, ""
    if head.are_in_order:
        return fit, {}, "" if fit.new else head.remark()
    axes = label_axes(auto_model, config)
    if axes.keys() <= missing:
        return fit, {}, ""
    if head.rows is None:
        return fit.drawing(axes), {}, head.remark()
    return fit, axes, head.remark()


def shown(names: list[str]) -> str:
    """List names, the first ones of many."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def label_axes(auto_model: Any, config: Any) -> dict[str, int]:
    """Return each parameter that has a row a label, with the axis these lie on: what one label more makes larger.

    No model says so itself, and heads have many names and depths. Nothing is allocated: both are built on `meta`.
    """
    one_more = deepcopy(config)
    one_more.num_labels += 1
    with torch.device("meta"):
        models = [auto_model.from_config(each, trust_remote_code=True) for each in (config, one_more)]
    here, there = (dict(model.named_parameters()) for model in models)
    sizes = {name: list(zip(value.shape, there[name].shape, strict=True)) for name, value in here.items()}
    return {
        name: axis for name, pairs in sizes.items() for axis, (before, after) in enumerate(pairs) if after == before + 1
    }
