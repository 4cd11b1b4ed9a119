"""A model with several heads on one backbone; each head is the one that transformers' own class for it has."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from onecurve.errors import ConfigError


class Computed(nn.Module):
    """What a head calls in place of its backbone: returns what the shared backbone has computed."""

    outputs: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.outputs


class ManyHeads:
    """A transformers model whose config lists heads (`task_heads`), each with its auto class and its own settings.

    A head is transformers' own model for it (`BertForSequenceClassification`) without the backbone: its code runs as it
    is, on outputs of the backbone that all heads share. Where the heads' backbones differ by a pooler, the one that has
    it is taken. Always combined with an architecture's `PreTrainedModel`: see `ManyHeadsModel`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        this: Any = self
        prefix, backbone = this.base_model_prefix, None
        heads = {}
        for name in sorted(config.task_heads):  # the order in which a saved config has them
            part = head_class(config, config.task_heads[name]["kind"])(head_config(config, name))
            own = part._modules.pop(prefix)
            setattr(part, prefix, Computed())
            if backbone is None or len(list(own.parameters())) > len(list(backbone.parameters())):
                backbone = own
            heads[module_name(name)] = part
        assert backbone is not None
        before = backbone.config
        for module in backbone.modules():  # one config for the backbone and the model around it
            if getattr(module, "config", None) is before:
                module.config = config
        setattr(self, prefix, backbone)
        self.heads = nn.ModuleDict(heads)
        this.post_init()

    def head(self, name: str) -> Any:
        """Return a head by its name in the recipe."""
        return self.heads[module_name(name)]

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        """Return the logits of every head, by name, after one pass through the backbone."""
        this: Any = self
        outputs = getattr(self, this.base_model_prefix)(**inputs)
        found = {}
        for name in this.config.task_heads:
            head = self.head(name)
            backbone = getattr(head, this.base_model_prefix)
            backbone.outputs = outputs
            found[name] = head(**inputs).logits
            backbone.outputs = None
        return found


class ManyHeadsModel:
    """Loads or builds a model with several heads, as transformers' auto classes do for one."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        """Tell which auto class each head has, by its name: `AutoModelForSequenceClassification`, ..."""
        self.kinds = kinds
        self.__name__ = " and ".join(dict.fromkeys(kinds.values()))

    @property
    def _model_mapping(self) -> Any:
        """What a config's class must be in, under the name that transformers' auto classes have for it."""
        mappings = [getattr(transformers, kind)._model_mapping for kind in self.kinds.values()]
        return {config: None for config in mappings[0] if all(config in mapping for mapping in mappings)}

    def from_pretrained(self, path: Any, config: Any = None, task_heads: Any = None, **options: Any) -> Any:
        """Do what `AutoModel.from_pretrained` does; `task_heads` goes into the config.

        Raises:
            ConfigError: The checkpoint has such heads already, for other labels or the same in another order.
        """
        told = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        stored = AutoConfig.from_pretrained(path, **told)
        config = config if config is not None else stored
        _check_labels(getattr(stored, "task_heads", {}), config)
        if task_heads is not None:
            config.task_heads = task_heads
        return model_class(config).from_pretrained(path, config=config, **options)

    def from_config(self, config: Any, **options: Any) -> Any:
        """Do what `AutoModel.from_config` does."""
        options.pop("trust_remote_code", None)
        return model_class(config)._from_config(config, **options)


def _check_labels(stored: Mapping[str, Any], config: Any) -> None:
    """Refuse a checkpoint's heads whose rows are of other labels than those of the data."""
    for name, told in getattr(config, "task_heads", {}).items():
        labels = [
            {int(number): label for number, label in of_one["config"].get("id2label", {}).items()}
            for of_one in (stored.get(name, told), told)
        ]
        if labels[0] != labels[1]:
            before, now = (", ".join(one[number] for number in sorted(one)) for one in labels)
            raise ConfigError(
                f"its head {name!r} was trained for the labels {before}, in this order, and the data has {now}.",
                where="model.path",
                fix="Give the head another name, so that it begins anew, or train on data with those labels.",
            )


def module_name(head: str) -> str:
    """Return a head's name among the model's modules: none that modules have for something else."""
    return f"{head}_head"


def head_config(config: Any, name: str) -> Any:
    """Return the config of one head's own model."""
    own = deepcopy(config)
    told = dict(own.task_heads[name]["config"])
    if "id2label" in told:  # JSON has only text for keys
        told["id2label"] = {int(number): label for number, label in told["id2label"].items()}
    del own.task_heads
    own.update(told)
    own.architectures = [head_class(config, config.task_heads[name]["kind"]).__name__]
    return own


def head_class(config: Any, kind: str) -> Any:
    """Return the model class that an auto class has for a config."""
    found = getattr(transformers, kind)._model_mapping.get(type(config), None)
    if found is None:
        raise ConfigError(
            f"a model of type {config.model_type} has no {kind} among transformers' own classes; code that comes with "
            "a model is not read for several heads.",
            where="model.path",
        )
    return found[0] if isinstance(found, tuple) else found


def model_class(config: Any) -> Any:
    """Return the class of the model with heads for a config, which lists them."""
    kinds = [head_class(config, told["kind"]) for told in config.task_heads.values()]
    backbone: Any = AutoModel._model_mapping[type(config)]
    common = next(kind for kind in kinds[0].__mro__ if kind in backbone.__mro__ and issubclass(kind, PreTrainedModel))
    return _combined(common)


@cache
def _combined(base: type) -> Any:
    name = f"{base.__name__.removesuffix('PreTrainedModel')}ManyHeads"
    return type(name, (ManyHeads, base), {"__module__": __name__, "__doc__": ManyHeads.__doc__})
