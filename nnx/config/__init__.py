"""YAML to a checked Config: `yaml_source` reads the text, `registry` finds each component, `schema` checks the
whole."""

from nnx.config.schema import (
    DEFAULTS,
    Augment,
    Config,
    CountOrFraction,
    Train,
    from_dict,
    json_schema,
    load,
    parse,
    recipes,
)

__all__ = [
    "DEFAULTS",
    "Augment",
    "Config",
    "CountOrFraction",
    "Train",
    "from_dict",
    "json_schema",
    "load",
    "parse",
    "recipes",
]
