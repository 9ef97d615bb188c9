"""The end of a process that nerfstudio's own commands started."""

import sys
from typing import NoReturn


def stop(message: str) -> NoReturn:
    """End the process with one line and exit code 2, where nerfstudio would end it with a traceback."""
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    raise SystemExit(2) from None
