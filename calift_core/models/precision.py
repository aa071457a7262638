"""On which device, and in which number format."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """`auto` is the first of CUDA, MPS and CPU that is here."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_precision(name: str, device: torch.device) -> Precision:
    """`auto` is bf16, else fp16, on a CUDA device, and fp32 elsewhere; so is `tf32` elsewhere."""
    if device.type != "cuda" and name in ("auto", "tf32"):
        return "fp32"
    if name != "auto":
        return name  # type: ignore[return-value]
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Mixed precision for forward passes; nothing in fp32."""
    if precision == "fp32":
        return nullcontext()
    if precision == "tf32":
        return _tf32()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


@contextmanager
def _tf32() -> Iterator[None]:
    """float32 whose products are rounded to 10 bits of mantissa, by a CUDA device's fast units."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
