"""Fills a store with runs that look like real ones.

The predictions are drawn from a model of Gaussian classes, whose exact posterior is known: with
sharpness 1 a run is calibrated, above 1 over-confident. Everything else (metrics, reports, spectra)
is computed from them by the code that real runs use.
"""

import hashlib
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from backend.storage.artifacts import ArtifactStore, publish_artifact
from backend.store.stores import Stores
from calift_core.analysis.report import summarise
from calift_core.calibration import evaluate_all
from calift_core.evaluation.spectrum import Covariance, spectrum_report
from calift_core.predictions.types import Predictions, PredictionsMetadata
from calift_core.predictions.write import write_predictions
from calift_core.schema.report import EvaluationReport, FrontierPoint, FrontierSet, Report
from calift_core.schema.spec import parse_spec
from calift_core.schema.wire.runs import Progress
from tests.support import recorded

CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A method's believable behaviour: class distance on ID data, sharpness, spread of features."""

    method: dict[str, Any]
    distance: float
    sharpness: float
    spread: float


KINDS = {
    "zero-shot": Kind({"kind": "zero_shot"}, 2.35, 0.9, 0.55),
    "fine-tuning": Kind({"kind": "finetune"}, 3.35, 1.75, 0.35),
    "FLYP": Kind({"kind": "flyp"}, 3.4, 1.5, 0.4),
    "CaRot": Kind({"kind": "carot"}, 3.45, 1.12, 0.8),
}


def between(alpha: float, run_id: str = "", kept: float = 0.5) -> Kind:
    """A model on the way from zero-shot to FLYP, whose middle is better than the straight line."""
    start, end = KINDS["zero-shot"], KINDS["FLYP"]
    bump = alpha * (1 - alpha)
    return Kind(
        {"kind": "wise_ft", "run": run_id, "alpha": kept},
        (1 - alpha) * start.distance + alpha * end.distance + 0.6 * bump,
        (1 - alpha) * start.sharpness + alpha * end.sharpness - 0.2 * bump,
        (1 - alpha) * start.spread + alpha * end.spread,
    )


#: Samples of each set, steps of a finished run.
N, STEPS = 400, 40
#: Dataset, role, harm, corruption, severity.
SETS: list[tuple[str, str, float, str | None, int | None]] = [
    ("fashion-mnist/test", "id", 0.0, None, None),
    ("inverted", "shift", 0.3, None, None),
    ("on-texture", "shift", 0.45, None, None),
    ("sketch", "shift", 0.2, None, None),
]
SETS += [
    (f"{name}/{s}", "corruption", min(harm * s**0.8, 0.7), name, s)
    for name, harm in (("gaussian_noise", 0.05), ("jpeg_compression", 0.08))
    for s in (1, 5)
]


def predictions(kind, dataset, role, *, n, harm, seed):
    """Logits of one run on one set; the labels and half of the noise belong to the set alone."""
    own = np.random.default_rng(zlib.crc32(dataset.encode()))
    labels = own.integers(len(CLASSES), size=n)
    own_shape = (n, len(CLASSES))
    shared = own.normal(size=own_shape)
    mine = np.random.default_rng(seed + zlib.crc32(dataset.encode()) % 997).normal(size=own_shape)
    distance = kind.distance * (1 - harm)
    features = distance * np.eye(len(CLASSES))[labels] + 0.8 * shared + 0.6 * mine
    # distance * features is the posterior's logit; a model does not know how much it was harmed.
    logits = kind.sharpness * kind.distance * (1 - 0.5 * harm) * features
    ids = np.array([f"{dataset}/{i:05d}" for i in range(n)])
    about = PredictionsMetadata(dataset, role, CLASSES, 1.0, templates=("a photo of a {}.",))
    units = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    return Predictions(
        ids, labels, logits.astype(np.float32), about,
        clusters=ids if role == "corruption" else None,
        features=units if role == "shift" else None,
    )  # fmt: skip


def spectrum(spread: float, seed: int, progress: float = 1.0) -> Any:
    """The spectrum of features whose variances fall more slowly the larger the spread is."""
    rng = np.random.default_rng(seed)
    d = 48
    mixing = np.linalg.qr(rng.normal(size=(d, d)))[0]
    power = np.exp(-np.arange(d) / (d * (0.05 + 0.25 * spread * (0.5 + 0.5 * progress))))
    covariance = Covariance(d)
    covariance.add(rng.normal(size=(600, d)) * power @ mixing)
    projection = np.linalg.qr(rng.normal(size=(64, d)))[0] * (1 + 0.1 * (1 - spread))
    return spectrum_report(covariance, projection=projection, features="validation")


