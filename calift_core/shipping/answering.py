"""The process that holds the model: pixels in, probabilities out.

`python -m calift_core.shipping.answering MODEL DEVICE` tells what the model is, then answers each
question, B images of (S, S, 3) uint8, with (B, C + 1) float64: the probabilities, and how much each
image is like the ID data (`none_of_these.scores`; 0 where the model has no threshold for it).
"""

import json
import sys
from pathlib import Path

import numpy as np

from calift_core import threads
from calift_core.child_process import answer_all


def main(argv: list[str]) -> None:
    """Load the model, and answer."""
    threads.settle()
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a library prints must not lie between two answers
    from calift_core.shipping.classifier import CalibratedClassifier

    model = CalibratedClassifier.load(Path(argv[0]), device=argv[1])
    size = model.clip.image_size
    unlike = model.none_of_these
    hello = {
        "name": model.clip.name,
        "classes": list(model.classes),
        "calibrator": None if model.calibrator is None else model.calibrator.kind,
        "preprocess": model.clip.preprocess.described(),
        "device": str(model.device),
        "none_of_these": None if unlike is None else unlike.model_dump(mode="json"),
    }

    def answer(question: bytes) -> bytes:
        pixels = np.frombuffer(question, np.uint8).reshape(-1, size, size, 3)
        found = model.answer(pixels.copy())
        like = np.zeros(len(found)) if unlike is None else unlike.scores(found.logits)
        return np.column_stack([found.probs, like]).astype("<f8").tobytes()

    answer_all(json.dumps(hello).encode(), answer, answers=answers)


if __name__ == "__main__":
    main(sys.argv[1:])
