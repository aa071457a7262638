"""Methods: one small file each; the equations are in `terms`."""

from __future__ import annotations

from typing import Any

from calift_core.clip import Captions, Clip
from calift_core.methods.base import Batch, Classifier, Method, RunLength
from calift_core.methods.carot import CaRot
from calift_core.methods.finetune import FineTune
from calift_core.methods.flyp import Flyp
from calift_core.methods.pretrain import Pretrain
from calift_core.methods.zero_shot import ZeroShot
from calift_core.schema.methods import MethodBase

METHODS: dict[str, Any] = {
    "zero_shot": ZeroShot,
    "finetune": FineTune,
    "flyp": Flyp,
    "carot": CaRot,
    "pretrain": Pretrain,
}

__all__ = ["METHODS", "Batch", "Classifier", "Method", "RunLength", "make_method"]


def make_method(spec: MethodBase, clip: Clip, captions: Captions, *, length: RunLength) -> Method:
    """Build the method that a spec names, around a model.

    Args:
        spec: one of the method union; `spec.kind` picks the class.
        clip: the student, on its device; the method trains it in place.
        captions: class names × templates.
        length: how long the run is.

    Raises:
        ModelError: the method is not defined for this model; the message says why.
    """
    method: Method = METHODS[spec.kind](clip, captions, spec, length)  # type: ignore[attr-defined]
    return method
