"""The forgetting case: letters and weights of the second study, whose captions were exact.

    python -m research.forgetting --out FOLDER

`research/exact` holds both as they were shipped. FOLDER/weights/letters-exact-0 gets the weights in
full, as fine-tuning takes them; the suite is `typefaces:research/exact`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from calift_core.models.loading import TINY, load_clip, load_shipped
from research.benches import EXACT


def main() -> None:
    """Read the arguments, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    folder = parser.parse_args().out / "weights" / "letters-exact-0"
    clip = load_clip(TINY, None, generator=torch.Generator().manual_seed(0))
    load_shipped(clip.net, EXACT / "calift_tiny_typefaces.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in clip.net.state_dict().items()}, folder / "model.safetensors"
    )


if __name__ == "__main__":
    sys.exit(main())
