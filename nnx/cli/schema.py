"""nnx schema: the JSON Schema of a config."""

from nnx.cli._options import print_json


def schema() -> None:
    """Print the JSON Schema of a config.

    Editors use it to complete and validate YAML.
    """
    from nnx import config

    print_json(config.json_schema())
