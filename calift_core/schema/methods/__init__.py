"""The method union: one model per `method.kind`, with each option's meaning, range and source.

Sources in brackets: [paper] the method's publication, [code] its authors' released code where the
two differ, [calift] a choice made here.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from calift_core.schema.methods.base import MethodBase
from calift_core.schema.methods.contrastive import Anchored, Averaged, CaRot, Flyp, Pretrain, Tracer
from calift_core.schema.methods.merge import Dawin, ModelStock, Vrf, WiseFt
from calift_core.schema.methods.supervised import (
    CarFt,
    CoOp,
    FineTune,
    LinearProbe,
    LipsumFt,
    LpFt,
    TipAdapter,
    ZsNorm,
)


class ZeroShot(MethodBase):
    """No training: the classifier is the mean of prompt embeddings per class."""

    title = "Zero-shot"
    summary = "The pre-trained model with a classifier made of prompts; no training."
    source = "Radford et al. 2021"
    trains = False

    kind: Literal["zero_shot"] = "zero_shot"


METHOD_SPECS: dict[str, type[MethodBase]] = {
    "zero_shot": ZeroShot,
    "linear_probe": LinearProbe,
    "finetune": FineTune,
    "lp_ft": LpFt,
    "flyp": Flyp,
    "carot": CaRot,
    "wise_ft": WiseFt,
    "lipsum_ft": LipsumFt,
    "car_ft": CarFt,
    "model_stock": ModelStock,
    "vrf": Vrf,
    "dawin": Dawin,
    "tracer": Tracer,
    "anchored": Anchored,
    "averaged": Averaged,
    "zs_norm": ZsNorm,
    "coop": CoOp,
    "tip_adapter": TipAdapter,
    "pretrain": Pretrain,
}

if TYPE_CHECKING:
    MethodSpec = MethodBase
else:
    #: Any of them, told apart by `kind`.
    MethodSpec = Annotated[reduce(or_, METHOD_SPECS.values()), Field(discriminator="kind")]

__all__ = [
    "Anchored", "Averaged", "CaRot", "CarFt", "CoOp", "Dawin", "FineTune", "Flyp", "LinearProbe",
    "LipsumFt", "LpFt", "METHOD_SPECS", "MethodBase", "MethodSpec", "ModelStock", "Pretrain",
    "TipAdapter", "Tracer", "Vrf", "WiseFt", "ZeroShot", "ZsNorm",
]  # fmt: skip
