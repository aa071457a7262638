"""BatchNorm where several processes share a batch."""

from typing import Any

import torch
from timm.layers import norm_act
from torch import nn

from calift_core.errors import ModelError
from calift_core.models.clip import Clip


def share_batch_norm(clip: Clip, device: torch.device) -> None:
    """Let BatchNorm normalise by the statistics of all ranks' images, as one process would.

    Names and values of the weights stay as they are. Towers without BatchNorm stay as they are.

    Raises:
        ModelError: there is BatchNorm, and torch shares its statistics on CUDA devices only.
    """
    net: Any = clip.net
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()):
        return
    if device.type != "cuda":
        raise ModelError(
            f"{clip.name} has BatchNorm, and torch shares its statistics among processes on CUDA "
            f"devices only (SyncBatchNorm), not on {device.type}: each process would normalise by "
            "its own share of the batch",
            hint="Set train.batch_norm: frozen, or take one process.",
        )
    # torch's own would lose the activations that timm keeps in its BatchNorm.
    convert: Any = norm_act.convert_sync_batchnorm
    clip.net = convert(net)
