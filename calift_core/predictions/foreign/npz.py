"""Predictions in an NPZ file. Nothing is unpickled."""

import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from calift_core.errors import PredictionsError
from calift_core.files import storage_error
from calift_core.predictions.foreign.source import (
    Array,
    ForeignSource,
    damaged_file,
    json_of,
    pick_kind,
    too_large,
)


def read_npz(path: Path, max_bytes: int) -> ForeignSource:
    """What an NPZ file holds.

    Raises:
        PredictionsError: it is too large, damaged or lacks an array.
    """
    known = {"labels", "probs", "logits", "ids", "class_names", "clusters", "calift"}
    try:
        with zipfile.ZipFile(path) as archive:
            members: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in members:
                    raise PredictionsError(f"{path} must name each array once, got {name!r} twice")
                members[name] = info
            kind = pick_kind(path, "probs" in members, "logits" in members, list(members))
            if "labels" not in members:
                raise PredictionsError(
                    f"{path} must hold the array labels, got {', '.join(list(members)[:12])}"
                )
            declared = sum(members[name].file_size for name in known & members.keys())
            if declared > max_bytes:
                raise too_large(path, declared, max_bytes)
            arrays = {n: _read_member(archive, n, members[n]) for n in known & members.keys()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise damaged_file(path, "NPZ", error) from error
    except OSError as error:
        raise storage_error(error, path, "read") from error
    names = arrays.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise PredictionsError(
            f"class_names must be strings of shape (C,), got {names.dtype} of shape {names.shape}"
        )
    described = arrays.get("calift")
    if described is not None and (described.ndim != 0 or described.dtype.kind != "U"):
        raise PredictionsError(f"calift must be one string, got {described.dtype}")
    return ForeignSource(
        labels=arrays["labels"],
        values=arrays[kind],
        kind=kind,
        ids=arrays.get("ids"),
        clusters=arrays.get("clusters"),
        class_names=None if names is None else [str(name) for name in names],
        described=None if described is None else json_of(path, str(described)),
    )


def _read_member(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Array:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PredictionsError(
            f"{name} must be stored or deflated, got compression {info.compress_type}"
        )
    try:
        with archive.open(info) as member:  # a ValueError: its own name is no UTF-8
            return _read_npy(name, member, info.file_size)
    except ValueError as error:
        raise PredictionsError(f"{name} must be a NumPy array, got: {error}") from error


def _read_npy(name: str, member: IO[bytes], size: int) -> Array:
    """Read an array whose header was found to fit the declared size; never an object."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(member)
    else:
        raise ValueError(f"format version {version[0]}.{version[1]}")
    if dtype.hasobject or dtype.kind not in "biufU":
        raise PredictionsError(
            f"{name} must be numbers or strings, got {dtype}.",
            hint="Arrays of Python objects would be unpickled, which calift never does; "
            "numpy.array(names, dtype=str) makes strings.",
        )
    wanted = dtype.itemsize
    for length in shape:
        wanted *= length
    held = size - member.tell()
    if wanted != held or any(length < 0 for length in shape):
        raise PredictionsError(
            f"{name} must hold the {wanted:,} bytes of its shape {shape}, its member has {held:,}"
        )
    data = member.read(wanted)
    if len(data) != wanted:
        raise PredictionsError(f"{name} must hold {wanted:,} bytes, got {len(data):,}")
    if not wanted:
        raise PredictionsError(f"{name} must not be empty, got shape {shape}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
