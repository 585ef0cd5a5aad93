"""What is minimised: pure functions of tensors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that carries no loss (the convention of torch and transformers)."""


def token_nll(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """Negative log-likelihood of each answer token, in nats: nll_M, computed in float32."""
    return torch.nn.functional.cross_entropy(logits_MV.float(), targets_M, reduction="none")


def divergence(logits_AV: Tensor, logits_BV: Tensor, kind: Literal["jsd", "kl"]) -> Tensor:
    """How far two predictions of the same token lie apart, in nats, for each of A = B places; 0 where they are equal.

    jsd: Jensen-Shannon, at most log 2, as PPCL (arXiv 2402.15833) uses it between a clean and a perturbed prompt. kl: the mean
    of both directions of Kullback-Leibler, as R-Drop (arXiv 2106.14448) uses it between two passes. Gradients go to both sides.
    """
    a_AV, b_AV = logits_AV.float().log_softmax(-1), logits_BV.float().log_softmax(-1)
    if kind == "jsd":
        middle_AV = torch.logaddexp(a_AV, b_AV) - math.log(2)
        return ((a_AV.exp() * (a_AV - middle_AV)).sum(-1) + (b_AV.exp() * (b_AV - middle_AV)).sum(-1)) / 2
    return ((a_AV.exp() - b_AV.exp()) * (a_AV - b_AV)).sum(-1) / 2


def advantages(rewards_BG: torch.Tensor) -> torch.Tensor:
    """advantages_BG: each reward less the mean of its group, in standard deviations (n-1) of the group plus 1e-4 (GRPO, arXiv
    2402.03300, section 4.1.2, as trl computes it)."""
    centred_BG = rewards_BG - rewards_BG.mean(1, keepdim=True)
    return centred_BG / (rewards_BG.std(1, keepdim=True) + 1e-4)
