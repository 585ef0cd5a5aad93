"""Weights of clusters of prompts that follow their losses: for what is drawn (adaptive schedule), for what counts (worst case)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from paft.config import CVaRConfig, GroupDROConfig
from paft.errors import ConfigError
from paft.prompts import Template
from paft.prompts.structure import clusters


class ClusterWeights(ABC):
    """Weights of clusters of prompts in the loss, learned from the losses of the updates that are over.

    share_C: share of the prompts in each cluster, which is how often a uniform schedule draws it. `weight_C` has the mean 1
    under `share_C`, so that the loss keeps its size; before the first update all are 1: plain PAFT.
    """

    def __init__(self, cluster_K: Sequence[int], names: Sequence[str], share: float):
        counts = Counter(cluster_K)
        self.cluster_K, self.names, self.share = tuple(cluster_K), tuple(names), share
        self.share_C = tuple(counts[c] / len(cluster_K) for c in range(len(counts)))

    @property
    def weight_C(self) -> tuple[float, ...]:
        """1 - share + share x the weights of the worst case alone."""
        return tuple(1 - self.share + self.share * worst for worst in self.worst_C())

    @abstractmethod
    def worst_C(self) -> Sequence[float]:
        """Weights of the worst case alone, the mean 1 under `share_C`."""

    @abstractmethod
    def learn(self, loss_C: Mapping[int, float]) -> None:
        """Take in the mean losses, in nats per answer token, of the clusters that an update held."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""


class GroupDRO(ClusterWeights):
    """Exponentiated gradient ascent on the mixture of clusters (Sagawa et al., arXiv 1911.08731, Algorithm 1).

    q_c is multiplied by exp(step_size x loss_c / (C share_c)): a cluster that is drawn less often counts more each time, so that
    the expected step is that of clusters drawn equally often. A row of cluster c weighs q_c / share_c.
    """

    def __init__(self, cluster_K: Sequence[int], names: Sequence[str], config: GroupDROConfig):
        super().__init__(cluster_K, names, config.share)
        self.step_size = config.step_size
        self.log_q_C = [math.log(share) for share in self.share_C]

    def worst_C(self) -> Sequence[float]:
        """q_c / share_c."""
        return [math.exp(log_q) / share for log_q, share in zip(self.log_q_C, self.share_C, strict=True)]

    def learn(self, loss_C: Mapping[int, float]) -> None:
        """One step of ascent."""
        for c, loss in sorted(loss_C.items()):
            self.log_q_C[c] += self.step_size * loss / (len(self.share_C) * self.share_C[c])
        top = max(self.log_q_C)
        total = top + math.log(sum(math.exp(log_q - top) for log_q in self.log_q_C))
        self.log_q_C = [log_q - total for log_q in self.log_q_C]

    def state(self) -> dict[str, Any]:
        """log q."""
        return {"log_q_C": self.log_q_C}

    def load(self, state: Mapping[str, Any]) -> None:
        """log q."""
        self.log_q_C = list(state["log_q_C"])


class CVaR(ClusterWeights):
    """The mean loss of the worst clusters that make up a share `alpha` of the prompts (Rockafellar and Uryasev, 2000), by running
    losses. A cluster inside weighs 1 / alpha, the one on the edge what is left, the others nothing; 1 each until all have a loss.
    """

    def __init__(self, cluster_K: Sequence[int], names: Sequence[str], config: CVaRConfig):
        super().__init__(cluster_K, names, config.share)
        self.alpha, self.memory = config.alpha, config.memory
        self.loss_C: dict[int, float] = {}

    def worst_C(self) -> Sequence[float]:
        """Filled from the worst cluster down."""
        worst_C = [1.0] * len(self.share_C)
        if len(self.loss_C) == len(worst_C):
            left = self.alpha
            for c in sorted(self.loss_C, key=lambda c: (-self.loss_C[c], c)):
                taken = min(left, self.share_C[c])
                worst_C[c] = taken / (self.alpha * self.share_C[c])
                left -= taken
        return worst_C

    def learn(self, loss_C: Mapping[int, float]) -> None:
        """Move the running losses."""
        for c, loss in sorted(loss_C.items()):
            self.loss_C[c] = running(self.loss_C.get(c), loss, self.memory)

    def state(self) -> dict[str, Any]:
        """Running losses."""
        return {"loss_C": self.loss_C}

    def load(self, state: Mapping[str, Any]) -> None:
        """Running losses."""
        self.loss_C = {int(c): loss for c, loss in state["loss_C"].items()}


def running(before: float | None, now: float, memory: float) -> float:
    """Exponential mean that starts at its first value."""
    return now if before is None else memory * before + (1 - memory) * now


def worst_case(config: GroupDROConfig | CVaRConfig, templates: Sequence[Template]) -> ClusterWeights:
    """The learner of the weights that a configuration asks for. Raises ConfigError where there is one cluster only."""
    names, cluster_K = clusters(templates, config.by)
    if len(names) < 2:
        raise ConfigError(
            f"objective.worst: all {len(cluster_K)} train prompts are of one {config.by} ({names[0]}); choose another `by`, "
            "for instance by: prompt"
        )
    if isinstance(config, GroupDROConfig):
        return GroupDRO(cluster_K, names, config)
    return CVaR(cluster_K, names, config)


def cluster_weights(
    cluster_K: Sequence[int], loss_C: Mapping[int, float], floor: float, cap: float
) -> tuple[float, ...]:
    """Share of the prompts x clip(loss / mean loss, floor, cap), the mean over prompts; a cluster without a loss counts as average."""
    counts = Counter(cluster_K)
    known = {cluster: loss for cluster, loss in loss_C.items() if math.isfinite(loss)}
    mean = sum(counts[c] * loss for c, loss in known.items()) / max(1, sum(counts[c] for c in known))
    ratio = {c: min(cap, max(floor, loss / mean)) if mean > 0 else 1.0 for c, loss in known.items()}
    return tuple(counts[c] / len(cluster_K) * ratio.get(c, 1.0) for c in range(len(counts)))
