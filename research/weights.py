"""The letters' weights that runs start from, in full, from what the repository holds of them.

    python -m research.weights --out FOLDER                     # FOLDER/weights/letters-0, ...
    python -m research.weights --out FOLDER --keep 1            # a new pre-training's, into it

The first pre-training is what ships with calift, the second lies in `research/weights`, the
forgetting case (exact captions, as shipped before) in `research/exact`. All are float16 with the
rows of the token embedding that captions use, so that a study goes on from the very same numbers
wherever it is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from calift_core.models.loading import TINY, load_clip, load_shipped, weights_sha256
from calift_core.packaged import packaged
from research.benches import EXACT

NAME = "calift_tiny_typefaces.safetensors"
KEPT = Path(__file__).with_name("weights")


def stored() -> dict[str, Path]:
    """What runs start from → its file."""
    shipped = packaged("typefaces")
    assert shipped is not None
    return {
        "letters-0": shipped.file,
        "letters-1": KEPT / "letters-1.safetensors",
        "letters-exact-0": EXACT / NAME,
    }


def main() -> None:
    """Read the arguments, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", help="pre-training of --out that is kept in research/weights")
    options = parser.parse_args()
    if options.keep:
        KEPT.mkdir(exist_ok=True)
        made = options.out / "weights" / f"letters-{options.keep}" / NAME
        shutil.copy(made, KEPT / f"letters-{options.keep}.safetensors")
    for name, file in stored().items():
        if not file.is_file():
            print(f"{name}: not made yet")
            continue
        clip = load_clip(TINY, None, generator=torch.Generator().manual_seed(0))
        load_shipped(clip.net, file)
        folder = options.out / "weights" / name
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in clip.net.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        print(f"{name}: {weights_sha256(clip.net)}")


if __name__ == "__main__":
    sys.exit(main())
