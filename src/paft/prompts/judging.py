"""What a judge is asked about one candidate prompt, and how its verdict is read.

Rules over words miss what is said in unusual ways; a language model that reads the prompt as a whole does not. It sees the
prompt filled in with two items and, for each, the one text that counts as right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from paft.lm.types import Chat, Message
from paft.prompts.strategies import json_objects
from paft.prompts.template import Template
from paft.tasks.types import Example, Task

JUDGED = {
    "polarity": "the prompt asks for another thing than the right answer: the worst or wrong option, the opposite, another task",
    "contract": "somebody who does exactly what the words ask, and gives the right answer, would write another text than the "
    "expected one: another label, number, word, wrapping or language",
    "leak": "the words, without the options and fields, give away or suggest which answer is right",
    "reasoning": "the words ask for more than the expected text, such as an explanation, a confidence, a second answer",
    "language": "the words are garbled, cut off, wrongly decoded, or change language without reason",
    "unclear": "a careful reader could not know what to do, or what the options are",
}
"""What a judge may find, by name."""


def verdict_request(template: Template, task: Task, about: str, examples: Sequence[Example]) -> Chat:
    """The question about one template; examples: two items, best with different answers."""
    return (
        Message(
            "system",
            "You check prompts for tests of language models. You answer with one JSON object and nothing else.",
        ),
        Message("user", "\n\n".join(_parts(template, task, about, examples))),
    )


def _parts(template: Template, task: Task, about: str, examples: Sequence[Example]) -> Iterator[str]:
    yield f"The task: {about}"
    yield (
        "Somebody wrote the prompt below for it. It is shown as the model gets it, filled in with two items, and after each "
        "the text that counts as right (the only one; white space and letter case at its ends do not matter)."
    )
    for number, example in enumerate(examples, 1):
        chat = "\n".join(f"<{message.role}>\n{message.text}\n</{message.role}>" for message in template.render(example))
        yield f"=== Item {number} ===\n{chat}\n=== Expected for item {number}: {json.dumps(template.target(example), ensure_ascii=False)} ==="
    faults = "\n".join(f'- "{name}": {what}' for name, what in JUDGED.items())
    yield (
        "Whether the item itself is easy, hard, wrong or odd does not matter; nor do style, register, typing errors, a playful "
        "frame or an unusual language. An answer that continues the prompt's last line is what the words ask for. Which of these "
        f'does the prompt itself have?\n- "none": it asks for the right answer in the expected form\n{faults}'
    )
    yield 'Answer with {"fault": one of the names above, "reason": "at most 20 words"}.'


def read_verdict(reply: str) -> tuple[str, str] | None:
    """Fault ("none" or a name of JUDGED) and reason; None when the reply holds no verdict."""
    found = None
    for value in json_objects(reply):
        name = str(value.get("fault")).strip().casefold() if isinstance(value, dict) else ""
        if name == "none" or name in JUDGED:
            found = name, " ".join(str(value.get("reason") or "").split())[:200]
    return found
