"""Where the service is, and the token for it."""

import ipaddress
import json
import os
from urllib.parse import urlsplit

from calift_core.home import calift_home, stack_file

DEFAULT_PORT = 8000


def find_token() -> tuple[str | None, str]:
    """The token, and where it was found."""
    given = os.environ.get("CALIFT_TOKEN")
    if given:
        return given.strip(), "from CALIFT_TOKEN"
    path = calift_home() / "token"
    try:
        return path.read_text(encoding="ascii").strip() or None, f"from {path}"
    except (OSError, UnicodeDecodeError):
        return None, ""


def find_url() -> tuple[str, str]:
    """The service's address, and why it is that one."""
    given = os.environ.get("CALIFT_API_URL")
    if given:
        return given, "CALIFT_API_URL says so"
    running = running_stack()
    if running is not None:
        return running, f"the stack that runs on {calift_home()} says so"
    port = os.environ.get("CALIFT_PORT") or str(DEFAULT_PORT)
    why = "CALIFT_PORT says so" if os.environ.get("CALIFT_PORT") else "nothing says otherwise"
    return f"http://127.0.0.1:{port}", why


def running_stack() -> str | None:
    """The API's address of the stack that `calift up` keeps on `CALIFT_HOME`, if one is up."""
    try:
        state = json.loads(stack_file().read_text(encoding="utf-8"))
        # A stack that was killed leaves its file behind.
        return str(state["urls"]["api"]) if _lives(int(state["pid"])) else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _lives(pid: int) -> bool:
    if os.name != "posix":
        return True  # where asking would end the process
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # it is another user's
    except ProcessLookupError:
        return False
    return True


def scheme_of(url: str) -> str:
    """`http` and the like; an empty text where the address cannot be read."""
    try:
        return urlsplit(url).scheme
    except ValueError:
        return ""


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
