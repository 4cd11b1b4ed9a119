"""What the recipe's sections have in common: frozen, strict, and no unknown key."""

from typing import Any

from pydantic import BaseModel, ConfigDict


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