def _spec(name: str, kind: Kind, seed: int, **more: Any) -> Any:
    return parse_spec(
        {
            "name": name,
            "method": kind.method,
            "suite": {"corruptions": {"names": ["gaussian_noise"]}},
            "train": {"epochs": 4, "batch_size": 256, "seed": seed},
            **more,
        }
    )


def evaluation_of(made, corruption, severity, **more):
    about = {"dataset": made.metadata.dataset, "role": made.metadata.role, "severity": severity}
    about |= {"corruption": corruption, "n_classes": len(CLASSES)}
    numbers = evaluate_all(made.probs(), made.labels, n_resamples=20)
    return EvaluationReport.model_validate(numbers | about | more)


def training_records(kind: Kind, steps: int, seed: int, until: int | None = None) -> list[Any]:
    """Curves that fall as losses do, terms by the method's name; four epochs, their spectra."""
    rng = np.random.default_rng(seed)

    def values(step):
        x = step / steps
        contrastive = 0.35 + 1.6 * np.exp(-5 * x) + 0.04 * rng.normal()
        numbers = {"contrastive": contrastive, "lr": 1e-5 * 0.5 * (1 + np.cos(np.pi * x))}
        if kind.method["kind"] == "carot":
            numbers["orthogonality"] = 2.4 * np.exp(-3 * x) + 0.3 + 0.02 * rng.normal()
            numbers["distillation"] = 0.12 * (1 - np.exp(-6 * x)) + 0.01 * rng.normal()
            contrastive += 0.2 * numbers["orthogonality"] + 1.5 * numbers["distillation"]
        return {name: float(value) for name, value in (numbers | {"loss": contrastive}).items()}

    spectra = {steps * k // 4: spectrum(kind.spread, seed + 1, k / 4) for k in range(1, 5)}
    return recorded.training(steps, values, spectra=spectra, epochs=4, until=until)


def finished(store, artifacts, *, name, kind, seed=0, frontier=None, **spec):
    """A run that succeeded, with curves, spectra, predictions, a report and a log."""
    run_spec = _spec(name, kind, seed, **spec)
    run_id = store.runs.submit(run_spec)
    claim = store.claims.claim(run_id, worker_id="worker-1", ttl_s=3600)
    trains = kind.method["kind"] not in ("zero_shot", "wise_ft")
    records = training_records(kind, STEPS, seed) if trains else [recorded.phase("loading")]
    named = []
    with tempfile.TemporaryDirectory() as folder:
        # No evaluations: what calibrators are fitted on, and a far set.
        fit = ("fashion-mnist/calibration", "calibration", 0.0, None, None)
        far = [("textures", "far", 0.9, None, None)] if kind.method["kind"] == "carot" else []
        for dataset, role, harm, corruption, severity in (fit, *far, *SETS):
            made = predictions(kind, dataset, role, n=N, harm=harm, seed=seed)
            path = Path(folder) / f"{dataset.replace('/', '_')}.parquet"
            digest = write_predictions(path, made)
            publish_artifact(
                store.files, artifacts, run_id, claim.attempt,
                name=f"predictions/{path.name}", kind="predictions", path=path,
            )  # fmt: skip
            if role not in ("calibration", "far"):
                evaluation = evaluation_of(made, corruption, severity, predictions_sha256=digest)
                named.append((evaluation, f"predictions/{path.name}"))
    reports = [evaluation for evaluation, _ in named]
    final = spectrum(kind.spread, seed + 2)
    summary = summarise(reports, final.sigma_min)
    records += recorded.evaluating(named)
    records += recorded.ending(final, summary, steps=STEPS if trains else 0)
    assert store.records.record(run_id, claim.attempt, recorded.checked(records))
    assert store.records.append_log(run_id, claim.attempt, "INFO:calift_core.jobs:weights loaded\n")
    # Of the weights that a run ends with: those that it began with where nothing trains.
    zero_shot = kind.method["kind"] == "zero_shot"
    digest = "0" * 64 if zero_shot else hashlib.sha256(name.encode()).hexdigest()
    report = Report(
        run_id=run_id,
        name=name,
        spec=run_spec.model_dump(mode="json"),
        spec_sha256=run_spec.content_hash(),
        resolved={"lr": 1e-5, "weight_decay": 0.1, "warmup_steps": 60, "precision": "fp32"}
        | {k: v for k, v in kind.method.items() if k == "alpha"},
        summary=summary,
        evaluations=reports,
        spectrum=final,
        selection={"selected_on": "last_step"},
        # CaRot's is of a version that kept no hashes.
        model={} if name.startswith("CaRot") else {"start_sha256": "0" * 64, "sha256": digest},
        data={},
        timings_s={"training": 12.0},
        environment={"python": "3.11", "device": "cpu", "packages": {"numpy": np.__version__}},
        frontier=frontier,
    )
    assert store.claims.finish(
        run_id, claim.attempt, phase="SUCCEEDED", report=report.model_dump(mode="json")
    )
    return run_id


def path_points(seed: int) -> list[FrontierPoint]:
    """The path from zero-shot to FLYP, measured as a run measures it."""
    points = []
    for alpha in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        sets = []
        validation = ("validation", "validation", 0.0, None, None)
        for dataset, role, harm, corruption, severity in [validation, *SETS]:
            made = predictions(between(alpha), dataset, role, n=N, harm=harm, seed=seed)
            e = evaluate_all(made.probs(), made.labels, n_resamples=20)
            sets.append(
                FrontierSet(
                    dataset=dataset, role="id" if role == "validation" else role,
                    n=N, accuracy=e["accuracy"], ece=e["ece"]["value"],
                    ece_floor=e["ece"]["null_mean"], nll=e["nll"], corruption=corruption,
                    severity=severity,
                )
            )  # fmt: skip
        chosen, own, shifts = sets[0], sets[1], [s for s in sets if s.role == "shift"]
        flat = {}
        for name in ("accuracy", "ece", "ece_floor", "nll"):
            flat[f"val_{name}"] = getattr(chosen, name)
            flat[f"id_{name}"] = getattr(own, name)
            flat[f"ood_{name}"] = fmean(getattr(s, name) for s in shifts)
        points.append(FrontierPoint(alpha=alpha, datasets=sets[1:], **flat))
    return points


def failed(store: Stores, *, name: str, kind: Kind) -> str:
    """A run that ran out of memory."""
    run_id = store.runs.submit(_spec(name, kind, 0))
    claim = store.claims.claim(run_id, worker_id="worker-1", ttl_s=3600)
    begun = [recorded.phase("loading"), recorded.phase("training")]
    assert store.records.record(run_id, claim.attempt, recorded.checked(begun))
    assert store.claims.finish(
        run_id, claim.attempt, phase="FAILED", reason="OOM",
        message="the device ran out of memory in the first step with a batch of 512.",
        hint="Raise train.accumulation_steps: it keeps the loss of the whole batch.",
    )  # fmt: skip
    return run_id


def running(store: Stores, *, name: str, kind: Kind, steps: int = 600) -> str:
    """A run in the middle of its training, on a worker that lives."""
    run_id = store.runs.submit(_spec(name, kind, 1))
    claim = store.claims.claim(run_id, worker_id="worker-1", ttl_s=3600)
    done = steps * 2 // 5
    records = training_records(kind, steps, 3, until=done)
    assert store.records.record(run_id, claim.attempt, recorded.checked(records))
    store.claims.heartbeat(
        run_id, claim.attempt, ttl_s=3600,
        progress=Progress(
            phase="training", detail="epoch 2 of 4", step=done, total_steps=steps,
            samples_per_s=812.0, eta_s=114.0, run_fraction=0.3, run_eta_s=90_000.0,
        ),
    )  # fmt: skip
    report_in(store, run_id)
    return run_id


def report_in(store: Stores, run_id: str) -> None:
    """The worker of the running run is there; for a minute, unless it says so again."""
    store.workers.seen(
        "worker-1", host="bench-01", queues=["cpu"], device="CPU, 8 cores", run_id=run_id
    )


def fill(store: Stores, artifacts: ArtifactStore) -> dict[str, str]:
    """Runs in every state; their ids by name."""
    ids = {}
    for seed, (name, kind) in enumerate(KINDS.items()):
        ids[name] = finished(
            store, artifacts, name=f"{name} on fashion-mnist", kind=kind, seed=seed,
            tags=["baseline"] if name == "zero-shot" else ["sweep-1"],
        )  # fmt: skip
        if name == "FLYP":  # not last: the newest result is a trained one
            ids["WiSE-FT"] = finished(
                store, artifacts, name="WiSE-FT of FLYP", kind=between(0.5, ids[name]), seed=seed,
                frontier=path_points(seed),
            )  # fmt: skip
    ids["failed"] = failed(store, name="CaRot with a large batch", kind=KINDS["CaRot"])
    ids["running"] = running(store, name="CaRot (second seed)", kind=KINDS["CaRot"])
    ids["queued"] = store.runs.submit(_spec("FLYP (second seed)", KINDS["FLYP"], 1))
    return ids
