"""Weights and configurations from the Hugging Face hub or a local folder."""

import logging
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import open_clip
from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from open_clip.pretrained import download_pretrained_from_hf

from calift_core.errors import ModelUnavailableError, reason_of
from calift_core.schema.places import expanded

CONFIG_NAME = "open_clip_config.json"
HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"


def is_folder(name: str) -> bool:
    """Whether a name stands for a folder that holds config and weights, here or on the hub."""
    return name.startswith((HUB_PREFIX, FOLDER_PREFIX))


def config_file(name: str) -> Path:
    """The config of a folder, or of a hub repository: fetched if need be."""
    if name.startswith(FOLDER_PREFIX):
        return expanded(name.removeprefix(FOLDER_PREFIX)) / CONFIG_NAME
    _require_hub(name, None)
    repository = name.removeprefix(HUB_PREFIX)
    try:
        return Path(download_pretrained_from_hf(repository, filename=CONFIG_NAME))
    except Exception as error:  # hub, network and file errors come as a dozen types
        raise unavailable(name, None, error) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what open_clip tells the root logger to itself: the caller says it in its own words."""

    def not_open_clip(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # or its first words would set up a handler of their own
    root.addFilter(not_open_clip)
    try:
        with warnings.catch_warnings():
            # A tag that is silent about the activation has its architecture's.
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            yield
    finally:
        root.removeFilter(not_open_clip)
        root.removeHandler(silent)


def fetch_weights(name: str, pretrained: str, tag: Mapping[str, Any]) -> Path:
    """The file of published weights, from the cache or the hub."""
    _require_hub(name, pretrained)
    with quietly():
        try:
            return Path(open_clip.download_pretrained(dict(tag)))
        except Exception as error:  # hub, network and file errors come as a dozen types
            raise unavailable(name, pretrained, error) from error


def unavailable(name: str, pretrained: str | None, error: Exception) -> ModelUnavailableError:
    """The error for weights that are neither here nor can be fetched."""
    return ModelUnavailableError(
        f"the {weights_of(name, pretrained)} are not on this machine and could not be "
        f"downloaded ({type(error).__name__}: {reason_of(error)}).",
        hint=_NO_WEIGHTS_HINT,
    )


_NO_WEIGHTS_HINT = (
    "With a network they are fetched by themselves; without, copy the repository's files "
    "(open_clip_config.json and a .safetensors) into a folder and name it local-dir:FOLDER, with "
    "`pretrained: null`."
)


def weights_of(name: str, pretrained: str | None) -> str:
    """Weights in a sentence."""
    return f"weights {pretrained} of {name}" if pretrained else f"weights of {name}"


def hub_repository(name: str, pretrained: str | None) -> str:
    """The hub repository that a model's weights come from, empty when it is another place."""
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:").split("@")[0]
    config = open_clip.get_pretrained_cfg(name, pretrained) or {}
    return str(config.get("hf_hub") or "").rstrip("/")


def in_hub_cache(repository: str) -> bool:
    """Whether a hub repository with more than a config in it is in the local cache."""
    try:
        return any(
            r.repo_id == repository and r.size_on_disk > 2**20 for r in scan_cache_dir().repos
        )
    except CacheNotFound:
        return False


def _require_hub(name: str, pretrained: str | None) -> None:
    """Fail at once where a download would retry for a minute: no cache, no network, no proxy."""
    repository = hub_repository(name, pretrained)
    if not repository or in_hub_cache(repository):
        return
    if getproxies() and not constants.HF_HUB_OFFLINE:
        return
    host = urlsplit(constants.ENDPOINT).hostname or ""
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        socket.create_connection((host, 443), timeout=10).close()
    except OSError as error:
        raise ModelUnavailableError(
            f"the {weights_of(name, pretrained)} are not on this machine, and {host} cannot be "
            f"reached to download them ({error}).",
            hint=_NO_WEIGHTS_HINT,
        ) from None
