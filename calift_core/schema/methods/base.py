"""What the options of all methods, and those of a family, share."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from calift_core.schema.base import Frozen

#: `supervised` methods train a linear head on image features, `contrastive` ones both towers and
#: take a classifier made of prompts, `merge` ones combine the weights of finished runs.
Family = Literal["none", "supervised", "contrastive", "merge"]

#: How much of the towers is trained: all, low-rank terms, or nothing below the last layer.
Adapt = Literal["full", "lora", "head"]

#: Image towers that published settings are known for, by open_clip's names.
Tower = Literal["ViT-B-16", "RN50", "ViT-L-14"]

#: The options of `train.confidence`, by the names that `MethodBase.accepts` uses.
_SUPERVISED = frozenset({"label_smoothing", "focal", "mixup", "zero_shot_kd", "mmce", "entropy"})
_CONTRASTIVE = frozenset({"label_smoothing", "zero_shot_kd"})


RunName = Annotated[str, Field(min_length=1, max_length=4096)]


class MethodBase(Frozen):
    """What every method's options share.

    Class attributes say how the run is trained when the spec leaves it open, which family it
    belongs to, and which training-time calibration options go with it.
    """

    title: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    trains: ClassVar[bool] = True
    default_lr: ClassVar[float] = 1e-5
    default_weight_decay: ClassVar[float] = 0.1
    default_clip_grad_norm: ClassVar[float | None] = None
    terms: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[Family] = "none"
    #: What of `train.confidence` makes sense with this method.
    accepts: ClassVar[frozenset[str]] = frozenset()
    #: What of `train.adapt` makes sense with this method.
    adapts: ClassVar[tuple[Adapt, ...]] = ("full",)
    #: Whether its model is one tower, whose features of training images are kept beside it.
    keeps_features: ClassVar[bool] = True
    #: Whether a finished run keeps what was trained, and not only what that answers.
    keeps_trained: ClassVar[bool] = True
    #: Whether it trains on cached features instead of images.
    on_features: ClassVar[bool] = False
    #: ID parts that two models are asked about before they are mixed.
    fitted_on: ClassVar[tuple[str, ...]] = ()

    kind: str

    @property
    def rate(self) -> float:
        """The learning rate of a run that names none."""
        return self.default_lr

    def rate_of(self, adapt: Adapt) -> float:
        """The learning rate of a run that names none, by what it trains.

        LoRA: what Zanella & Ben Ayed 2024 (CLIP-LoRA) take; a head: the linear probe's. [calift]
        """
        return {"full": self.rate, "lora": 2e-4, "head": 1e-3}[adapt]

    @property
    def decay(self) -> float:
        """The weight decay of a run that names none."""
        return self.default_weight_decay

    @property
    def input_runs(self) -> tuple[str, ...]:
        """Finished runs that this one is made from: ids of a service's runs, or their folders."""
        return ()

    @property
    def trains_on(self) -> bool:
        """Whether it can begin with the model of a finished run."""
        return self.trains and self.keeps_trained and not self.solved_at_once

    @property
    def evaluated_models(self) -> int:
        """How many models a run of it evaluates: its own, and what else it measures."""
        return 1

    @property
    def chosen_among(self) -> int:
        """How many models are compared on ID validation before its own is known."""
        return 0

    @property
    def encodes_first(self) -> bool:
        """Whether features of the training images are computed before the first step."""
        return self.on_features

    @property
    def solved_at_once(self) -> bool:
        """Whether a solver finds the optimum before the first step, and there are no steps."""
        return False


class Supervised(MethodBase):
    """Trains the image tower with a linear head on it."""

    default_lr = 3e-5
    default_clip_grad_norm: ClassVar[float | None] = 1.0
    terms: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    family: ClassVar[Family] = "supervised"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _SUPERVISED


class OnFeatures(Supervised):
    """Trains on the features of an image tower that stays."""

    default_lr = 1e-3
    default_weight_decay = 0.0
    default_clip_grad_norm: ClassVar[float | None] = None
    adapts: ClassVar[tuple[Adapt, ...]] = ("full",)
    accepts: ClassVar[frozenset[str]] = _SUPERVISED - {"mixup"}
    on_features = True


class Contrastive(MethodBase):
    """Trains both towers with the pre-training loss on class captions."""

    terms: ClassVar[tuple[str, ...]] = ("contrastive",)
    family: ClassVar[Family] = "contrastive"
    adapts: ClassVar[tuple[Adapt, ...]] = ("full", "lora", "head")
    accepts: ClassVar[frozenset[str]] = _CONTRASTIVE
