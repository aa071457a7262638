"""The noisy copies that TS-P is fitted on: which levels of noise they take."""

from collections.abc import Generator
from dataclasses import replace

from calift_core.calibration.perturbation import perturbation_levels
from calift_core.data.images import ImageSet
from calift_core.data.noise import perturbed, shrunk
from calift_core.data.workload import NOISE_IMAGES, NOISE_LEVELS, NOISE_STEPS
from calift_core.errors import InterruptedRunError
from calift_core.evaluation.forward import forward_all
from calift_core.evaluation.items import EvaluationSettings, Item, key
from calift_core.evaluation.partial import Shards
from calift_core.evaluation.progress import EvaluationProgress
from calift_core.evaluation.subjects import EvaluationSubject
from calift_core.schema.records import Record

#: Largest noise tried, as a share of the range of a pixel: little but black and white is left.
MAX_NOISE = 4.0


def noise_levels(
    subject: EvaluationSubject, clean: Item, settings: EvaluationSettings
) -> Generator[Record, None, list[float]]:
    """Noise levels above 0 at which accuracy falls in equal steps, found on some of the images."""
    search = {
        "levels": NOISE_LEVELS,
        "images": NOISE_IMAGES,
        "steps": NOISE_STEPS,
        "max": MAX_NOISE,
    }
    kept = Shards(subject.folder, key(subject, clean, settings) | {"noise": search})
    earlier = kept.finished()
    if earlier is not None:
        return [float(level) for level in earlier["levels"]]
    preprocess = subject.placed.place().preprocess
    some = shrunk(clean.images.limited(NOISE_IMAGES), preprocess)
    known: dict[float, float] = {}
    progress = EvaluationProgress((1 + (NOISE_LEVELS - 1) * NOISE_STEPS) * len(some))
    while True:
        try:
            levels = perturbation_levels(
                known.__getitem__,
                n_classes=len(clean.class_names),
                n_levels=NOISE_LEVELS,
                max_noise=MAX_NOISE,
                n_steps=NOISE_STEPS,
            )
            break
        except KeyError as unknown:  # the search is gone through again with one accuracy more
            sigma = float(unknown.args[0])
        images = perturbed(
            some, preprocess=preprocess, sigma=sigma, seed=settings.spec.seed, name="noise"
        )
        known[sigma] = _accuracy(subject, images, settings)
        progress.add(len(images))
        if progress.is_due():
            yield progress.record(f"noise levels for TS-P, σ = {sigma:.4f}")
    found = sorted(set(levels) - {0.0})
    kept.finish({"levels": found})
    return found


def _accuracy(subject: EvaluationSubject, images: ImageSet, settings: EvaluationSettings) -> float:
    n_correct = 0
    for batch in forward_all([subject.placed], images, replace(settings, workers=0)):
        if settings.stop():
            raise InterruptedRunError("stopped while searching noise levels for TS-P")
        own = images.own_labels[batch.start : batch.start + len(batch.logits)]
        n_correct += int((batch.logits.argmax(axis=1) == own).sum())
    return n_correct / len(images)


def copy_of(
    clean: Item, sigma: float, subject: EvaluationSubject, settings: EvaluationSettings
) -> Item:
    """Noisy copies of a set; `sigma` is in the unit of the normalised input."""
    images = perturbed(
        clean.images,
        preprocess=subject.placed.place().preprocess,
        sigma=sigma,
        seed=settings.spec.seed,
        name=f"{clean.images.name}+noise/{sigma:.4f}",
    )
    return replace(clean, images=images, source=clean.images.name, noise=sigma)
