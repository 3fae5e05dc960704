"""Build components of a config with the examples of their required keys."""

from typing import Any

from nnx.config.registry import Component


def required(component: type[Component]) -> dict[str, Any]:
    """The keys without a default, each with its example."""
    return {key: (field.examples or [])[0] for key, field in component.model_fields.items() if field.is_required()}


def example(component: type[Component]) -> Component:
    """The component with only its required keys."""
    return component.model_validate(required(component))
