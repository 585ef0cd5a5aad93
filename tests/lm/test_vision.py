"""Models that read images: real ones of a few thousand weights, of two families that take images apart in different ways."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from paft.config import EvalConfig
from paft.errors import ConfigError, DataError, RenderError
from paft.evaluation import evaluate
from paft.grid import Grid
from paft.lm.endpoint import messages
from paft.lm.hf import load_model
from paft.lm.render import shown_in
from paft.lm.types import Message, Question
from paft.lm.vision import VisionRenderer
from paft.prompts import Template
from paft.store import CellStore
from paft.tasks import ChoiceText, Example
from paft.tasks.answers import Expression
from paft.tasks.images import Image, image_at
from tests import tiny

KINDS = ("idefics3", "qwen2_5_vl")
CLOSE = 1e-4


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny.vision_model(request.param)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Image]:
    folder = tmp_path_factory.mktemp("pictures")
    return [image_at(tiny.picture(folder / f"{n}.png", n, (24 + 8 * n, 16 + 4 * (n % 3)))) for n in range(4)]


def question(*shown: Image, text: str = "is it good or bad ?", tokens: int = 6) -> Question:
    return Question((Message("system", "one word"), Message("user", text, shown)), ("red", "blue and green"), tokens)


def asked(images: list[Image]) -> list[Question]:
    """Texts and images of several lengths, one image under two texts, two images at once."""
    ragged = [question(image, text="what is it " * (n + 1)) for n, image in enumerate(images)]
    return [*ragged, question(images[0]), question(images[2], images[1])]


def test_a_batch_answers_as_each_question_alone(model, images) -> None:
    questions = asked(images)
    together = model.answer(questions)
    assert {answer.prompt_tokens for answer in together} != {together[0].prompt_tokens}
    for batch_tokens in (1, 100_000):
        for answer, other in zip(model.answer(questions, batch_tokens=batch_tokens), together, strict=True):
            assert answer.logp_C == pytest.approx(other.logp_C, abs=CLOSE)
            assert (answer.completion, answer.tokens_C) == (other.completion, other.tokens_C)


def test_scores_and_texts_are_those_of_transformers_own_calls(model, images) -> None:
    """The slow twin: the processor on the whole text, one pass an option, `generate` on one prompt."""
    renderer = model.renderer
    for asked_ in asked(images):
        (answer,) = model.answer([asked_])
        prompt, shown = renderer.prompt_text(asked_.chat), [image.pixels() for image in shown_in(asked_.chat)]
        fed = model.processor(text=[prompt], images=[shown], add_special_tokens=False, return_tensors="pt")
        start = fed["input_ids"].shape[1]
        assert renderer.render(asked_).prompt == fed["input_ids"][0].tolist()
        for choice, logp in zip(asked_.choices, answer.logp_C, strict=True):
            whole = model.processor(
                text=[prompt + choice], images=[shown], add_special_tokens=False, return_tensors="pt"
            )
            with torch.no_grad():
                logits_TV = model.model(**whole).logits[0].log_softmax(-1)
            ids = whole["input_ids"][0]
            assert logp == pytest.approx(float(logits_TV[start - 1 : -1].gather(1, ids[start:, None]).sum()), abs=CLOSE)
        said = model.model.generate(**fed, max_new_tokens=6, do_sample=False, pad_token_id=1)[0, start:]
        assert answer.completion.text == model.tokenizer.decode(said, skip_special_tokens=True)


def test_another_image_gives_other_scores_and_other_keys(model, images) -> None:
    first, second = question(images[0]), question(Image(images[1].digest, images[0].path, images[1].read()))
    assert model.keys(first) != model.keys(second)
    assert set(model.keys(first)).isdisjoint(model.keys(second))
    assert first != second
    one, other = model.answer([first, second])
    assert abs(one.logp_C[0] - other.logp_C[0]) > 10 * CLOSE
    elsewhere = question(Image(images[0].digest, "elsewhere.png", images[0].read()))
    assert model.keys(elsewhere) == model.keys(first)


def test_the_order_of_images_counts(model, images) -> None:
    one, other = question(images[0], images[3]), question(images[3], images[0])
    assert model.keys(one) != model.keys(other)
    assert abs(model.answer([one])[0].logp_C[0] - model.answer([other])[0].logp_C[0]) > CLOSE


def test_texts_that_have_images_of_one_size_are_told_apart(model, tmp_path) -> None:
    """Places for both are the same tokens: only the image differs."""
    same = [image_at(tiny.picture(tmp_path / f"{n}.png", n)) for n in range(2)]
    assert model.renderer.render(question(same[0])).prompt == model.renderer.render(question(same[1])).prompt
    assert model.keys(question(same[0]))[0] != model.keys(question(same[1]))[0]
    one, other = model.answer([question(image) for image in same])
    assert one.logp_C != other.logp_C


def grid(images: list[Image]) -> Grid:
    templates = [Template(text, Expression()) for text in ("{problem} =", "Find it : {problem}", "{problem} ? number")]
    examples = [
        Example(f"e{n}", {"problem": "the length"}, (str(n),), 0, is_open=True, images=(image,))
        for n, image in enumerate(images)
    ]
    return Grid(templates, examples)


def test_cells_of_one_text_and_several_images_are_kept_apart_and_asked_once(model, images, tmp_path) -> None:
    config = EvalConfig(scorers=["generation"], max_new_tokens=4)
    with CellStore(tmp_path / "cells.sqlite") as store:
        first = evaluate(model, grid(images[:2]), config, store)
        assert (first.asked, len(store)) == (6, 6)
    with CellStore(tmp_path / "cells.sqlite") as store:
        again = evaluate(tiny.vision_model(model.identity.split("-")[1]), grid(images), config, store)
        assert (again.asked, len(store)) == (6, 12)
    for k in range(3):
        assert again.answers_KN[k][:2] == first.answers_KN[k]


def test_the_fingerprint_follows_how_images_are_read(model) -> None:
    before = model.fingerprint
    settings = model.processor.image_processor
    kept, settings.image_mean = settings.image_mean, [0.1, 0.2, 0.3]
    try:
        assert model.fingerprint != before
    finally:
        settings.image_mean = kept
    assert model.fingerprint == before


def test_half_precision_is_given_images_in_half_precision(images) -> None:
    for kind in KINDS:
        model = tiny.vision_model(kind)
        half = replace(model, model=model.model.to(torch.bfloat16))
        assert half.renderer.fed([[1]], [(images[0],)], "left")["pixel_values"].dtype == torch.bfloat16
        assert all(torch.isfinite(torch.tensor(answer.logp_C)).all() for answer in half.answer(asked(images)))


def test_memory_that_runs_out_halves_the_batch_and_changes_no_answer(images, monkeypatch) -> None:
    model, told = tiny.vision_model(), []
    wanted = model.answer(asked(images))
    tight = replace(model, say=told.append)
    fed = tight.renderer.fed

    def small(texts, shown, side):
        if len(texts) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return fed(texts, shown, side)

    monkeypatch.setattr(tight.renderer, "fed", small)
    for answer, other in zip(tight.answer(asked(images)), wanted, strict=True):
        assert answer.logp_C == pytest.approx(other.logp_C, abs=CLOSE)
        assert answer.completion == other.completion
    assert any("going on with half" in line for line in told)


def test_a_saved_model_is_loaded_and_answers_alike(tmp_path, images) -> None:
    saved = tiny.saved_vision_model(tmp_path / "model")
    loaded, ready = load_model(str(saved), images=True), tiny.vision_model()
    questions = asked(images)[:2]
    for one, other in zip(loaded.answer(questions), ready.answer(questions), strict=True):
        assert one.logp_C == pytest.approx(other.logp_C, abs=CLOSE)


def test_models_that_cannot_are_refused_in_a_line(tmp_path, images) -> None:
    with pytest.raises(
        ConfigError, match=r"\(llama\) reads text only, and the task shows images; give one that reads"
    ) as caught:
        load_model(str(tiny.saved_model(tmp_path / "text")), images=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(RenderError, match="shows an image and this model reads text only"):
        tiny.hf_model().answer([question(images[0])])
    with pytest.raises(ConfigError, match="images are not sent to servers"):
        messages(question(images[0]).chat)
    with pytest.raises(ConfigError, match="needs the model's chat template"):
        VisionRenderer(tiny.processor(), "raw")


def test_no_image_is_left_out_in_silence(model, images) -> None:
    with pytest.raises(RenderError, match="shows no image"):
        model.answer([Question((Message("user", "a text"),), ("a", "b"))])
    with pytest.raises(RenderError, match="control token"):
        model.answer([question(images[0], text=f"text {model.renderer.mark}")])
    with pytest.raises(RenderError, match="holds the model's token for an image"):
        model.answer([Question(question(images[0]).chat, ("a", model.renderer.mark))])
    blind = tiny.processor()
    blind.chat_template = blind.chat_template.replace("{{ '<image>' }}", "")
    with pytest.raises(RenderError, match="places for 0 of 1 images"):
        VisionRenderer(blind).render(question(images[0]))
    with pytest.raises(ConfigError, match="sampling from a model that reads images"):
        model.sample(question(images[0]).chat, max_new_tokens=2, temperature=1.0, seed=0)


def test_an_image_that_changed_since_is_not_taken_for_the_one_it_was(model, tmp_path) -> None:
    path = tiny.picture(tmp_path / "one.png", 77)
    image = image_at(path)
    tiny.picture(path, 2)
    with pytest.raises(DataError, match=r"one\.png: changed since the examples were read"):
        model.answer([question(image)])
    path.unlink()
    with pytest.raises(DataError, match=r"one\.png: cannot be read \(No such file"):
        model.answer([question(image)])


def test_what_is_too_long_with_its_image_is_refused(model, images) -> None:
    short = replace(model)
    short.limit = 40
    with pytest.raises(RenderError, match="the model reads at most 40"):
        short.answer([question(images[3])])


def test_answers_by_text_are_scored(model, images) -> None:
    templates = [Template("red or blue ? {text}", ChoiceText()), Template("{text} -> colour", ChoiceText())]
    examples = [
        Example(f"e{n}", {"text": "it"}, ("red", "blue"), n % 2, images=(image,)) for n, image in enumerate(images)
    ]
    found = evaluate(model, Grid(templates, examples), EvalConfig(scorers=["likelihood"]))
    assert found.scores["likelihood"].observed_KN.all()
    assert json.dumps(found.summary("likelihood"))
