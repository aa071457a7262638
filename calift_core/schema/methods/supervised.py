"""Methods that train a linear head on image features, most of them the image tower as well."""

from typing import Annotated, Literal

from pydantic import Field

from calift_core.schema.base import Count, Rate, Weight, option
from calift_core.schema.methods.base import OnFeatures, Supervised


class FineTune(Supervised):
    """Cross-entropy on the image tower and a linear head that starts from zero-shot weights."""

    title = "Fine-tuning (FT)"
    summary = "Cross-entropy on the image tower and a head that starts zero-shot."
    source = "Wortsman et al. 2022, section 2"

    kind: Literal["finetune"] = "finetune"
    head_scale: Literal["fixed", "learned"] = option(
        "fixed",
        "Logit scale of the head",
        "fixed: the pre-trained scale is folded into the head's weights and features "
        "stay L2-normalised [code]; learned: the scale is a parameter of its own [calift]",
    )


class LinearProbe(OnFeatures):
    """Cross-entropy on a linear head; the image tower is frozen and its features are cached."""

    title = "Linear probe (LP)"
    summary = "A linear head on the frozen image tower's features."
    source = "Radford et al. 2021, section 3.2; Kumar et al. 2022"

    kind: Literal["linear_probe"] = "linear_probe"
    solver: Literal["adamw", "lbfgs"] = option(
        "adamw",
        "Solver",
        "adamw: the training loop on cached features; lbfgs: logistic regression to "
        "its optimum for each strength in the grid, the best by NLL on the ID validation split "
        "[Radford et al. 2021 use L-BFGS]",
    )
    head_start: Literal["zero_shot", "zeros"] = option(
        "zero_shot",
        "Head starts from",
        "zero_shot: the prompt classifier; zeros: nothing known. lbfgs starts there "
        "too but its optimum does not depend on it [calift]",
    )
    strengths: tuple[Annotated[float, Field(gt=0, le=1e9)], ...] = option(
        (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
        "Inverse strengths C",
        "lbfgs only: the L2 penalty is ‖W‖²/(2·C·N) beside the mean cross-entropy, as "
        "scikit-learn's C; chosen on the ID validation split, never on the test split [calift]",
        min_length=1,
        max_length=100,
    )
    max_iterations: int = option(
        1000, "L-BFGS iterations", "Most iterations for each C of the grid", ge=1, le=100_000
    )

    @property
    def solved_at_once(self) -> bool:
        """With `lbfgs`."""
        return self.solver == "lbfgs"


class LpFt(Supervised):
    """A linear probe first, then fine-tuning of tower and head from there."""

    title = "LP-FT"
    summary = "Linear probe, then fine-tuning that starts from its head."
    source = "Kumar et al. 2022, section 3.4"

    kind: Literal["lp_ft"] = "lp_ft"
    lp_epochs: Count = option(
        5, "LP epochs", "Epochs of the linear probe, on cached features, before fine-tuning [code]"
    )
    lp_lr: Rate = option(1e-3, "LP learning rate", "Learning rate of the linear probe [calift]")
    head_start: Literal["zero_shot", "zeros"] = option(
        "zero_shot",
        "Head starts from",
        "What the head is before the linear probe trains it [calift]",
    )

    @property
    def encodes_first(self) -> bool:
        """For the probe."""
        return True


class LipsumFt(Supervised):
    """Cross-entropy and the energy gap to the initial tower over random texts."""

    title = "LipSum-FT"
    summary = (
        "Fine-tuning that keeps the image tower's energies to random texts near the initial ones."
    )
    source = "Nam et al. 2024"
    default_lr = 1e-5
    default_weight_decay = 0.0
    terms = ("cross_entropy", "energy_gap")
    default_clip_grad_norm = None

    kind: Literal["lipsum_ft"] = "lipsum_ft"
    lambda_energy: Weight = option(1.0, "λ", "Weight of the energy gap; 0 turns it off [paper]")
    n_texts: Count = option(
        80, "Random texts M", "How many random texts a step compares; drawn anew each step"
    )
    text_length: int = option(
        8,
        "Random tokens in a text",
        "Each is drawn uniformly from the vocabulary and stands between start and end "
        "token [paper]",
        ge=1,
        le=75,
    )


class CarFt(Supervised):
    """Cross-entropy and the divergence of context distributions from the initial tower's."""

    title = "CAR-FT"
    summary = (
        "Fine-tuning that keeps what the image tower says about the context (which template fits)."
    )
    source = "Mao et al. 2024"
    terms = ("cross_entropy", "context")

    kind: Literal["car_ft"] = "car_ft"
    alpha: Weight = option(
        1.0,
        "α",
        "Weight of KL(c⁰ ‖ c) over the templates; 0 turns it off. 1 is not read from "
        "the paper but recalled [calift]",
    )


class ZsNorm(Supervised):
    """Cross-entropy of logits that are stretched to the range of the initial model's."""

    title = "ZS-Norm"
    summary = (
        "Fine-tuning on logits that are stretched, image by image, to the range that the initial "
        "model's have: confidence is nothing that training can raise."
    )
    source = "Murugesan et al. 2024, section 4"
    adapts = ("full",)

    kind: Literal["zs_norm"] = "zs_norm"


class CoOp(OnFeatures):
    """Learned vectors in the place of a prompt's words; both towers stay."""

    title = "CoOp"
    summary = "Learns the words around the class names as vectors; both towers stay as they are."
    source = "Zhou et al. 2022, section 3.2"
    default_lr = 2e-3
    keeps_trained = False

    kind: Literal["coop"] = "coop"
    n_context: int = option(
        16,
        "Context vectors M",
        "How many stand before the class name, drawn from a normal distribution of "
        "width 0.02; not asked where `start` has words [paper, code: 16]",
        ge=1,
        le=60,
    )
    start: str = option(
        "",
        "Begins as the words",
        "Begin with the vectors of these words, one a token, such as 'a photo of a'; "
        "empty: at random [paper has both]",
        max_length=200,
    )
    class_specific: bool = option(
        False,
        "A context for each class",
        "Off: all classes share one [paper: the shared one generalises better]",
    )


class TipAdapter(OnFeatures):
    """A cache of training features beside the zero-shot classifier; its keys are trained."""

    title = "Tip-Adapter-F"
    summary = (
        "Zero-shot logits plus the likeness to a few training images of each class, whose features "
        "are fine-tuned; both towers stay as they are."
    )
    source = "Zhang et al. 2022, section 3.2"
    default_weight_decay = 0.01
    keeps_trained = False

    kind: Literal["tip_adapter"] = "tip_adapter"
    alpha: Weight = option(
        1.0,
        "α",
        "Weight of the cache; 0 is zero-shot [calift; code: trains at 1.17 for "
        "ImageNet and 2 for DTD, then searches on validation images]",
    )
    beta: float = option(
        5.5,
        "β",
        "How fast the likeness of two images falls: exp(−β(1 − cosine)) [calift; "
        "code: trains at 1, then searches on validation images]",
        gt=0,
        le=1000,
    )
    per_class: Count = option(
        16,
        "Images of a class in the cache",
        "At most so many, drawn by the run's seed; all training images train their "
        "keys [code: 16 shots]",
    )
