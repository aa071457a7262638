"""From a request to judge finished runs to a job that may be queued: what may be, what it costs."""

from collections.abc import Iterator

from backend.http.problems import HttpError
from backend.services.submission import SCAN_ENTRIES, SCAN_SECONDS, Submission, check_text
from backend.storage.artifacts import ArtifactStore
from backend.store.stores import Stores
from calift_core.data.counting import EvaluableRun, JobCounts, SuiteCounts, count_job
from calift_core.data.listing import ScanBudget
from calift_core.data.workload import Pace, Workload, evaluation_phases
from calift_core.errors import SpecError
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.methods import ZeroShot
from calift_core.schema.spec import parse_spec
from calift_core.schema.wire.runs import Estimate, Validation

#: What the model of a finished run is read back from.
_MODEL = ("report.json", "checkpoint/model.json", "checkpoint/model.safetensors")


class EvaluationSubmission:
    """Decides about evaluation jobs."""

    def __init__(self, submission: Submission, store: Stores, artifacts: ArtifactStore) -> None:
        self._submission, self._store, self._artifacts = submission, store, artifacts

    def require_valid(self, spec: EvaluationJobSpec) -> None:
        """See that a job can be queued.

        Raises:
            HttpError: 422 with a pointer and a sentence for all that stands in its way.
        """
        errors = self.validate(spec).errors
        if errors:
            first = f"{errors[0]['pointer']}: {errors[0]['message']}"
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise HttpError(
                422,
                "INVALID_EVALUATION",
                f"the runs cannot be judged so: {first}{more}",
                errors=errors,
            )

    def validate(self, spec: EvaluationJobSpec) -> Validation:
        """A dry run: what stands in the way, what is fetched first, what it will cost."""
        errors = check_text(spec.model_dump(mode="json"))
        if not errors:
            errors = [{"pointer": p, "message": m} for p, m in self._refusals(spec)]
        if errors:
            return Validation(valid=False, errors=errors)
        runs: list[EvaluableRun] = []
        for index, run_id in enumerate(spec.runs):
            found = self._judgeable(run_id)
            if isinstance(found, str):
                errors.append({"pointer": f"#/runs/{index}", "message": found})
            else:
                runs.append(found)
        counts = count_job(spec, runs, ScanBudget(entries=SCAN_ENTRIES, seconds=SCAN_SECONDS))
        errors += [{"pointer": p, "message": m} for p, m in counts.problems]
        if errors:
            return Validation(valid=False, errors=errors)
        missing = list(counts.missing)
        if waits := self._store.workers.why_device_waits(spec.device):
            missing.append(waits)
        return Validation(
            valid=True,
            missing=missing,
            warnings=list(self._judged_before(spec)),
            estimate=self._estimate(spec, counts),
        )

    def _estimate(self, spec: EvaluationJobSpec, counts: JobCounts) -> Estimate:
        """What a job costs; its time is that of finished runs of like size, as a run's is."""
        paces = {run_id: self._pace(spec, run_id, n) for run_id, n in counts.by_run.items()}
        phases = evaluation_phases((n, paces[run_id]) for run_id, n in counts.by_run.items())
        basis = ["images: counted on this machine, once for each run", *counts.notes]
        if phases:
            bases = dict.fromkeys(pace.basis for pace in paces.values() if pace is not None)
            shared = ", which a shared pass shortens" if len(paces) > 1 else ""
            basis.append(f"time {' and '.join(bases)}{shared}")
        return Estimate(
            evaluation_images=counts.images,
            shifts=counts.shifts,
            corrupted_images=counts.corrupted,
            seconds=sum(phases.values()) if phases else None,
            phases=phases or {},
            basis="; ".join(basis),
        )

    def _pace(self, job: EvaluationJobSpec, run_id: str, n: int | None) -> Pace | None:
        """How fast runs of a run's model predict so many images on the job's device."""
        spec = parse_spec(self._store.runs.get(run_id).spec)
        train = spec.train.model_copy(update={"device": job.device})
        as_zero_shot = spec.model_copy(update={"method": ZeroShot(), "train": train})
        work = Workload(SuiteCounts(basis=""), evaluation_images=n, selection_images=0)
        return self._store.results.pace(as_zero_shot, work)

    def _refusals(self, spec: EvaluationJobSpec) -> Iterator[tuple[str, str]]:
        """Folders that this service may not read."""
        sources = {f"shifts/{name}": uri for name, uri in spec.shifts.items()}
        sources |= {f"folders/{i}": uri for i, uri in enumerate(spec.folders)}
        sources |= {f"suites/{i}": uri for i, uri in enumerate(spec.suites)}
        sources |= {f"unlabelled/{i}": uri for i, uri in enumerate(spec.unlabelled)}
        for place, uri in sources.items():
            yield from self._submission.source_refusals(f"#/{place}", uri)

    def _judgeable(self, run_id: str) -> EvaluableRun | str:
        """A run that can be judged, or a sentence on why it cannot."""
        run = self._submission.finished_run(run_id)
        if isinstance(run, str):
            return run
        stored = {a.name: a.sha256 for a in self._store.files.of_run(run_id)}
        for name in _MODEL:
            if name not in stored or not self._artifacts.path(stored[name]).is_file():
                return (
                    f"the finished model of run {run_id} is not in the artifact store any more: "
                    f"{name} is missing"
                )
        report = self._store.results.report(run_id)
        try:
            suite = parse_spec(run.spec).suite
        except SpecError as error:
            return f"the spec of run {run_id} cannot be read: {error}"
        return EvaluableRun(run_id, suite, tuple(report["data"]["classes"]))

    def _judged_before(self, spec: EvaluationJobSpec) -> Iterator[str]:
        """Names that a run has results under: whether of the same images is for the runner."""
        named = set(spec.all_shifts) | {
            f"{name}/{severity}"
            for name in spec.corruptions.chosen
            for severity in spec.corruptions.severities
        }
        for run_id in spec.runs:
            evaluated = {e.dataset for e in self._store.results.run_evaluations(run_id)}
            if both := sorted(named & evaluated):
                yield (
                    f"The run {run_id} has results on {', '.join(both[:5])} already: the same "
                    "images are not judged again, others stand beside them under another name."
                )
