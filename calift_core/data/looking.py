"""The process that looks through somebody's data for the service. Torch-free.

`python -m calift_core.data.looking MEMORY_BYTES` answers in JSON: `copies` with a SuiteSpec decodes
every image once and gives a `SuiteCopies`; `zip` with a file and its most files reads the table of
a zip and gives how many classes and images it has.
"""

import json
import sys
from pathlib import Path

from calift_core.child_process import answer_all, limit
from calift_core.data.duplicates import between, perceptual_hashes
from calift_core.data.suites.load import load_suite
from calift_core.data.suites.zips import examine
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


def answer(question: bytes) -> bytes:
    """What was found, as JSON.

    Raises:
        CaliftError: the data cannot be used.
    """
    request = json.loads(question)
    if "zip" in request:
        n_classes, images = examine(Path(request["zip"]), max_files=request["max_files"])
        return json.dumps({"n_classes": n_classes, "images": images}).encode()
    return copies_in(SuiteSpec.model_validate(request["copies"])).model_dump_json().encode()


if __name__ == "__main__":
    limit(int(sys.argv[1]))
    answer_all(b"{}", answer)
