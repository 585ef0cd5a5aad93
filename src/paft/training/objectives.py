"""What is minimised: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that carries no loss (the convention of torch and transformers)."""


def completion_nll(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum of the negative log-likelihood of the targets, in nats; a scalar, computed in float32.

    targets_BT[b, t] is the token to be predicted from position t (already shifted); IGNORED carries no loss.
    """
    logits = logits_BTV.float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")
