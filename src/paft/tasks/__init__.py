"""What is asked: examples as typed fields, answer formats with their parsers, and where the rows come from."""

from paft.tasks.answers import AnswerFormat, ChoiceText, Labels, Parsed, answer_format_from
from paft.tasks.load import load_task
from paft.tasks.table import TASKS
from paft.tasks.types import Example, Rejected, Split, Task

__all__ = [
    "TASKS",
    "AnswerFormat",
    "ChoiceText",
    "Example",
    "Labels",
    "Parsed",
    "Rejected",
    "Split",
    "Task",
    "answer_format_from",
    "load_task",
]
