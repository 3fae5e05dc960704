"""Read a YAML config: `yaml_source` parses the text, `registry` finds each component, `schema` validates the whole."""

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
