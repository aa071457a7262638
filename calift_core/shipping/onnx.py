"""An exported model as one ONNX graph: from pixels to calibrated probabilities."""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calift_core.calibration import Calibrator
from calift_core.calibration.calibrators import (
    TEMPERATURE_RANGE,
    Histogram,
    Isotonic,
    Temperature,
    Vector,
)
from calift_core.calibration.ensemble_temperature import EnsembleTemperature
from calift_core.calibration.initial_model import DisagreementTemperature, Ensemble, SampleScaling
from calift_core.calibration.structured import StructuredMatrix, StructuredVector
from calift_core.errors import ModelError, SpecError, reason_of
from calift_core.files import atomic_path
from calift_core.installed import install_extra
from calift_core.methods.base import Classifier
from calift_core.shipping.classifier import CalibratedClassifier

#: The graph's input (B, S, S, 3) uint8, what `Preprocess.fit` gives of an image, and its outputs.
INPUT, OUTPUTS = "pixels", ("probabilities", "logits")
OPSET = 18


def export_onnx(model: CalibratedClassifier, path: Path) -> None:
    """Write the graph; B is free.

    Args:
        path: of the file, by custom ending in `.onnx`.

    Raises:
        SpecError: onnx or onnxscript is not installed, or the calibrator cannot be drawn.
        ModelError: torch cannot turn the tower into a graph.
        StorageError, DiskFullError: the file cannot be written.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise SpecError(
            f"ONNX needs {error.name}, which is not installed.", hint=install_extra("onnx")
        ) from None
    size = model.clip.image_size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    pipeline = _Pipeline(model).eval()
    batch = torch.export.Dim("batch", min=1)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), atomic_path(path) as part:
        warnings.simplefilter("ignore")  # of torch's own exporter, about itself
        try:
            torch.onnx.export(
                pipeline,
                (example,),
                str(part),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: batch},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises what comes
            raise ModelError(
                f"torch cannot write {model.clip.name} as an ONNX graph: {reason_of(error)}"
            ) from error


class _Pipeline(nn.Module):
    """(B, S, S, 3) uint8 → probabilities (B, C) and logits (B, C)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: CalibratedClassifier) -> None:
        super().__init__()
        self.visual = model.clip.net
        head = model.classifier
        self.register_buffer("mean", torch.tensor(model.clip.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.clip.std).view(1, 3, 1, 1))
        self.head = Classifier.of(head.tensors(), head.scale, torch.device("cpu"))
        self.initial = None if model.initial is None else _Pipeline(model.initial)
        self.calibrate = calibrator_module(model.calibrator)

    def logits(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float() / 255
        features = self.visual.encode_image((images - self.mean) / self.std)
        found: Tensor = self.head.logits(F.normalize(features.float(), dim=-1))
        return found

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(pixels)
        if self.initial is None:
            return self.calibrate(logits), logits
        return self.calibrate(logits, self.initial.logits(pixels)), logits


def calibrator_module(calibrator: Calibrator | None) -> nn.Module:
    """A fitted calibrator in torch: logits (B, C) → probabilities (B, C), float32.

    Those that read the initial model's logits take them as a second (B, C).

    Raises:
        SpecError: there is no such form of it.
    """
    match calibrator:
        case None:
            return nn.Softmax(dim=-1)
        case Temperature():
            return _Affine(torch.tensor(1 / calibrator.temperature), torch.tensor(0.0))
        case Vector():
            weight, bias = torch.tensor(calibrator.weight), torch.tensor(calibrator.bias)
            return _Affine(weight.float(), bias.float())
        case StructuredVector() | StructuredMatrix():
            return _StructuredModule(calibrator)
        case EnsembleTemperature():
            return _EnsembleTemperature(calibrator.temperature, calibrator.weights.tolist())
        case Histogram():
            return _Steps(torch.tensor(calibrator.edges), torch.tensor(calibrator.values))
        case Isotonic():
            return _Lines(torch.tensor(calibrator.x), torch.tensor(calibrator.y))
        case DisagreementTemperature():  # the cautious one among them
            return _Disagreement(calibrator.a, calibrator.b)
        case SampleScaling():
            return _SampleScaling()
        case Ensemble():
            return _Ensemble(calibrator.own, calibrator.first)
    raise SpecError(
        f"the calibrator {calibrator.kind} has no form as a graph yet",
        hint="`calift calibrate RUN --with temperature` chooses another.",
    )


class _Affine(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits * self.weight + self.bias, dim=-1)


class _StructuredModule(nn.Module):
    matrix: Tensor
    bias: Tensor

    def __init__(self, calibrator: StructuredVector | StructuredMatrix) -> None:
        super().__init__()
        weight, n_classes = torch.tensor(calibrator.weight), len(calibrator.bias)
        own = weight.diag() if len(weight) == n_classes else weight.view(n_classes, n_classes)
        self.register_buffer("matrix", (torch.eye(n_classes) + own).float().T.contiguous())
        self.register_buffer("bias", torch.tensor(calibrator.bias).float())
        self.beta, self.n = 1 / calibrator.temperature, calibrator.n

    def forward(self, logits: Tensor) -> Tensor:
        probs = (logits * self.beta).softmax(dim=-1)
        mixed = (self.n * probs + 1 / probs.shape[-1]) / (self.n + 1)
        return torch.softmax(mixed.log() @ self.matrix + self.bias, dim=-1)


class _EnsembleTemperature(nn.Module):
    def __init__(self, temperature: float, weights: list[float]) -> None:
        super().__init__()
        self.temperature, self.weights = temperature, weights

    def forward(self, logits: Tensor) -> Tensor:
        scaled, plain, even = self.weights
        probs = scaled * (logits / self.temperature).softmax(dim=-1)
        return probs + plain * logits.softmax(dim=-1) + even / logits.shape[-1]


class _Disagreement(nn.Module):
    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, logits: Tensor, initial: Tensor) -> Tensor:
        apart = (logits.softmax(dim=-1) - initial.softmax(dim=-1)).abs().sum(dim=-1, keepdim=True)
        heat = torch.exp(self.a + self.b * (apart / 2).clamp(max=1.0)).clamp(*TEMPERATURE_RANGE)
        return torch.softmax(logits / heat, dim=-1)


