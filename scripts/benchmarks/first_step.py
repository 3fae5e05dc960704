"""Run the nnx command line as typed, with a stopwatch in the place of its screen: seconds from BEGUN to the first look at the loss."""

import os
import time
from collections.abc import Iterable
from typing import Any

from nnx import console
from nnx.cli import main
from nnx.events import Event, Step


def stop(events: Iterable[Event], **_: Any) -> None:
    """Print the seconds since the process began, and leave."""
    for event in events:
        if isinstance(event, Step):
            print(time.time() - float(os.environ["BEGUN"]), flush=True)
            os._exit(0)


console.follow = stop  # type: ignore[assignment]
main()
