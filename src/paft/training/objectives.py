"""What is minimised: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that carries no loss (the convention of torch and transformers)."""


def completion_nll(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Sum of the negative log-likelihood of the labelled tokens, in nats; a scalar, computed in float32.

    logits_BTV predict the *next* token: position t is compared with labels_BT[:, t + 1]. Labels of IGNORED carry no loss.
    """
    logits = logits_BTV[:, :-1].float().reshape(-1, logits_BTV.shape[-1])
    return torch.nn.functional.cross_entropy(
        logits, labels_BT[:, 1:].reshape(-1), ignore_index=IGNORED, reduction="sum"
    )
