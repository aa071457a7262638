"""From a request's spec to a run that may be queued: validation, what is allowed, what it costs."""

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backend.http.problems import HttpError
from backend.settings import Settings
from backend.store.stores import Stores
from calift_core import catalogue
from calift_core.data.counting import SuiteCounts
from calift_core.data.listing import ScanBudget
from calift_core.data.suites import parse_suite_id
from calift_core.data.suites.huggingface import hub_name_of, is_cached
from calift_core.data.workload import Pace, Workload, count_images
from calift_core.errors import NotFoundError, SpecError
from calift_core.schema.methods import ModelStock
from calift_core.schema.spec import ModelSpec, RunSpec, problems_of
from calift_core.schema.wire.runs import RunDetail, RunSubmit, Validation

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_LOCAL_DIR = "local-dir:"
_REMOTE_IS_OFF = (
    "Downloads of models are off here: CALIFT_ALLOW_REMOTE_MODELS=1 allows them, or put the files "
    "into a folder that this service may read and name it local-dir:FOLDER."
)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
#: How much of a disk a dry run looks at; larger suites have their published sizes, folders none.
SCAN_ENTRIES, SCAN_SECONDS = 500_000, 3.0


def scan_budget() -> ScanBudget:
    """How much of a disk one dry run may look at, from now on."""
    return ScanBudget(entries=SCAN_ENTRIES, seconds=SCAN_SECONDS)


