"""Prompt-Agnostic Fine-Tuning: models that keep their accuracy when the prompt is worded differently, and the proof.

    task = paft.load_task("sst2-demo")
    prompts = paft.PromptSet.load("sst2")
    model = paft.load_model("HuggingFaceTB/SmolLM2-135M-Instruct")

Each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paft.build import build_prompts
    from paft.config import (
        BuildConfig,
        EvalConfig,
        FixedSchedule,
        GRPOConfig,
        PaftSchedule,
        RunConfig,
        ServerConfig,
        SFTConfig,
    )
    from paft.errors import PaftError
    from paft.evaluation import Comparison, Estimate, Evaluation, ScoreMatrix, compare, evaluate
    from paft.grid import Cell, Grid
    from paft.lm.hf import HFModel, load_model
    from paft.lm.server import open_server
    from paft.prompts import PromptSet, Template, audit
    from paft.tasks import Example, Task, load_task
    from paft.training.grpo import train_grpo
    from paft.training.sft import train_sft

__version__ = "0.1.0"

_HOME = {
    "paft.build": ("build_prompts",),
    "paft.config": (
        "BuildConfig",
        "EvalConfig",
        "FixedSchedule",
        "GRPOConfig",
        "PaftSchedule",
        "RunConfig",
        "SFTConfig",
        "ServerConfig",
    ),
    "paft.errors": ("PaftError",),
    "paft.evaluation": ("Comparison", "Estimate", "Evaluation", "ScoreMatrix", "compare", "evaluate"),
    "paft.grid": ("Cell", "Grid"),
    "paft.lm.hf": ("HFModel", "load_model"),
    "paft.lm.server": ("open_server",),
    "paft.prompts": ("PromptSet", "Template", "audit"),
    "paft.tasks": ("Example", "Task", "load_task"),
    "paft.training.grpo": ("train_grpo",),
    "paft.training.sft": ("train_sft",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BuildConfig",
    "Cell",
    "Comparison",
    "Estimate",
    "EvalConfig",
    "Evaluation",
    "Example",
    "FixedSchedule",
    "GRPOConfig",
    "Grid",
    "HFModel",
    "PaftError",
    "PaftSchedule",
    "PromptSet",
    "RunConfig",
    "SFTConfig",
    "ScoreMatrix",
    "ServerConfig",
    "Task",
    "Template",
    "audit",
    "build_prompts",
    "compare",
    "evaluate",
    "load_model",
    "load_task",
    "open_server",
    "train_grpo",
    "train_sft",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'paft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
