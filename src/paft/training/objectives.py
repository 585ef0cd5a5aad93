"""What is minimised: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that carries no loss (the convention of torch and transformers)."""


def token_nll(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """Negative log-likelihood of each answer token, in nats: nll_M, computed in float32."""
    return torch.nn.functional.cross_entropy(logits_MV.float(), targets_M, reduction="none")
