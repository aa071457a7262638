"""A process that holds an embedded stack up: `python stack_process.py HOME`."""

import sys
from pathlib import Path

from backend.stack import EmbeddedStack

with EmbeddedStack(Path(sys.argv[1]), api_port=0, dashboard_port=0) as stack:
    stack.wait_ready()
    Path(sys.argv[1], "ready").touch()
    stack.run_forever()
