"""Parts of a config whose required keys have the examples that their fields give."""

from typing import Any

from nnx.config.registry import Part


def required(part: type[Part]) -> dict[str, Any]:
    """The keys that have no default, each with its example."""
    return {key: (field.examples or [])[0] for key, field in part.model_fields.items() if field.is_required()}


def example(part: type[Part]) -> Part:
    """The smallest part of this kind."""
    return part.model_validate(required(part))