def invalid_spec(errors: list[dict[str, str]]) -> HttpError:
    """422 with a pointer into the request body for every fault."""
    first = f"{errors[0]['pointer']}: {errors[0]['message']}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return HttpError(422, "INVALID_SPEC", f"the RunSpec is not valid: {first}{more}", errors=errors)


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: null removes a key, a mapping is merged, anything else replaces."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def body_hash(route: str, body: Mapping[str, Any]) -> str:
    """What an idempotency key is bound to: the route and the request's meaning."""
    text = json.dumps([route, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_text(value: Any, pointer: str = "#") -> list[dict[str, str]]:
    """Strings that a database cannot hold: NUL characters and halves of surrogate pairs."""
    if isinstance(value, str):
        if "\x00" in value:
            return [{"pointer": pointer, "message": "a text must not hold a NUL character"}]
        if any("\ud800" <= character <= "\udfff" for character in value):
            return [{"pointer": pointer, "message": "a text must be valid Unicode"}]
        return []
    found: list[dict[str, str]] = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            name = str(key).encode("utf-8", "replace").decode().replace("\x00", "?")
            place = f"{pointer}/{name}"
            found += check_text(str(key), place) + check_text(item, place)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            found += check_text(item, f"{pointer}/{index}")
    return found


class Submission:
    """Decides about specs.

    Args:
        settings: which folders and remote models are allowed.
        store: knows how fast earlier runs were, and which workers live.
    """

    def __init__(self, settings: Settings, store: Stores) -> None:
        self._settings = settings
        self._store = store

    def parse(self, data: Mapping[str, Any], *, prefix: str = "#/spec") -> RunSpec:
        """Validate a spec.

        Args:
            prefix: pointer to the spec in the request body.

        Raises:
            HttpError: 422 with every fault.
        """
        errors, spec = self.errors_of(data, prefix=prefix)
        if spec is None:
            raise invalid_spec(errors)
        return spec

    def errors_of(
        self, data: Mapping[str, Any], *, prefix: str = "#/spec"
    ) -> tuple[list[dict[str, str]], RunSpec | None]:
        """Every fault of a spec with its pointer, and the spec when there is none."""
        errors = check_text(data, prefix)
        if errors:
            return errors, None
        try:
            spec = RunSpec.model_validate(data)
        except ValidationError as error:
            return [
                {**item, "pointer": prefix + item["pointer"].removeprefix("#").rstrip("/")}
                for item in problems_of(error)
            ], None
        errors = [
            {"pointer": f"{prefix}/{place}", "message": message}
            for place, message in self._refusals(spec)
        ]
        return errors, None if errors else spec

    def _refusals(self, spec: RunSpec) -> Iterator[tuple[str, str]]:
        """What the spec asks of this machine that it may not have."""
        yield from self._input_refusals(spec)
        folders = {"suite/id": spec.suite.id} | {
            f"suite/{sets}/{name}": uri
            for sets, named in (("shifts", spec.suite.shifts), ("ood", spec.suite.ood))
            for name, uri in named.items()
        }
        for place, uri in folders.items():
            yield from self.source_refusals(place, uri)
        yield from self._remote_refusals(spec.model)
        if spec.model.name.endswith(".json"):
            yield from self.path_refusals("model/name", spec.model.name)
        elif spec.model.name.startswith(_LOCAL_DIR):
            yield from self.path_refusals("model/name", spec.model.name.removeprefix(_LOCAL_DIR))
        weights = spec.model.pretrained
        if weights is not None and weights.endswith(_WEIGHT_SUFFIXES):
            yield from self.path_refusals("model/pretrained", weights)
        elif weights is not None and ("/" in weights or "\\" in weights):
            yield (
                "model/pretrained",
                f"weights are a tag or a path that ends in {', '.join(_WEIGHT_SUFFIXES)}, "
                f"got {weights!r}",
            )

    def _remote_refusals(self, model: ModelSpec) -> Iterator[tuple[str, str]]:
        """A model that would be downloaded, where this service may not."""
        if self._settings.allow_remote_models:
            return
        name, weights = model.name, model.pretrained
        if name.startswith("hf-hub:"):
            yield "model/name", f"{name} is a remote model. {_REMOTE_IS_OFF}"
        elif (
            weights is not None
            and not weights.endswith(_WEIGHT_SUFFIXES)
            and "/" not in weights  # refused as no tag at all
            and name != catalogue.TINY
            and not name.startswith(_LOCAL_DIR)
            and not name.endswith(".json")
            and catalogue.cached_weights(name, weights) is None
        ):
            yield (
                "model/pretrained",
                f"the weights {weights} of {name} are not among those that this service has, so "
                f"they would be downloaded. {_REMOTE_IS_OFF}",
            )

    def _input_refusals(self, spec: RunSpec) -> Iterator[tuple[str, str]]:
        """Runs that a spec names and that are not finished ones of this service."""
        many = isinstance(spec.method, ModelStock)
        for index, run_id in enumerate(spec.input_runs):
            place = f"method/runs/{index}" if many else "method/run"
            if index == len(spec.method.input_runs):
                place = "train/initial_run"
            if not _RUN_ID.fullmatch(run_id):
                yield (
                    place,
                    f"a finished run is named by its id here, got {run_id!r}; folders are for "
                    "`calift train`",
                )
                continue
            found = self.finished_run(run_id)
            if isinstance(found, str):
                yield place, found

    def finished_run(self, run_id: str) -> RunDetail | str:
        """A run that has made a model, or a sentence on why there is none."""
        try:
            run = self._store.runs.get(run_id)
        except NotFoundError as error:
            return error.message
        if run.method == "imported":
            return f"the run {run_id} is imported predictions and has no weights"
        if run.phase != "SUCCEEDED":
            return f"the run {run_id} must have SUCCEEDED, it is {run.phase}"
        return run

    def source_refusals(self, place: str, uri: str) -> Iterator[tuple[str, str]]:
        """Why a suite or a shift may not be read by this service: its place and a sentence."""
        path, name = path_of(uri), hub_name_of(uri)
        if path is not None:
            yield from self.path_refusals(place, path)
        elif name is not None and not (self._settings.allow_remote_models or is_cached(name)):
            yield (
                place,
                f"the data set {name} is not among those that this service has, so it would be "
                "downloaded. Downloads are off here: CALIFT_ALLOW_REMOTE_MODELS=1 allows them, or "
                "name what `save_to_disk` wrote as hf:FOLDER.",
            )

    def path_refusals(self, place: str, text: str) -> Iterator[tuple[str, str]]:
        """Why a path may not be read by this service, if it may not: its place and a sentence."""
        roots = self._settings.data_roots
        if not roots and self._settings.is_loopback:
            return  # whoever reaches a loopback bind with the token reads these files anyway
        path = Path(os.path.expanduser(text))
        if not path.is_absolute():
            yield place, f"a path must be absolute here, got {text!r}"
            return
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError):
            yield place, f"the path {text!r} cannot be resolved"
            return
        # What was brought by the browser lies in the home.
        allowed = (*roots, self._settings.datasets_dir)
        if not any(resolved.is_relative_to(Path(root).resolve()) for root in allowed):
            yield (
                place,
                f"{text!r} is outside the folders that this service may read (CALIFT_DATA_ROOTS)",
            )

    def validate(self, body: RunSubmit, *, prefix: str = "#/spec") -> Validation:
        """A dry run: faults, what is not on this machine, what it will cost.

        Args:
            prefix: pointer to the spec in the request body.
        """
        errors, spec = self.errors_of(body.spec, prefix=prefix)
        if spec is None:
            return Validation(valid=False, errors=errors)
        return self.look(spec, prefix)

    def look(
        self,
        spec: RunSpec,
        prefix: str = "#/spec",
        *,
        counts: SuiteCounts | None = None,
        pace: Callable[[RunSpec, Workload], Pace | None] | None = None,
    ) -> Validation:
        """What a valid spec lacks here, and what it will cost.

        Args:
            prefix: pointer to the spec in the request body.
            counts: of its suite, where they are known already.
            pace: tells how fast runs like it were; None: asks the store.
        """
        work = count_images(spec, scan_budget(), counts)
        if work.problems:
            return Validation(
                valid=False,
                errors=[
                    {"pointer": prefix + pointer.removeprefix("#"), "message": message}
                    for pointer, message in work.problems
                ],
            )
        missing, blocking = work.missing, work.blocking
        for sentence, is_fetched in self._model_missing(spec):
            missing.append(sentence)
            if not is_fetched:
                blocking.append(sentence)
        if waits := self._store.workers.why_waits(spec):
            missing.append(waits)
        return Validation(
            valid=True,
            missing=missing,
            blocking=blocking,
            warnings=list(work.warnings),
            estimate=work.estimate((pace or self._store.results.pace)(spec, work)).model_copy(
                update={"disk_bytes": self._store.results.disk_of(spec.model.label)}
            ),
        )

    def _model_missing(self, spec: RunSpec) -> Iterator[tuple[str, bool]]:
        """What of the model is not here, and whether a run gets it by itself."""
        name, weights = spec.model.name, spec.model.pretrained
        if name.endswith(".json") and not os.path.isfile(os.path.expanduser(name)):
            yield f"There is no model config {name}.", False
        if name.startswith(_LOCAL_DIR):
            folder = os.path.expanduser(name.removeprefix(_LOCAL_DIR))
            if not os.path.isdir(folder):
                yield f"There is no folder {folder}.", False
        if weights is None or spec.method.kind == "pretrain":
            return
        if weights.endswith(_WEIGHT_SUFFIXES):
            if not os.path.isfile(os.path.expanduser(weights)):
                yield f"There is no weights file {weights}.", False
        elif (name, weights) in catalogue.OPEN_CLIP and (
            catalogue.cached_weights(name, weights) is None
        ):
            yield (
                f"The weights of {name}/{weights} are not in the local cache; the worker will "
                "fetch them, which needs a network.",
                True,
            )


def path_of(uri: str) -> str | None:
    """The path that a suite or a shift is read from, where its name holds one."""
    if uri.startswith("folder:"):
        return uri.removeprefix("folder:")
    try:
        path = parse_suite_id(uri).path
    except SpecError:
        # A name that no suite has reads nothing; a home of nobody here may be one at a worker.
        rest = uri.partition(":")[2]
        return rest if "~" in rest else None
    return None if path is None or hub_name_of(uri) is not None else str(path)
