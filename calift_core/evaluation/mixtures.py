"""Models that are mixed image by image (VRF, DaWin): fitted on ID data, and asked a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calift_core.calibration.calibrators import fit_temperature
from calift_core.data.images import ImageSet
from calift_core.data.suites.load import Suite
from calift_core.evaluation.forward import Encode, ForwardSettings, encode
from calift_core.evaluation.path import WeightPath
from calift_core.methods.base import Classifier
from calift_core.methods.dawin import expertise, nearest
from calift_core.methods.vrf import Vrf, fit_vrf
from calift_core.models.loading import weights_sha256
from calift_core.schema.methods.merge import ONE_SE_PATH
from calift_core.schema.records import PhaseRecord, Record


@dataclass(frozen=True)
class EndpointModels:
    """The two models that are mixed."""

    path: WeightPath
    start: Classifier
    end: Classifier

    @classmethod
    def of(cls, path: WeightPath) -> EndpointModels:
        """The ends of a path."""
        return cls(path, path.classifier(0.0), path.classifier(1.0))

    def predict(self, batch: Tensor, encode: Encode) -> tuple[Tensor, Tensor, Tensor]:
        """Tuned features (B, D), tuned logits and initial logits (B, C)."""
        features = encode(self.path.tuned, batch)
        initial = self.start.logits(encode(self.path.initial, batch))
        return features, self.end.logits(features), initial

    def sha256(self, what: str) -> str:
        """Names a mixture of the two by all that it depends on."""
        ends = weights_sha256(self.path.initial.net), weights_sha256(self.path.tuned.net)
        return hashlib.sha256(":".join((*ends, what)).encode()).hexdigest()


@dataclass(frozen=True)
class VrfMixture:
    """See `Vrf`."""

    ends: EndpointModels
    vrf: Vrf

    def __call__(self, batch: Tensor, encode: Encode) -> tuple[Tensor, Tensor]:
        """Log probabilities (B, C), which are logits too, and tuned features (B, D)."""
        features, logits, initial = self.ends.predict(batch, encode)
        return self.vrf.log_probs(features, logits, initial), features

    def resolved(self) -> dict[str, Any]:
        """What was fitted."""
        vrf = self.vrf
        return {
            "failures": len(vrf.failures),
            "centre": vrf.centre,
            "width": vrf.width,
            "temperature": vrf.own,
            "initial_temperature": vrf.first,
        }


class DawinMixture:
    """See `expertise`."""

    def __init__(self, ends: EndpointModels, own: float, first: float) -> None:
        self.ends, self.own, self.first = ends, own, first
        self._classifiers: dict[float, Classifier] = {}  # prompts are encoded where α is needed

    def __call__(self, batch: Tensor, encode: Encode) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and features (B, D), each image's of the weights that it takes."""
        features, logits, initial = self.ends.predict(batch, encode)
        at = nearest(expertise(logits / self.own, initial / self.first), ONE_SE_PATH)
        features, logits = features.clone(), logits.clone()
        for index in sorted(set(at.tolist())):
            rows = (at == index).nonzero()[:, 0]
            alpha = ONE_SE_PATH[index]
            classifier = self._classifier(alpha)
            found = encode(self.ends.path.move(alpha, tower_only=True), batch[rows])
            features[rows] = found.to(features.dtype)
            logits[rows] = classifier.logits(found)
        return logits, features

    def _classifier(self, alpha: float) -> Classifier:
        if alpha not in self._classifiers:
            self._classifiers[alpha] = self.ends.path.classifier(alpha)
        return self._classifiers[alpha]

    def resolved(self) -> dict[str, Any]:
        """What was fitted."""
        return {"temperature": self.own, "initial_temperature": self.first}


def mix(
    kind: str,
    path: WeightPath,
    suite: Suite,
    settings: ForwardSettings,
) -> Generator[Record, None, VrfMixture | DawinMixture]:
    """Fit a mixture on ID calibration images; VRF's failures are ID training images.

    Raises:
        DataError: the suite lacks a part.
        InterruptedRunError: `settings.stop` said so.
    """
    ends = EndpointModels.of(path)

    def predicted(images: ImageSet) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = encode(path.tuned, images, settings)
        initial = ends.start.logits(encode(path.initial, images, settings))
        labels = torch.as_tensor(images.labels, device=settings.device)
        return features, ends.end.logits(features), initial, labels

    yield PhaseRecord(phase="evaluating", detail="both models on ID calibration")
    features, logits, initial, labels = predicted(suite.part("calibration"))
    if kind == "dawin":
        own, first = (fit_temperature(z.cpu().numpy(), labels.cpu().numpy())
                      for z in (logits, initial))  # fmt: skip
        return DawinMixture(ends, own, first)
    yield PhaseRecord(phase="evaluating", detail="both models on ID training images")
    seen, right, wrong, answers = predicted(suite.part("train"))
    failed = (right.argmax(dim=1) == answers) & (wrong.argmax(dim=1) != answers)
    return VrfMixture(ends, fit_vrf(seen[failed], features, logits, initial, labels))
