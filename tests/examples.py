"""Parts of a config whose required keys have the examples that their fields give."""

from typing import Any

from nnx.config.registry import Component


def required(part: type[Component]) -> dict[str, Any]:
    """The keys that have no default, each with its example."""
    return {key: (field.examples or [])[0] for key, field in part.model_fields.items() if field.is_required()}


def example(part: type[Component]) -> Component:
    """The smallest part of this kind."""
    return part.model_validate(required(part))
