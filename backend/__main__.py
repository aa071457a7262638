"""`python -m backend`: run the API with the settings of the environment."""

from __future__ import annotations

import logging
import sys

from pydantic import ValidationError

from backend.server import serve
from calift_core.errors import CaliftError


def main() -> int:
    """Serve; a wrong setting is a sentence and not a traceback."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        serve()
    except (CaliftError, ValidationError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
