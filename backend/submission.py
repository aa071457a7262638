"""From a request's spec to a run that may be queued: validation, what is allowed, what it costs."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backend import catalogue
from backend.problems import HttpError
from backend.settings import Settings
from backend.store import NotFoundError, Store, model_label
from calift_core.data.catalogue import (
    SUITES,
    SuiteId,
    domain_folders,
    domain_name,
    parse_suite_id,
)
from calift_core.errors import SpecError
from calift_core.schema.methods import MethodBase, ModelStock
from calift_core.schema.spec import ModelSpec, RunSpec, problems_of
from calift_core.schema.wire import Estimate, RunSubmit, Validation

_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
_SCAN_CAP = 200_000
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_LOCAL_DIR = "local-dir:"
_REMOTE_IS_OFF = (
    "Downloads of models are off here: CALIFT_ALLOW_REMOTE_MODELS=1 allows them, or put the files "
    "into a folder that this service may read and name it local-dir:FOLDER."
)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CORRUPTIONS = {"all": 19, "benchmark": 15}


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

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def parse(self, data: Mapping[str, Any], *, prefix: str = "#/spec") -> RunSpec:
        """Validate a spec.

        Args:
            data: the decoded spec.
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
        yield from self._input_refusals(spec.method)
        folders = {"suite/id": spec.suite.id} | {
            f"suite/shifts/{name}": uri for name, uri in spec.suite.shifts.items()
        }
        for place, uri in folders.items():
            path = _path_of(uri)
            if path is not None:
                yield from self._path_refusals(place, path)
        yield from self._remote_refusals(spec.model)
        if spec.model.name.endswith(".json"):
            yield from self._path_refusals("model/name", spec.model.name)
        elif spec.model.name.startswith(_LOCAL_DIR):
            yield from self._path_refusals("model/name", spec.model.name.removeprefix(_LOCAL_DIR))
        weights = spec.model.pretrained
        if weights is not None and weights.endswith(_WEIGHT_SUFFIXES):
            yield from self._path_refusals("model/pretrained", weights)
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

    def _input_refusals(self, method: MethodBase) -> Iterator[tuple[str, str]]:
        """Runs that a merging method names and that are not finished ones of this service."""
        many = isinstance(method, ModelStock)
        for index, run_id in enumerate(method.input_runs):
            place = f"method/runs/{index}" if many else "method/run"
            if not _RUN_ID.fullmatch(run_id):
                yield (
                    place,
                    f"a finished run is named by its id here, got {run_id!r}; folders are for "
                    "`calift train`",
                )
                continue
            try:
                phase = self._store.phase(run_id)
            except NotFoundError:
                yield place, f"there is no run {run_id!r}"
                continue
            if phase != "SUCCEEDED":
                yield place, f"the run {run_id} must have SUCCEEDED, it is {phase}"
            elif self._store.get_run(run_id).method == "imported":
                yield place, f"the run {run_id} is imported predictions and has no weights"

    def _path_refusals(self, place: str, text: str) -> Iterator[tuple[str, str]]:
        roots = self._settings.data_roots
        if not roots and self._settings.is_loopback:
            return  # whoever reaches a loopback bind with the token reads these files anyway
        path = Path(text).expanduser()
        if not path.is_absolute():
            yield place, f"a path must be absolute here, got {text!r}"
            return
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError):
            yield place, f"the path {text!r} cannot be resolved"
            return
        if not any(resolved.is_relative_to(Path(root).resolve()) for root in roots):
            yield (
                place,
                f"{text!r} is outside the folders that this service may read (CALIFT_DATA_ROOTS)",
            )

    def validate(self, body: RunSubmit, *, prefix: str = "#/spec") -> Validation:
        """A dry run: faults, what is not on this machine, what it will cost.

        Args:
            body: what would be submitted.
            prefix: pointer to the spec in the request body.
        """
        errors, spec = self.errors_of(body.spec, prefix=prefix)
        if spec is None:
            return Validation(valid=False, errors=errors)
        missing, estimate = self._look(spec)
        return Validation(valid=True, missing=missing, estimate=estimate)

    def _look(self, spec: RunSpec) -> tuple[list[str], Estimate]:
        missing: list[str] = []
        parts, basis = self._parts(spec, missing)
        self._model_missing(spec, missing)
        if waits := self._store.why_waits(spec):
            missing.append(waits)
        train = parts.get("pretrain" if spec.method.kind == "pretrain" else "train")
        steps = None
        if train is not None and spec.method.trains:
            steps = spec.train.epochs * max(1, train // spec.train.batch_size)
            if spec.method.solved_at_once:
                steps = 0
        evaluation = self._evaluation_images(spec, parts)
        if evaluation is not None:
            evaluation *= spec.method.judged_models
        seconds = None
        pace = self._store.pace(model=model_label(spec), method=spec.method.kind)
        if pace and train is not None and spec.method.trains:
            seconds = spec.train.epochs * train / pace
            basis += "; training time at the median pace of earlier runs of this kind"
        return missing, Estimate(
            train_images=train,
            steps=steps,
            evaluation_images=evaluation,
            seconds=seconds,
            basis=basis,
        )

    def _parts(self, spec: RunSpec, missing: list[str]) -> tuple[dict[str, int], str]:
        for name, uri in spec.suite.shifts.items():
            if uri.startswith("folder:") and not _folder(uri).is_dir():
                missing.append(f"The shift {name!r} needs the folder {_folder(uri)}.")
        if spec.suite.id.startswith("folder:"):
            root = _folder(spec.suite.id)
            if not root.is_dir():
                missing.append(f"There is no folder {root}.")
                return {}, "unknown: the data is not here"
            return self._folder_parts(spec, root)
        known = {info.id: info for info in catalogue.datasets()}
        try:
            suite = parse_suite_id(spec.suite.id)
        except SpecError as error:
            missing.append(f"There is no suite {spec.suite.id!r}: {error}")
            return {}, "unknown: no such suite"
        if suite.name == "domains":
            return self._domain_parts(spec, suite, missing)
        info = known[suite.name]
        if suite.path is None and not info.available:
            missing.append(f"{info.title} is not on this machine. {info.detail}")
        elif suite.path is not None and (lacking := SUITES[suite.name].missing(suite.path)):
            missing.append(f"{info.title} is not complete there: {'; '.join(lacking[:8])}.")
        return self._limited(spec, dict(info.parts)), "sizes from the suite's description"

    def _domain_parts(
        self, spec: RunSpec, suite: SuiteId, missing: list[str]
    ) -> tuple[dict[str, int], str]:
        assert suite.path is not None
        assert suite.domain is not None
        folders = domain_folders(suite.path) if suite.path.is_dir() else {}
        own = folders.get(domain_name(suite.domain))
        if own is None:
            missing.append(f"There is no folder {suite.path / suite.domain}.")
            return {}, "unknown: the data is not here"
        return self._folder_parts(spec, suite.path / own)

    def _folder_parts(self, spec: RunSpec, root: Path) -> tuple[dict[str, int], str]:
        shares = spec.suite.fractions.model_dump()
        parts: dict[str, int] = {}
        if (root / "train").is_dir():
            for name in ("test", "validation", "val", "calibration", "pretrain"):
                if (root / name).is_dir():
                    parts["validation" if name == "val" else name] = count_images(root / name)
            whole = count_images(root / "train")
        else:
            whole = count_images(root)
        if whole >= _SCAN_CAP:
            return {}, f"unknown: more than {_SCAN_CAP} images"
        left = whole
        for name, share in shares.items():
            if name not in parts:
                parts[name] = round(whole * share)
                left -= parts[name]
        parts["train"] = left
        return self._limited(spec, parts), "images counted now, split by the spec's shares"

    def _limited(self, spec: RunSpec, parts: dict[str, int]) -> dict[str, int]:
        limits: Mapping[str, int] = {str(k): v for k, v in spec.suite.limits.items()}
        return {name: min(n, limits.get(name, n)) for name, n in parts.items()}

    def _evaluation_images(self, spec: RunSpec, parts: Mapping[str, int]) -> int | None:
        if "test" not in parts:
            return None
        test = parts["test"]
        total = test + parts.get("validation", 0) + parts.get("calibration", 0)
        for uri in spec.suite.shifts.values():
            if uri.startswith("folder:"):
                root = _folder(uri)
                inner = root / "test" if (root / "test").is_dir() else root
                total += count_images(inner) if inner.is_dir() else 0
        chosen = spec.suite.corruptions
        names = _CORRUPTIONS[chosen.names] if isinstance(chosen.names, str) else len(chosen.names)
        per = min(test, chosen.limit) if chosen.limit else test
        return total + names * len(chosen.severities) * per

    def _model_missing(self, spec: RunSpec, missing: list[str]) -> None:
        name, weights = spec.model.name, spec.model.pretrained
        if name.endswith(".json") and not Path(name).expanduser().is_file():
            missing.append(f"There is no model config {name}.")
        if name.startswith(_LOCAL_DIR):
            folder = Path(name.removeprefix(_LOCAL_DIR)).expanduser()
            if not folder.is_dir():
                missing.append(f"There is no folder {folder}.")
        if weights is None or spec.method.kind == "pretrain":
            return
        if weights.endswith(_WEIGHT_SUFFIXES):
            if not Path(weights).expanduser().is_file():
                missing.append(f"There is no weights file {weights}.")
        elif (name, weights) in catalogue.OPEN_CLIP and (
            catalogue.cached_weights(name, weights) is None
        ):
            missing.append(
                f"The weights of {name}/{weights} are not in the local cache; the worker will "
                "fetch them, which needs a network."
            )


def _path_of(uri: str) -> str | None:
    """The path that a suite or a shift is read from, where its name holds one."""
    if uri.startswith("folder:"):
        return uri.removeprefix("folder:")
    try:
        path = parse_suite_id(uri).path
    except SpecError:
        return None  # nothing is read by a name that no suite has
    return None if path is None else str(path)


def _folder(uri: str) -> Path:
    return Path(uri.removeprefix("folder:")).expanduser()


def count_images(root: Path) -> int:
    """Images under a folder, by their endings; counting stops at 200,000."""
    count = 0
    try:
        for path in root.rglob("*"):
            if path.suffix.lower() in _IMAGE_SUFFIXES:
                count += 1
                if count >= _SCAN_CAP:
                    break
    except OSError:
        return count
    return count
