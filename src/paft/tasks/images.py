"""Pictures of an example: known by the hash of their bytes, decoded when a model looks at them."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paft.errors import ConfigError, DataError


@dataclass(frozen=True)
class Image:
    """A picture. Those of the same bytes are one and the same, wherever the bytes lie.

    path: what messages call it, and where the bytes are unless they are at hand in `content`.
    """

    digest: str
    path: str = field(default="", compare=False)
    content: bytes | None = field(default=None, compare=False, repr=False)

    def read(self) -> bytes:
        """The bytes. Raises DataError when the file has gone or is another than it was."""
        if self.content is not None:
            return self.content
        content = _bytes_of(Path(self.path))
        if _digest(content) != self.digest:
            raise DataError(
                f"image {self.path}: changed since the examples were read; leave it alone while a run goes on"
            )
        return content

    def pixels(self) -> Any:
        """A PIL image in RGB, upright, what is transparent shown on white. Raises DataError for bytes that are no picture."""
        return _decoded(self.read(), self.path)


def image_at(path: Path) -> Image:
    """The picture in a file, which is read and decoded once to see that it is one. Raises DataError."""
    content = _bytes_of(path)
    _decoded(content, str(path))
    return Image(_digest(content), str(path))


def images_in(value: Any, folder: Path | None, where: str) -> tuple[Image, ...]:
    """The pictures of a cell of a table: one or a list of them, at least one; each a path below the folder, its bytes, or a mapping of
    both, as `datasets` writes them. Raises DataError."""
    listed = list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    if not listed:
        raise DataError(f"{where} holds no image; expected at least one")
    return tuple(_image_in(each, folder, where) for each in listed)


def _image_in(value: Any, folder: Path | None, where: str) -> Image:
    named = value.get("path") if isinstance(value, Mapping) else value
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(content, bytes):
        name = named if isinstance(named, str) else where
        _decoded(content, name)
        return Image(_digest(content), name, content)
    if isinstance(named, str) and named.strip() and folder is not None:
        return image_at(folder / named)
    raise DataError(
        f"{where} holds {type(value).__name__} {str(value)[:40]!r}; expected the path of an image, or its bytes"
    )


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"image {path}: cannot be read ({why})") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _decoded(content: bytes, name: str) -> Any:
    try:
        from PIL import Image as Pictures
        from PIL import ImageOps
    except ImportError:
        raise ConfigError('this task shows images, which takes Pillow; pip install "paft[vision]"') from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pictures.DecompressionBombWarning)
            with Pictures.open(io.BytesIO(content)) as opened:
                picture = ImageOps.exif_transpose(opened)
                if not picture.has_transparency_data:
                    return picture.convert("RGB")
                # drawings are black on nothing; without this they would be black on black
                whole = Pictures.new("RGBA", picture.size, "white")
                whole.alpha_composite(picture.convert("RGBA"))
                return whole.convert("RGB")
    except Exception as error:  # decoders raise whatever a damaged file makes them
        why = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise DataError(f"image {name}: not a picture that can be decoded ({why})") from None
