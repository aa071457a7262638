"""What "Try a picture" says of a threshold."""

from __future__ import annotations

import pytest

from calift_core.schema.wire.answers import KeptAt, TriedPicture
from frontend.text import kept_words


@pytest.mark.parametrize(
    ("threshold", "kept", "said"),
    [
        (0.83, True, "kept: the least kept is 83.0\u00a0%"),
        (0.83, False, "abstains: the least kept is 83.0\u00a0%"),
        (0.0, True, "kept, as every answer is: that makes at most 5.0\u00a0% errors"),
        (0.25, True, "kept, as every answer is: that makes at most 5.0\u00a0% errors"),
        (None, None, "abstains: at most 5.0\u00a0% errors cannot be promised"),
    ],
)
def test_verdict__says_what_a_threshold_does(
    threshold: float | None, kept: bool | None, said: str
) -> None:
    at = KeptAt(risk=0.05, threshold=threshold, kept=kept)
    assert kept_words(TriedPicture.model_construct(n_classes=4, kept=[at]), 0.05) == said


def test_verdict__without_a_validation_part_there_is_no_threshold() -> None:
    told = kept_words(TriedPicture.model_construct(n_classes=4, kept=[]), 0.05)
    assert told == "no threshold: no ID validation part"