class _SampleScaling(nn.Module):
    def forward(self, logits: Tensor, initial: Tensor) -> Tensor:
        low, high = logits.amin(-1, keepdim=True), logits.amax(-1, keepdim=True)
        base, top = initial.amin(-1, keepdim=True), initial.amax(-1, keepdim=True)
        width = high - low
        share = (logits - low) / torch.where(width > 0, width, torch.ones_like(width))
        return torch.softmax(share * (top - base) + base, dim=-1)


class _Ensemble(nn.Module):
    def __init__(self, own: float, first: float) -> None:
        super().__init__()
        self.own, self.first = own, first

    def forward(self, logits: Tensor, initial: Tensor) -> Tensor:
        own, first = (logits / self.own).softmax(-1), (initial / self.first).softmax(-1)
        return (own + first) / 2


class _TopLabel(nn.Module):
    """Maps the confidence in the predicted class; the other classes share the rest."""

    def forward(self, logits: Tensor) -> Tensor:
        probs = logits.softmax(dim=-1)
        confidence, top = probs.max(dim=-1, keepdim=True)
        new = self.mapped(confidence)
        others = torch.ones_like(probs).scatter(-1, top, 0.0)
        rest = (probs * others).sum(dim=-1, keepdim=True)
        even = others / max(1, probs.shape[-1] - 1)
        share = torch.where(rest > 0, probs * others / rest.clamp(min=1e-38), even)
        return share * (1 - new) + (1 - others) * new

    def mapped(self, confidence: Tensor) -> Tensor:
        raise NotImplementedError


class _Steps(_TopLabel):
    edges: Tensor
    empty: Tensor
    values: Tensor

    def __init__(self, edges: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("edges", edges[1:-1].float())
        self.register_buffer("empty", values.isnan())
        self.register_buffer("values", values.nan_to_num().float())

    def mapped(self, confidence: Tensor) -> Tensor:
        at = (confidence > self.edges).sum(dim=-1)
        found = self.values[at].unsqueeze(-1)
        return torch.where(self.empty[at].unsqueeze(-1), confidence, found)


class _Lines(_TopLabel):
    x: Tensor
    y: Tensor
    slope: Tensor

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        # One line where there is one point, so that every confidence lies in some piece.
        x, y = (x.repeat(2), y.repeat(2)) if len(x) == 1 else (x, y)
        width = (x[1:] - x[:-1]).clamp(min=1e-12)
        self.register_buffer("x", x.float())
        self.register_buffer("y", y.float())
        self.register_buffer("slope", ((y[1:] - y[:-1]) / width).float())

    def mapped(self, confidence: Tensor) -> Tensor:
        inside = confidence.clamp(self.x[0], self.x[-1])
        at = (inside >= self.x[1:-1]).sum(dim=-1)
        return self.y[at].unsqueeze(-1) + self.slope[at].unsqueeze(-1) * (
            inside - self.x[at].unsqueeze(-1)
        )
