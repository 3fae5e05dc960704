"""nnx schema: the JSON Schema of a config."""

from nnx.cli._options import print_json
from nnx.cli._start import check_memory_limits


def schema() -> None:
    """Print the JSON Schema of a config.

    Editors use it to complete and validate YAML.
    """
    check_memory_limits()
    from nnx import config

    print_json(config.json_schema())
