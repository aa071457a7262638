"""An exported folder to the Hugging Face hub: first said, then sent."""

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from calift_core.errors import CaliftError, ModelUnavailableError, SpecError, reason_of
from calift_core.shipping.folder import CARD_NAME, EXPORT_NAME, PICTURE_NAME, read_exported

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class HubUpload:
    """What would be sent.

    Attributes:
        folder: the exported folder, every file of it held against its hash.
        repository: `org/name`.
        private: whether a new repository is seen by its owner alone.
        endpoint: the hub's address: `HF_ENDPOINT`, or the public one.
        files: name → bytes, by name.
        kept: names of what lies in the folder too and is not sent.
    """

    folder: Path
    repository: str
    private: bool
    endpoint: str
    files: dict[str, int]
    kept: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(self.files.values())


def prepare_upload(folder: Path, repository: str, *, private: bool = True) -> HubUpload:
    """Find out what would be sent, without a word to the hub.

    Only files that the export wrote are sent; what somebody has put beside them stays.

    Args:
        folder: of `calift export`.
        repository: `org/name`.
        private: of a repository that is not there yet.

    Raises:
        SpecError: that is no name of a repository.
        CheckpointError: it is no exported folder, or a file has changed since.
    """
    organisation, _, name = repository.partition("/")
    if not all(_PART.fullmatch(part) for part in (organisation, name)):
        raise SpecError(
            "a repository is ORG/NAME of letters, digits, '.', '_' and '-', each beginning with a "
            f"letter or digit, got {repository!r}"
        )
    exported = read_exported(folder)
    own = {EXPORT_NAME, CARD_NAME, PICTURE_NAME, *exported.files}
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                   if path.is_file())  # fmt: skip
    return HubUpload(
        folder,
        repository,
        private,
        constants.ENDPOINT,
        {name: (folder / name).stat().st_size for name in there if name in own},
        tuple(name for name in there if name not in own),
    )


def push(what: HubUpload, *, token: str | None = None) -> str:
    """Send a parcel as one commit. Returns the address of the repository.

    Args:
        token: of the hub; none: the one that `hf auth login` or `HF_TOKEN` has put there.

    Raises:
        ModelUnavailableError: the hub cannot be reached.
        SpecError: there is no token, the hub refuses it, or the repository is there and public
            where a private one is asked for. Nothing is sent then.
    """
    require_reachable(what.endpoint)
    token = token or get_token()
    if not token:
        raise SpecError(
            f"{what.endpoint} asks who sends, and there is no token.",
            hint="Set HF_TOKEN, or log in with `hf auth login`.",
        )
    api = HfApi(endpoint=what.endpoint, token=token)
    try:
        url = api.create_repo(what.repository, private=what.private, exist_ok=True)
        if what.private and not api.model_info(what.repository).private:
            raise SpecError(
                f"{what.repository} is there already and public, and a private one is asked for; "
                "nothing was sent.",
                hint="--public sends it there, or name another repository.",
            )
        api.create_commit(
            what.repository,
            [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=what.folder / name)
                for name in what.files
            ],
            commit_message="A model exported by calift",
        )
    except HfHubHTTPError as error:
        raise SpecError(
            f"{what.endpoint} refuses {what.repository}: {reason_of(error)}",
            hint="The token needs the right to write there.",
        ) from error
    except CaliftError:
        raise
    except Exception as error:  # those of the network come as a dozen types
        raise ModelUnavailableError(
            f"{what.endpoint} was lost while sending to {what.repository} ({reason_of(error)}); "
            "a commit is there whole or not at all.",
            hint="Send it again.",
        ) from error
    return str(url)


def require_reachable(endpoint: str) -> None:
    """Fail at once where an upload would retry for minutes.

    Raises:
        ModelUnavailableError: there is no way to the hub.
    """
    at = urlsplit(endpoint)
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        if not getproxies() or proxy_bypass(at.hostname or ""):
            port = at.port or (443 if at.scheme == "https" else 80)
            socket.create_connection((at.hostname or "", port), timeout=10).close()
    except OSError as error:
        raise ModelUnavailableError(
            f"{at.hostname} cannot be reached ({error}); nothing was sent.",
            hint="The folder stands alone: copy it to a machine with a network and push it there.",
        ) from None
