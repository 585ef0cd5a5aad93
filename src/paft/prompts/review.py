"""What a person decides about doubtful prompts, in a file that can be edited and is applied again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paft.config import dump_yaml, load_mapping
from paft.errors import PromptSetError
from paft.prompts.auditing import OPEN_TO_REVIEW, Decision, Selection
from paft.prompts.template import Template, template_to

_HEAD = """\
# Prompts that were left out for what they say, not for how they are made. Write `decision: keep` to let one in or
# `decision: drop` to keep it out for good, and run the same command again: nothing is asked or paid for twice. A prompt of the
# set that you do not want is dropped by an entry of its id and `decision: drop`.
"""


def review_text(selection: Selection, decisions: Mapping[str, Decision]) -> str:
    """The file's text: every template with a fault of OPEN_TO_REVIEW only, and every one decided upon."""
    entries, seen = [], set()
    for template, faults in [*selection.dropped, *((template, ()) for template in selection.kept)]:
        doubts = {fault.name: fault.reason for fault in faults}
        if template.id in decisions or (doubts and set(doubts) <= OPEN_TO_REVIEW):
            entries.append(_entry(template, decisions.get(template.id), doubts))
            seen.add(template.id)
    gone: list[dict[str, Any]] = [
        {"id": each, "decision": word} for each, word in decisions.items() if each not in seen
    ]
    return _HEAD + dump_yaml({"prompts": [*entries, *gone]})


def _entry(template: Template, decision: Decision | None, doubts: Mapping[str, str]) -> dict[str, Any]:
    shown = {key: value for key, value in template_to(template).items() if key not in ("id", "origin")}
    return {"id": template.id, "decision": decision, "doubts": dict(doubts), **shown}


def read_decisions(file: Path) -> dict[str, Decision]:
    """Template id -> "keep" or "drop"; empty when there is no file. Raises PromptSetError, naming the entry."""
    if not file.exists():
        return {}
    entries = load_mapping(file).get("prompts")
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise PromptSetError(f"{file}: expected a list under `prompts`; remove the file to have it written anew")
    decisions: dict[str, Decision] = {}
    for number, entry in enumerate(entries, 1):
        known = isinstance(entry, Mapping) and isinstance(entry.get("id"), str)
        word = entry.get("decision") if known else None
        if not known or word not in ("keep", "drop", None):
            raise PromptSetError(
                f"{file}: entry {number} ({str(entry)[:60]}): expected an id in quotes or letters, and a decision of keep, drop or nothing"
            )
        if word is not None:
            if decisions.get(entry["id"], word) != word:
                raise PromptSetError(f"{file}: prompt {entry['id']} is decided upon twice, differently; keep one entry")
            decisions[entry["id"]] = word
    return decisions
