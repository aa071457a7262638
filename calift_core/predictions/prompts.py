"""The classifiers that other prompts make of a model, read without torch."""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calift_core.errors import PredictionsError, SpecError, UnknownNameError
from calift_core.files import storage_error

#: Name of the file in a finished model's folder.
PROMPTS = "prompts.npz"
#: Samples whose logits are made at once.
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class PromptHeads:
    """H classifiers of C classes on features of width D.

    Attributes:
        names: H names: `own`, named sets of templates, single templates.
        heads: (H, C, D) float16, L2-normalised rows.
        scale: the logit scale.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    heads: npt.NDArray[np.float16]
    scale: float

    def logits(
        self, name: str, features: npt.NDArray[np.float16], class_names: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """Logits (N, K) under other prompts.

        Args:
            features: (N, D), L2-normalised.
            class_names: K of the C classes, in the order of the logits.

        Raises:
            UnknownNameError: there are no prompts of that name.
            SpecError: the features are of another model, or a class is of several prompts.
        """
        if name not in self.names:
            raise UnknownNameError("prompts", name, list(self.names))
        if features.shape[1] != self.heads.shape[2]:
            raise SpecError(
                f"features must have the width of the text tower, {self.heads.shape[2]}, got "
                f"{features.shape[1]}"
            )
        place = {known: at for at, known in enumerate(self.class_names)}
        strange = [known for known in class_names if known not in place]
        if strange:
            raise SpecError(
                f"other prompts need a class of the model's own for each of the data set's, got "
                f"{strange[0]!r}.",
                hint="Data whose classes each stand for several of the model's are evaluated with "
                "the run's own prompts.",
            )
        rows = self.heads[self.names.index(name)][[place[known] for known in class_names]]
        head = rows.astype(np.float32).T * np.float32(self.scale)
        found = np.empty((len(features), head.shape[1]), np.float32)
        for at in range(0, len(features), _ROWS):
            np.matmul(
                features[at : at + _ROWS].astype(np.float32), head, out=found[at : at + _ROWS]
            )
        return found


def read_prompts(path: str | os.PathLike[str]) -> PromptHeads:
    """Read what `save_prompts` wrote.

    Raises:
        PredictionsError: the file is damaged.
        StorageError: it cannot be opened.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            names, classes = file["names"], file["classes"]
            heads, scale = file["heads"], float(file["scale"])
    except OSError as error:
        raise storage_error(error, path, "read") from error
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise PredictionsError(f"{os.fspath(path)} is damaged: {error}") from error
    shape = (len(names), len(classes)) if names.ndim == classes.ndim == 1 else None
    if heads.dtype != np.float16 or heads.ndim != 3 or heads.shape[:2] != shape:
        raise PredictionsError(
            f"{os.fspath(path)} is damaged: heads must be float16 of {shape} and a width, got "
            f"{heads.dtype} of {heads.shape}"
        )
    return PromptHeads(tuple(names.tolist()), tuple(classes.tolist()), heads, scale)
