"""Pictures of examples: what they are known by, where they may lie, and what is no picture."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image as Pictures

from paft.config import dump_yaml
from paft.errors import DataError, PaftError
from paft.prompts import Template
from paft.tasks import Example, load_task
from paft.tasks.answers import Expression, Labels
from paft.tasks.images import Image, image_at, images_in
from paft.tasks.types import content_id
from tests import tiny


def task_of(folder: Path, rows: list[dict[str, object]], **changes: object) -> Path:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    described = {
        "name": "drawings",
        "fields": ["problem"],
        "kind": "expression",
        "answer": "answer",
        "image": "drawing",
        "files": {"test": "data/rows.jsonl"},
        **changes,
    }
    (folder / "task.yaml").write_text(dump_yaml(described), encoding="utf-8")
    return folder / "task.yaml"


def row(drawing: object, answer: str = r"5 \sqrt { 3 }") -> dict[str, object]:
    return {"problem": "Find x.", "answer": answer, "drawing": drawing}


def test_a_picture_is_its_bytes(tmp_path) -> None:
    one = image_at(tiny.picture(tmp_path / "one.png", 1))
    again = image_at(tiny.picture(tmp_path / "other name.png", 1))
    other = image_at(tiny.picture(tmp_path / "two.png", 2))
    assert one == again
    assert hash(one) == hash(again)
    assert one != other
    (held,) = images_in({"bytes": one.read(), "path": None}, None, "column")
    assert held == one
    assert held.read() == one.read()
    assert pickle.loads(pickle.dumps(held)).read() == held.read()


def test_ids_of_examples_follow_their_pictures(tmp_path) -> None:
    one, other = (image_at(tiny.picture(tmp_path / f"{n}.png", n)) for n in range(2))
    fields, choices = {"problem": "Find x."}, ("5",)
    ids = [content_id(fields, choices, shown) for shown in ((), (one,), (other,), (one, other), (other, one))]
    assert len(set(ids)) == 5
    assert ids[0] == content_id(fields, choices)
    example = Example("e", fields, choices, 0, is_open=True, images=(one,))
    assert pickle.loads(pickle.dumps(example)) == example


def test_every_prompt_shows_the_picture_before_its_words(tmp_path) -> None:
    image = image_at(tiny.picture(tmp_path / "one.png", 1))
    example = Example("e", {"problem": "Find x."}, ("5",), 0, is_open=True, images=(image,))
    system, user = Template("Solve: {problem}", Expression(), system="Be brief.").render(example)
    assert (system.images, user.images, user.text) == ((), (image,), "Solve: Find x.")


def test_a_task_file_names_a_column_of_paths(tmp_path) -> None:
    for n in range(3):
        tiny.picture(tmp_path / "data" / "drawings" / f"{n}.png", n)
    rows = [row(f"drawings/{n}.png") for n in range(2)] + [row(["drawings/2.png", "drawings/0.png"])]
    examples = load_task(task_of(tmp_path, rows)).split("test").examples
    assert [len(example.images) for example in examples] == [1, 1, 2]
    assert len({example.id for example in examples}) == 3  # one text, three questions
    assert examples[0].images[0] == examples[2].images[1]
    assert examples[0].is_open


def test_a_task_file_of_choices_may_show_pictures_too(tmp_path) -> None:
    tiny.picture(tmp_path / "data" / "0.png", 0)
    rows = [{"problem": "Which colour?", "answer": "red", "drawing": "0.png"}]
    path = task_of(tmp_path, rows, kind="choice", choices=["red", "blue"])
    (example,) = load_task(path).split("test").examples
    assert len(example.images) == 1
    assert Template("{problem} {choices}", Labels()).render(example)[0].images == example.images


def test_parquet_may_hold_the_bytes(tmp_path) -> None:
    pictures = [tiny.picture(tmp_path / f"{n}.png", n).read_bytes() for n in range(2)]
    (tmp_path / "data").mkdir()
    rows = [row([{"bytes": pictures[0], "path": "a.png"}]), row([{"bytes": pictures[1], "path": None}])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / "rows.parquet")
    path = task_of(tmp_path, [], files={"test": "data/rows.parquet"})
    examples = load_task(path).split("test").examples
    assert [example.images[0].read() for example in examples] == pictures


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        ("none.png", r"rows\.jsonl row 2: image .*none\.png: cannot be read \(No such file or directory\)"),
        ("cut.png", r"row 2: image .*cut\.png: not a picture that can be decoded \("),
        ("text.png", r"row 2: image .*text\.png: not a picture that can be decoded \(cannot identify image file"),
        (None, "row 2: column 'drawing' is empty"),
        ("", "row 2: column 'drawing' holds str ''; expected the path of an image, or its bytes"),
        (5, "row 2: column 'drawing' holds int '5'; expected the path of an image"),
        ([], "row 2: column 'drawing' holds no image; expected at least one"),
        ("a\x00b.png", "row 2: image .*: cannot be read"),
    ],
    ids=range(8),
)
def test_what_is_no_picture_is_named_in_a_line(tmp_path, drawing, message) -> None:
    good = tiny.picture(tmp_path / "data" / "good.png", 1, (200, 200)).read_bytes()
    (tmp_path / "data" / "cut.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "data" / "text.png").write_text("no picture")
    rows = [row("good.png"), row(drawing)]
    with pytest.raises(DataError, match=message) as caught:
        load_task(task_of(tmp_path, rows)).split("test")
    assert "\n" not in str(caught.value)
    skipped = load_task(task_of(tmp_path, rows, on_bad_row="skip")).split("test")
    assert (len(skipped.examples), len(skipped.rejected)) == (1, 1)


def test_a_bomb_is_refused(tmp_path) -> None:
    held = io.BytesIO()
    Pictures.new("1", (20_000, 10_000)).save(held, "PNG")
    (tmp_path / "bomb.png").write_bytes(held.getvalue())
    with pytest.raises(DataError, match="not a picture that can be decoded"):
        image_at(tmp_path / "bomb.png")


def test_black_lines_on_nothing_are_seen_on_white(tmp_path) -> None:
    drawn = Pictures.new("RGBA", (4, 4), (0, 0, 0, 0))
    drawn.putpixel((1, 2), (0, 0, 0, 255))
    drawn.save(tmp_path / "clear.png")
    seen = image_at(tmp_path / "clear.png").pixels()
    assert seen.mode == "RGB"
    assert (seen.getpixel((0, 0)), seen.getpixel((1, 2))) == ((255, 255, 255), (0, 0, 0))


def test_a_photo_is_turned_upright(tmp_path) -> None:
    drawn = Pictures.new("RGB", (4, 2))
    turned = drawn.getexif()
    turned[0x0112] = 6
    drawn.save(tmp_path / "turned.jpg", exif=turned)
    assert image_at(tmp_path / "turned.jpg").pixels().size == (2, 4)


def test_answers_must_be_of_their_kind(tmp_path) -> None:
    tiny.picture(tmp_path / "data" / "0.png", 0)
    with pytest.raises(DataError, match="holds 'about five'; expected an expression"):
        load_task(task_of(tmp_path, [row("0.png", "about five")])).split("test")
    with pytest.raises(PaftError, match="kind expression has no choices"):
        load_task(task_of(tmp_path, [], choices=["a", "b"]))


def test_content_is_not_shown_where_a_picture_is_printed(tmp_path) -> None:
    assert "PNG" not in repr(Image("d" * 64, "a.png", b"\x89PNG"))
