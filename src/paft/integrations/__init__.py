"""The schedule for other people's trainers."""

from paft.integrations.rows import TokenRows
from paft.training.order import InScheduleOrder

__all__ = ["InScheduleOrder", "TokenRows"]
