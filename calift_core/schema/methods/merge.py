"""Methods that combine the weights or the outputs of finished runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from calift_core.schema.base import Share, option
from calift_core.schema.methods.base import MethodBase, RunName

#: Where `wise_ft` looks for α by the one-standard-error rule.
ONE_SE_PATH = tuple(step / 20 for step in range(21))


class OfRun(MethodBase):
    """What methods share that make something of the zero-shot model and a finished run's."""

    trains = False
    family = "merge"

    run: RunName = Field(
        title="Fine-tuned run",
        description="A finished run that started from this spec's model: its id in the service, "
        "or its folder for `calift train`",
    )

    @property
    def input_runs(self) -> tuple[str, ...]:
        """The fine-tuned run."""
        return (self.run,)


class WiseFt(OfRun):
    """Weights between the zero-shot model and a finished run's; nothing is trained."""

    title = "WiSE-FT"
    summary = (
        "Interpolates the weights of the zero-shot model and of a finished run, and shows the "
        "whole path between them."
    )
    source = "Wortsman et al. 2022"

    kind: Literal["wise_ft"] = "wise_ft"
    alpha: Share = option(0.5, "α", "(1 − α)·zero-shot + α·fine-tuned, tower and head [paper: 0.5]")
    choose: Literal["fixed", "one_se"] = option(
        "fixed",
        "Choice of α",
        "fixed: the α above; one_se: the smallest of 0, 0.05, …, 1 whose ID validation "
        "accuracy is within one binomial standard error of the path's best, so that no more is "
        "changed than validation can tell [calift, after Breiman 1984]",
    )
    sweep: tuple[Share, ...] = option(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        "Path",
        "The α at which the frontier is measured; empty: only α itself",
        max_length=101,
    )

    @property
    def evaluated_models(self) -> int:
        """Its own and every other on the path."""
        return len({*self.sweep, self.alpha})

    @property
    def chosen_among(self) -> int:
        """Models of the path where α is chosen."""
        return len(ONE_SE_PATH) if self.choose == "one_se" else 0


class Vrf(OfRun):
    """Outputs of the zero-shot model and a finished run's, mixed by the distance to failures."""

    title = "VRF"
    summary = (
        "Mixes the outputs of the zero-shot model and a finished run image by image: nearer to "
        "training images that zero-shot got wrong and fine-tuning mended, the tuned one counts "
        "more. Two passes an image."
    )
    source = "Zhu et al., NeurIPS 2024"
    keeps_features = False
    fitted_on = ("calibration", "train")

    kind: Literal["vrf"] = "vrf"

    @property
    def evaluated_models(self) -> int:
        """Two."""
        return 2


class Dawin(OfRun):
    """Weights between the zero-shot model's and a finished run's, chosen for each image."""

    title = "DaWin"
    summary = (
        "Interpolates the weights of the zero-shot model and a finished run for each image, by how "
        "sure each of the two is. Three passes an image."
    )
    source = "Oh et al., ICLR 2025"
    keeps_features = False
    fitted_on = ("calibration",)

    kind: Literal["dawin"] = "dawin"

    @property
    def evaluated_models(self) -> int:
        """The two, and the image's own."""
        return 3


class ModelStock(MethodBase):
    """Per tensor, the point between the mean of fine-tuned weights and the initial ones."""

    title = "Model Stock"
    summary = (
        "Merges a few finished runs: the angle between their weight changes says how far to go "
        "from the initial weights towards their mean."
    )
    source = "Jang et al. 2024"
    trains = False
    family = "merge"

    kind: Literal["model_stock"] = "model_stock"
    runs: tuple[RunName, ...] = Field(
        min_length=2,
        max_length=64,
        title="Fine-tuned runs",
        description="Two or more finished runs that started from this spec's model and differ in "
        "seed or settings [paper: 2]: ids in the service, or folders for `calift train`",
    )

    @property
    def input_runs(self) -> tuple[str, ...]:
        """The fine-tuned runs."""
        return self.runs

    @model_validator(mode="after")
    def _different(self) -> ModelStock:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError(f"the runs must differ, got {list(self.runs)}")
        return self
