"""Methods: one small file each; the equations are in `terms`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.errors import ModelError
from calift_core.methods import tracer
from calift_core.methods.anchored import Anchored
from calift_core.methods.averaged import Averaged
from calift_core.methods.base import Classifier, Method, RunLength, Setup
from calift_core.methods.car_ft import CarFt
from calift_core.methods.carot import CaRot
from calift_core.methods.coop import CoOp
from calift_core.methods.finetune import FineTune
from calift_core.methods.flyp import Flyp
from calift_core.methods.linear_probe import LinearProbe
from calift_core.methods.lipsum_ft import LipsumFt
from calift_core.methods.lp_ft import LpFt
from calift_core.methods.pretrain import Pretrain
from calift_core.methods.tip_adapter import TipAdapter
from calift_core.methods.zero_shot import ZeroShot
from calift_core.methods.zs_norm import ZsNorm
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.schema.methods import MethodBase
from calift_core.schema.methods import Tracer as TracerSpec
from calift_core.schema.train import ConfidenceSpec, TrainSpec

#: Kind → class. `wise_ft` and `model_stock` train nothing: see `merge`.
METHODS: dict[str, Any] = {
    "zero_shot": ZeroShot,
    "linear_probe": LinearProbe,
    "finetune": FineTune,
    "lp_ft": LpFt,
    "flyp": Flyp,
    "carot": CaRot,
    "lipsum_ft": LipsumFt,
    "car_ft": CarFt,
    "tracer": tracer.Tracer,
    "anchored": Anchored,
    "averaged": Averaged,
    "zs_norm": ZsNorm,
    "coop": CoOp,
    "tip_adapter": TipAdapter,
    "pretrain": Pretrain,
}

__all__ = [
    "METHODS",
    "Batch",
    "Classifier",
    "Method",
    "RunLength",
    "finish_training",
    "fitted",
    "make_method",
]


def fitted(spec: MethodBase, clip: Clip) -> MethodBase:
    """A method's options with what depends on the model filled in."""
    return tracer.fitted(spec, clip) if isinstance(spec, TracerSpec) else spec


def make_method(
    spec: MethodBase,
    clip: Clip,
    captions: Captions,
    *,
    length: RunLength,
    confidence: ConfidenceSpec | None = None,
    train: TrainSpec | None = None,
    begin_with: tuple[Mapping[str, Tensor], Classifier] | None = None,
) -> Method:
    """Build the method that a spec names, around a model.

    Args:
        spec: one of the method union; `spec.kind` picks the class.
        clip: the student, on its device; the method trains it in place.
        confidence: training-time calibration; none: all off.
        train: how much of the towers is trained; none: all that the method trains.
        begin_with: weights of a finished run of a method like it, which began with `clip`.

    Raises:
        ModelError: the method is not defined for this model; the message says why.
    """
    if spec.kind not in METHODS:
        raise ModelError(f"{spec.kind} trains no model of its own: it merges finished runs")
    options = confidence or ConfidenceSpec()
    method: Method = METHODS[spec.kind](Setup(clip, captions, spec, length, options))
    if begin_with is not None:
        method.begin_with(*begin_with)
    if train is not None:
        method.adapt(train)
    return method


def finish_training(method: Method) -> None:
    """After the last step: the model's weights become what is evaluated and saved."""
    if method.adapter is not None:
        method.adapter.merge()
    method.finish()
