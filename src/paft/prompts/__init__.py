"""How it is asked: templates, prompt sets, and how alike prompts are. `library/` holds the sets that ship."""

from paft.prompts.auditing import Selection, audit
from paft.prompts.sets import ALL_SPLITS, SPLITS, PromptSet, PromptSplit, shipped_sets
from paft.prompts.template import Template

__all__ = [
    "ALL_SPLITS",
    "SPLITS",
    "PromptSet",
    "PromptSplit",
    "Selection",
    "Template",
    "audit",
    "shipped_sets",
]
