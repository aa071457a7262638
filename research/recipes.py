"""Which recipes are compared: the primary family, and the paper's claims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

#: The row that nothing is trained for.
ZERO_SHOT = "zero-shot"

Recipe = tuple[str, str, str]

#: The recipes of the primary family, and what each is compared with.
CANDIDATES: tuple[Recipe, ...] = (
    ("ft", "path", "ensemble"),
    ("flyp", "path", "ensemble"),
    ("carot", "path", "ensemble"),
    ("tracer", "path", "ensemble"),
    ("ft", "end", "ensemble"),
    ("flyp", "end", "ensemble"),
    ("flyp", "path", "published"),
    ("flyp", "end", "published"),
    ("carot", "end", "published"),
    (ZERO_SHOT, "end", "published"),
)
REFERENCES: tuple[Recipe, ...] = (("tracer", "end", "published"), ("tracer", "end", "ensemble"))


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper that an interval can speak of.

    Attributes:
        text: the sentence.
        a: the recipe that it is about.
        b: the one that it is compared with.
        what: number of `NUMBERS`.
        below: whether a is said to be below b.
    """

    text: str
    a: Recipe
    b: Recipe
    what: str
    below: bool


def _claims() -> Iterator[Claim]:
    flyp, carot = ("flyp", "end"), ("carot", "end")
    raw, warm = ("raw",), ("temperature",)
    yield Claim("CaRot: higher OOD accuracy than FLYP", carot + raw, flyp + raw, "accuracy", False)
    yield Claim("CaRot: lower OOD ECE than FLYP, raw", carot + raw, flyp + raw, "ece", True)
    yield Claim("CaRot: lower OOD ECE, after a temperature", carot + warm, flyp + warm, "ece", True)
    yield Claim("CaRot: lower OOD NLL than FLYP, raw", carot + raw, flyp + raw, "nll", True)
    yield Claim("CaRot: lower OOD NLL, after a temperature", carot + warm, flyp + warm, "nll", True)
    for name, term in (("carot-oc", "λ_OC"), ("carot-sd", "λ_SD")):
        alone = (name, "end", "raw")
        yield Claim(f"{term} alone lowers OOD ECE", alone, flyp + raw, "ece", True)
        yield Claim(f"both lower OOD ECE more than {term} alone", carot + raw, alone, "ece", True)


CLAIMS = tuple(_claims())
#: Every recipe that an interval is asked of.
COMPARED = frozenset((*CANDIDATES, *REFERENCES, *(c.a for c in CLAIMS), *(c.b for c in CLAIMS)))
