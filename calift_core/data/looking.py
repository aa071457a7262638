"""The process that looks through somebody's data for the service. Torch-free.

::

    python -m calift_core.data.looking MEMORY_BYTES copies SUITE       a SuiteSpec as JSON
    python -m calift_core.data.looking MEMORY_BYTES zip FILE MOST_FILES

`copies` decodes every image once and says a `SuiteCopies` as JSON on its last line; `zip` reads the
table of a zip and says how many classes and images it has. Both say `{"error": …}` where they fail.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from calift_core.data.duplicates import between, perceptual_hashes
from calift_core.data.suites.load import load_suite
from calift_core.data.suites.zips import examine
from calift_core.errors import CaliftError
from calift_core.schema.suite import SuiteSpec
from calift_core.schema.wire.service import Copies, SuiteCopies

#: Pairs of each overlap that are named.
_SHOWN = 5
#: Unreadable images that are.
_UNREADABLE = 1000


def copies_in(spec: SuiteSpec) -> SuiteCopies:
    """What `calift data inspect` finds of copies and of images that cannot be decoded.

    Raises:
        CaliftError: the suite cannot be loaded.
    """
    suite = load_suite(spec, fetch=False, check=False)
    sets = {name: images for name, images in (suite.parts | suite.shifts).items() if len(images)}
    seen = {name: perceptual_hashes(images) for name, images in sets.items()}
    unreadable = [sentence for one in seen.values() for sentence in one.unreadable]
    found = [
        Copies(
            name=o.name,
            other=o.other,
            n=o.n,
            exact=len(o.exact),
            near=len(o.near),
            sentence=f"{o.sentence}.",
            examples=list((o.exact + o.near)[:_SHOWN]),
        )
        for o in between(seen, suite.shifts)
        if o.ids
    ]
    return SuiteCopies(
        suite=spec.id,
        looked_at={name: len(images) for name, images in sets.items()},
        copies=found,
        n_unreadable=len(unreadable),
        unreadable=unreadable[:_UNREADABLE],
    )


def _zip(words: Sequence[str]) -> str:
    n_classes, images = examine(Path(words[0]), max_files=int(words[1]))
    return json.dumps({"n_classes": n_classes, "images": images})


def _copies(words: Sequence[str]) -> str:
    return copies_in(SuiteSpec.model_validate_json(words[0])).model_dump_json()


_LOOKS = {"copies": _copies, "zip": _zip}


def main(argv: list[str]) -> None:
    """Limit this process, look, and say what was found."""
    import resource

    memory, kind, *words = argv
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers, sys.stdout = sys.stdout, sys.stderr
    try:
        said = _LOOKS[kind](words)
    except MemoryError:
        said = json.dumps({"error": "it takes more memory than it may", "hint": ""})
    except CaliftError as error:
        said = json.dumps({"error": error.message, "hint": error.hint})
    answers.write(f"{said}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
