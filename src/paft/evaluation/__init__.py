"""Filling the grid and reducing it: evaluate, score matrices, estimates with intervals. No torch here."""

from paft.evaluation.evaluate import Evaluation, evaluate
from paft.evaluation.matrix import ScoreMatrix
from paft.evaluation.stats import Comparison, Estimate, compare

__all__ = ["Comparison", "Estimate", "Evaluation", "ScoreMatrix", "compare", "evaluate"]
