"""Writes the resolved recipe as a valid recipe, with the source of each value as a comment."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from onecurve.config.reading import Sources
from onecurve.config.recipe import Recipe


def resolve(recipe: Recipe, owned: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return every value of a recipe as plain data.

    Args:
        recipe: The checked recipe.
        owned: Section -> resolved keys that are not in the schema (the task's settings, ...).
    """
    values = recipe.model_dump(mode="json")
    return values | {section: values[section] | extras for section, extras in owned.items()}


def dump_recipe(values: dict[str, Any], sources: Sources) -> str:
    """Return resolved values as YAML, a valid recipe, with each source (default, file, command line) as a comment."""
    text = StringIO()
    yaml = YAML()
    yaml.width = 4096  # a wrapped line would separate a value from its comment
    yaml.dump(_annotated(values, sources, ""), text)
    return text.getvalue()


def _annotated(values: dict[str, Any], sources: Sources, prefix: str) -> CommentedMap:
    node = CommentedMap()
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            node[name] = _annotated(value, sources, f"{key}.")
        else:
            node[name] = value
            node.yaml_add_eol_comment(sources.get(key, "default"), name)
    return node
