"""Base classes of the recipe's sections: frozen, strict, no unknown keys."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One frozen, strict group of settings; an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class OpenSection(Section):
    """A section with extra keys. The task, method or optimizer that its first key names checks them (`extras`)."""

    model_config = ConfigDict(extra="allow")

    @property
    def extras(self) -> dict[str, Any]:
        """The keys that are not in this schema; the named task, method or optimizer checks them."""
        return dict(self.__pydantic_extra__ or {})
