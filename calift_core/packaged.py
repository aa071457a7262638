"""Weights of `calift-tiny` that come with the package, by the suite they belong to. Torch-free."""

from dataclasses import dataclass
from pathlib import Path

#: The file's SHA-256 (hex) by suite; `research/make_tiny.py` makes both.
_SHA256 = {"typefaces": "a245dd3640e9921ebe5c5709f8011b0ae2ba8cca96b688916d3b4019014aeab7"}


@dataclass(frozen=True)
class Packaged:
    """Weights in float16, with those rows of the token embedding that captions use.

    Attributes:
        file: safetensors; `token_ids` (R,) says which rows `token_embedding.weight` (R, width) has.
    """

    file: Path
    sha256: str


def packaged(suite: str) -> Packaged | None:
    """What comes with the package for a suite, if anything does."""
    if suite not in _SHA256:
        return None
    name = f"calift_tiny_{suite.replace('-', '_')}.safetensors"
    return Packaged(Path(__file__).parent / "models" / name, _SHA256[suite])
