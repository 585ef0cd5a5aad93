"""Every error `paft` raises on purpose.

    PaftError                      catch this to catch them all
    ├── ConfigError  (ValueError)  a setting that is unknown, missing or out of range
    ├── TemplateError(ValueError)  one prompt template that cannot be used
    ├── PromptSetError(ValueError) a set of templates: empty or leaking split, duplicates, wrong task
    ├── DataError    (ValueError)  examples: unreadable file, bad row, duplicate id, answer not among the choices
    ├── RenderError  (ValueError)  a cell that cannot become tokens: too long, control tokens inside a field
    ├── ShapeError   (ValueError)  an array whose shape does not fit
    ├── AssetError   (OSError)     a model or dataset that cannot be found, fetched or verified
    ├── EndpointError(OSError)     a model server that refuses, or does not answer
    ├── StoreError   (OSError)     a run directory: locked, damaged, made by other settings, disk full
    └── ResourceError(RuntimeError) memory too small even for one example

A message is one line: where, what was given, what was expected, what to do. The command line prints it and exits with 2.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable


class PaftError(Exception):
    """Root of all errors raised on purpose."""


class ConfigError(PaftError, ValueError):
    """A setting that is unknown, missing or out of range."""


class TemplateError(PaftError, ValueError):
    """One prompt template that cannot be used."""


class PromptSetError(PaftError, ValueError):
    """A set of templates that cannot be used: empty or leaking split, duplicates, wrong task."""


class DataError(PaftError, ValueError):
    """Examples that cannot be used: unreadable file, bad row, duplicate id, answer not among the choices."""


class RenderError(PaftError, ValueError):
    """A cell that cannot become tokens: too long, or a field that holds the model's control tokens."""


class ShapeError(PaftError, ValueError):
    """An array whose shape does not fit its use."""


class AssetError(PaftError, OSError):
    """A model or dataset that cannot be found, fetched or verified."""


class EndpointError(PaftError, OSError):
    """A model server that refuses, or does not answer after all tries."""


class StoreError(PaftError, OSError):
    """A run directory that cannot be used: locked, damaged, made by other settings, disk full."""


class ResourceError(PaftError, RuntimeError):
    """Memory too small even for the smallest batch."""


def nearest(given: str, known: Iterable[str]) -> str:
    """A hint naming the nearest of the known names, or the empty string: ", did you mean 'x'?"."""
    names = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(given.casefold(), list(names), n=1, cutoff=0.6)
    return f", did you mean {names[close[0]]!r}?" if close else ""


def few(items: Iterable[object], limit: int = 5) -> str:
    """The first few items as text, with the number of those left out."""
    listed = list(items)
    shown = ", ".join(str(item) for item in listed[:limit])
    return shown + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


_FULL = (
    "no space left",
    "disk is full",
    "disk full",
    "file too large",
    "disk quota",
    "streamwriter failed",
    "file write failed",
)


_BARRED = (
    errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip


def disk_fault(error: BaseException | str) -> str | None:
    """What is wrong with the disk, in words, when that is what a library's error (or its text) means; else None."""
    number = getattr(error, "errno", None)
    text = str(error).lower()
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(mark in text for mark in _FULL):
        return "the disk is full"
    if number in _BARRED:
        return f"not writable ({os.strerror(number)})"
    return None
