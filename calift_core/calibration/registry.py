"""Every calibrator by name."""

from typing import Any

from calift_core.calibration.calibrators import (
    Calibrator,
    Histogram,
    Isotonic,
    PerturbedTemperature,
    Temperature,
    Vector,
)
from calift_core.calibration.ensemble_temperature import EnsembleTemperature
from calift_core.calibration.initial_model import (
    CautiousTemperature,
    DisagreementTemperature,
    Ensemble,
    SampleScaling,
)
from calift_core.calibration.structured import StructuredMatrix, StructuredVector
from calift_core.errors import SpecError, UnknownNameError

CALIBRATORS: dict[str, type[Calibrator]] = {
    "temperature": Temperature,
    "vector": Vector,
    "ets": EnsembleTemperature,
    "svs": StructuredVector,
    "sms": StructuredMatrix,
    "histogram": Histogram,
    "isotonic": Isotonic,
    "tsp": PerturbedTemperature,
}
#: Those that read the initial model's logits beside the tuned one's.
INITIAL_MODEL_CALIBRATORS: dict[str, type[Calibrator]] = {
    "disagreement": DisagreementTemperature,
    "cautious": CautiousTemperature,
    "sals": SampleScaling,
    "ensemble": Ensemble,
}


def known(kind: str) -> type[Calibrator]:
    """The calibrator of a name.

    Raises:
        UnknownNameError: there is none.
    """
    every = CALIBRATORS | INITIAL_MODEL_CALIBRATORS  # one may have been added since
    if kind not in every:
        raise UnknownNameError("calibrator", kind, every)
    return every[kind]


def calibrator_from_dict(stored: dict[str, Any]) -> Calibrator:
    """Rebuild a fitted calibrator from `Calibrator.to_dict`, which is what the API gives of one.

    Raises:
        UnknownNameError: no calibrator has this kind.
        SpecError: a field is missing.
    """
    calibrator = known(str(stored.get("kind")))()
    try:
        calibrator._restore(stored["parameters"])
        calibrator.fitted_on, calibrator.oracle = stored["fitted_on"], bool(stored["oracle"])
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(f"a stored calibrator must be complete, got: {error!r}") from error
    return calibrator


def require_initial(kind: str, *, named: bool) -> None:
    """Make sure that an initial run is named for `auto` and calibrators that read its logits alone.

    Raises:
        SpecError: it is not so.
    """
    if kind in INITIAL_MODEL_CALIBRATORS and not named:
        raise SpecError(
            f"{kind} reads the initial model's logits beside this one's: it must know the finished "
            "run of the model that this run started from.",
            hint="--initial RUN names it, `initial` in a request. The model that is shipped is two "
            "towers then: twice the weights, two passes for every image. --with temperature keeps "
            "every prediction too.",
        )
    if named and kind not in (*INITIAL_MODEL_CALIBRATORS, "auto"):
        raise SpecError(
            f"{kind} reads no other model's logits, and an initial model is given.",
            hint=f"Those that do: {', '.join(INITIAL_MODEL_CALIBRATORS)}.",
        )
