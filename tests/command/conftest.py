"""The tiny models, the tiny suite and the home that the core's tests use."""

from tests.core.conftest import (  # noqa: F401
    captions,
    clip,
    configs,
    one_thread,
    originals,
    paintings,
    photos,
    resnet,
    run_spec,
    vit,
)
