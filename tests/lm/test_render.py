"""The one door to token ids: training and evaluation read the same text, byte for byte."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from paft.errors import ConfigError, RenderError
from paft.grid import Cell, Grid
from paft.lm.render import Renderer, settle_template
from paft.lm.types import Message
from paft.prompts import Template
from paft.tasks import ChoiceText, Example, Labels
from paft.training.data import CellDataset
from tests import tiny

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda text: "<|" not in text)


@pytest.mark.parametrize("chat", [True, False])
@settings(max_examples=60)
@given(field=TEXT, right=TEXT.filter(str.strip), wrong=TEXT.filter(str.strip))
def test_training_text_equals_evaluation_text_for_the_same_cell(chat, field, right, wrong):
    if right == wrong:
        return
    renderer = Renderer(tiny.tokenizer(chat))
    template = Template("Read {text}\n\nthen\tsay:\n", ChoiceText(), system="Two\nlines")
    grid = Grid([template], [Example("e", {"text": field}, (right, wrong), 0)])
    row = CellDataset(grid, renderer, 10_000)[0]
    question = grid.question(Cell(0, 0, 0))
    decode = renderer.tokenizer.decode
    asked = renderer.prompt_text(question.chat)
    assert decode(row.ids[:-1]) == renderer.answer_text(asked, right)
    assert row.ids[-1] == renderer.eos_id
    assert row.ids[:-1] == renderer.pair_ids(question.chat, question.choices[0])[0]
    assert row.ids[: row.start] == renderer.prompt_ids(question.chat)[: row.start]
    assert field in asked


def test_newlines_and_spaces_reach_the_model_as_they_are():
    renderer = Renderer(tiny.tokenizer())
    text = "a\n\n b\r\n\tc  {d}"
    chat = Template("{text}", ChoiceText()).render(Example("e", {"text": text}, ("x", "y"), 0))
    assert renderer.prompt_text(chat) == f"<|start|>user\n{text}<|end|>\n<|start|>assistant\n"


def test_raw_text_gets_one_space_before_the_answer_unless_it_ends_in_white_space():
    renderer = Renderer(tiny.tokenizer(chat=False))
    assert renderer.answer_text("Answer:", "A") == "Answer: A"
    assert renderer.answer_text("Answer:\n", "A") == "Answer:\nA"
    assert renderer.prompt_text((Message("user", "Answer: "),)) == "Answer:"


def test_a_style_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="style 'chatt', did you mean 'chat'"):
        Renderer(tiny.tokenizer(), "chatt")


def test_a_control_token_inside_a_field_is_refused():
    renderer = Renderer(tiny.tokenizer())
    chat = Template("{text}", Labels()).render(Example("e", {"text": "so <|end|> it"}, ("x", "y"), 0))
    with pytest.raises(RenderError, match=r"control token '<\|end\|>'"):
        renderer.prompt_text(chat)


def test_a_control_token_that_only_the_added_ones_name_is_refused_too(tmp_path):
    """As Llama 3 lists <|start_header_id|>."""
    words = tiny.tokenizer()
    words.add_tokens([AddedToken("<|header|>", special=True), AddedToken("<plain>", special=False)])
    words.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    told = json.loads(file.read_text())
    told.pop("extra_special_tokens", None)
    file.write_text(json.dumps(told))
    words = AutoTokenizer.from_pretrained(tmp_path)
    assert "<|header|>" not in words.all_special_tokens
    renderer = Renderer(words)
    with pytest.raises(RenderError, match=r"control token '<\|header\|>'"):
        renderer.prompt_text((Message("user", "x <|header|> y"),))
    assert "<plain>" in renderer.prompt_text((Message("user", "x <plain> y"),))


def test_a_tokenizer_that_lists_no_added_tokens_is_read_by_its_special_ones(monkeypatch):
    tokenizer = tiny.tokenizer(True)
    monkeypatch.setattr(type(tokenizer), "added_tokens_decoder", lambda self: 1 / 0)  # as that of mistral-common
    with pytest.raises(RenderError, match="control token"):
        Renderer(tokenizer).prompt_text((Message("user", f"Hi {tokenizer.eos_token}"),))


def test_chat_style_needs_a_chat_template():
    with pytest.raises(ConfigError, match="no chat template"):
        Renderer(tiny.tokenizer(chat=False), "chat")
    assert Renderer(tiny.tokenizer(chat=False), "auto").style == "raw"
    assert Renderer(tiny.tokenizer(chat=True), "raw").style == "raw"


def test_the_answer_starts_where_prompt_and_whole_text_part():
    renderer = Renderer(tiny.tokenizer(chat=False))
    ids, start = renderer.pair_ids((Message("user", "the ca"),), "t")
    assert renderer.tokenizer.decode(ids) == "the ca t"
    assert renderer.tokenizer.decode(ids[start:]).strip() == "t"


def test_a_template_that_writes_the_date_writes_one_day():
    words = tiny.tokenizer(chat=True)
    words.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    assert Renderer(words, "chat").prompt_text((Message("user", "hi"),)) == "26 Jul 2024 hi"


THINKS = "\n{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{% if enable_thinking is defined and enable_thinking is false %}<none>{% endif %}{{ tone }}{% endif %}"


def test_settings_of_a_template_are_written_into_it():
    words = tiny.tokenizer(chat=True)
    words.chat_template = THINKS
    plain = Renderer(words, "chat").prompt_text((Message("user", "hi"),))
    settle_template(words, {"enable_thinking": False, "tone": 'say "hi" {{ 1 }}'})
    settled = Renderer(words, "chat").prompt_text((Message("user", "hi"),))
    assert settled == f'{plain}<none>say "hi" {{{{ 1 }}}}'
    before = words.chat_template
    with pytest.raises(
        ConfigError, match=r"chat_template_kwargs\.enable_thinkin: the model's chat template reads nothing"
    ):
        settle_template(words, {"enable_thinkin": False})
    settle_template(words, {})
    assert words.chat_template == before
    with pytest.raises(ConfigError, match="reads nothing of that name"):
        settle_template(tiny.tokenizer(chat=False), {"enable_thinking": False})
