"""Class names × templates, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from calift_core.models.clip import Tokenizer


@dataclass(frozen=True)
class Captions:
    """A finite set of captions, class × template, tokenised once.

    Attributes:
        templates: P sentences with one `{}`.
        tokens: (C·P, L); caption `c * P + p` is template p with class c.
        cache: folder that keeps the classifiers made of these captions, None to keep none.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    tokens: Tensor = field(repr=False)
    cache: Path | None = None

    @classmethod
    def make(
        cls,
        class_names: Sequence[str],
        templates: Sequence[str],
        tokenizer: Tokenizer,
        *,
        cache: Path | None = None,
    ) -> Captions:
        """Tokenise every template with every class name."""
        texts = [template.format(name) for name in class_names for template in templates]
        tokens = torch.cat([tokenizer(texts[i : i + 1024]) for i in range(0, len(texts), 1024)])
        return cls(tuple(class_names), tuple(templates), tokens, cache)

    def __len__(self) -> int:
        return len(self.tokens)
