"""The tiny models and data of the core's tests."""

from tests.core.conftest import (
    captions,
    configs,
    one_thread,
    originals,
    photos,
    resnet,
    run_spec,
    vit,
)

__all__ = ["captions", "configs", "one_thread", "originals", "photos", "resnet", "run_spec", "vit"]
