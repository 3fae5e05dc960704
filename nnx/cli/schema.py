"""nnx schema"""

from nnx.cli._options import print_json


def schema() -> None:
    """Print the JSON Schema of a config, for editors that complete and check YAML."""
    from nnx import config

    print_json(config.json_schema())
