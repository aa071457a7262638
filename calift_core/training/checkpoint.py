"""Checkpoints: safetensors and JSON, written whole or not at all, verified before they are used.

A run's `checkpoint/` folder::

    model.safetensors, classifier.safetensors, model.json    the finished model
    steps/00000120/                                          where a stopped run goes on
        model.safetensors  method.safetensors  optimizer.safetensors  state.json  manifest.json

`manifest.json` is written last and holds the SHA-256 of every other file; the folder appears under
its name by one rename.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calift_core.errors import CheckpointError, DiskFullError, StorageError
from calift_core.files import atomic_path, atomic_write_json, sha256_file, sync_folder

FORMAT = 1
_FILES = {
    "model.safetensors",
    "method.safetensors",
    "optimizer.safetensors",
    "rng.safetensors",
    "state.json",
}


@dataclass
class TrainState:
    """Everything that a resumed run needs to end as if it had not stopped.

    Attributes:
        spec_sha256: of the spec that the run was started with.
        modules: name → state dict of each trainable module.
        method: tensors of the method beside them (the teacher).
        optimizer: `torch.optim.Optimizer.state_dict()`.
        scaler: `GradScaler.state_dict()`, empty without one.
        made: how the model is made beside its weights (`ModelConfig.described()`).
    """

    step: int
    spec_sha256: str
    modules: dict[str, dict[str, Tensor]]
    method: dict[str, Tensor]
    optimizer: dict[str, Any]
    model_config: dict[str, Any]
    scaler: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Tensor] = field(default_factory=dict)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU: safetensors refuses shared and strided storage."""
    return {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one safetensors file, atomically.

    Raises:
        DiskFullError: no space is left; nothing is torn.
        StorageError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        _write_tensors(temporary, tensors)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file(_plain(tensors), path)
    except SafetensorError as error:
        text = str(error)
        if "No space left" in text or f"os error {errno.ENOSPC}" in text:
            raise DiskFullError(f"no space is left to write {path.name}") from None
        raise StorageError(f"cannot write {path.name}: {text}") from None


def save_state(folder: Path, state: TrainState, *, keep: int) -> Path:
    """Save a state under `folder/steps`; drop the oldest beyond `keep`, and all of later steps.

    What is there of a later step was found damaged when this run went on from an earlier one.

    Returns:
        The checkpoint's folder.

    Raises:
        DiskFullError: no space is left; earlier checkpoints are untouched.
    """
    steps = folder / "steps"
    final = steps / f"{state.step:08d}"
    temporary = steps / f".{state.step:08d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        flat = {f"{m}/{k}": t for m, s in state.modules.items() for k, t in s.items()}
        tensors, groups = _flatten_optimizer(state.optimizer)
        _write_tensors(temporary / "model.safetensors", flat)
        _write_tensors(temporary / "method.safetensors", state.method)
        _write_tensors(temporary / "optimizer.safetensors", tensors)
        _write_tensors(temporary / "rng.safetensors", state.rng)
        body = {
            "format": FORMAT,
            "step": state.step,
            "spec_sha256": state.spec_sha256,
            "param_groups": groups,
            "scaler": state.scaler,
            "made": state.model_config,
        }
        (temporary / "state.json").write_text(json.dumps(body))
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        hashes = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        atomic_write_json(temporary / "manifest.json", hashes)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(steps)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space is left for the checkpoint of step {state.step}",
                hint="Free some space and start the run again: it goes on where it was.",
            ) from None
        raise StorageError(f"cannot write the checkpoint of step {state.step}: {error}") from error
    except (DiskFullError, StorageError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    there = _step_folders(folder)
    until_now = [path for path in there if int(path.name) <= state.step]
    for stale in {*there} - {*until_now[-keep:]}:
        shutil.rmtree(stale, ignore_errors=True)
    return final


def _step_folders(folder: Path) -> list[Path]:
    steps = folder / "steps"
    if not steps.is_dir():
        return []
    return sorted(p for p in steps.iterdir() if p.is_dir() and p.name.isdigit())


def _flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    tensors: dict[str, Tensor] = {}
    for index, entry in state["state"].items():
        for key, value in entry.items():
            tensors[f"{index}.{key}"] = torch.as_tensor(value)
    return tensors, state["param_groups"]


def load_state(path: Path) -> TrainState:
    """Read one checkpoint folder, every file checked against the manifest.

    Raises:
        CheckpointError: a file is missing, changed or unreadable.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if set(manifest) != _FILES:
            raise CheckpointError(
                f"{path.name}/manifest.json names {sorted(manifest)}, expected {sorted(_FILES)}"
            )
        for name, expected in manifest.items():
            if sha256_file(path / name) != expected:
                raise CheckpointError(f"{path.name}/{name} does not match its checksum")
        body = json.loads((path / "state.json").read_text())
        if body["format"] != FORMAT:
            raise CheckpointError(f"{path.name} has format {body['format']}, expected {FORMAT}")
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in load_file(path / "model.safetensors").items():
            module, _, key = name.partition("/")
            modules.setdefault(module, {})[key] = tensor
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load_file(path / "optimizer.safetensors").items():
            index, _, key = name.partition(".")
            # A copy: the optimiser keeps these very tensors, and would keep the mapped file too.
            entries.setdefault(int(index), {})[key] = tensor.clone()
        return TrainState(
            step=body["step"],
            spec_sha256=body["spec_sha256"],
            modules=modules,
            method=load_file(path / "method.safetensors"),
            optimizer={"state": entries, "param_groups": body["param_groups"]},
            scaler=body["scaler"],
            rng=load_file(path / "rng.safetensors"),
            model_config=body["made"],
        )
    except (
        OSError,
        StorageError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise CheckpointError(f"the checkpoint {path.name} cannot be read: {error}") from error


def newest_state(folder: Path, *, spec_sha256: str) -> tuple[TrainState | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each that did not.

    Args:
        folder: holds `steps`.

    Raises:
        CheckpointError: a good checkpoint belongs to another spec.
    """
    problems: list[str] = []
    for path in reversed(_step_folders(folder)):
        try:
            state = load_state(path)
        except CheckpointError as error:
            problems.append(error.message)
            continue
        if state.spec_sha256 != spec_sha256:
            raise CheckpointError(
                f"the checkpoint of step {state.step} belongs to another RunSpec",
                hint="Give another --out folder, or --overwrite to start anew.",
            )
        return state, problems
    return None, problems


def drop_states(folder: Path) -> None:
    """Remove the resumable states: the run has finished."""
    shutil.rmtree(folder / "steps", ignore_errors=True)


def save_final(
    folder: Path, net: nn.Module, classifier: Mapping[str, Tensor], description: dict[str, Any]
) -> None:
    """Write the finished model: weights, classifier and how to build it again."""
    save_tensors(folder / "model.safetensors", net.state_dict())
    save_tensors(folder / "classifier.safetensors", classifier)
    atomic_write_json(folder / "model.json", description)
