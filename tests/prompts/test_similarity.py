"""Which prompts count as the same, on pairs labelled by their writer, and what sentence embeddings see."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from paft.errors import AssetError, PromptSetError
from paft.prompts import PromptSet, Template
from paft.prompts.similarity import (
    MEANING,
    NEAR_DUPLICATE,
    cosine_pairs,
    cosines,
    masked,
    reworded_pairs,
    similarity_matrix,
    static_form,
    text_form,
)
from paft.tasks import ChoiceText, Labels

PAIRS = yaml.safe_load((Path(__file__).parent / "pairs.yaml").read_text(encoding="utf-8"))
AT_LEAST = {
    "respaced": 1.0, "repunctuated": 1.0, "recased": 1.0, "reordered": 1.0, "one_word": 0.95, "two_words": 0.85, "three_words": 0.75,
}  # fmt: skip


def pair(entry: dict[str, str]) -> tuple[Template, Template]:
    return Template(entry["first"], Labels()), Template(entry["second"], Labels())


def same(first: Template, second: Template) -> bool:
    return bool(similarity_matrix([first], [second])[0, 0] >= NEAR_DUPLICATE or reworded_pairs([first], [second]))


def test_the_same_prompt_is_found_and_another_is_not() -> None:
    found: dict[str, list[bool]] = defaultdict(list)
    for entry in PAIRS:
        found[entry["kind"]].append(same(*pair(entry)))
    print({kind: f"{np.mean(each):.2f} of {len(each)}" for kind, each in found.items()})
    for kind, least in AT_LEAST.items():
        assert np.mean(found[kind]) >= least, kind
    # one pair, both under eight words, two of three of which they share
    assert sum(found["different"]) <= 1
    assert len(found["different"]) >= 60


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ("A. {A}\nB. {B}\nC. {C}\nD. {D}", Labels()),
        ("{A}\n{B}\n{C}", ChoiceText()),
        ("<p>{A}</p><q>{B}</q>", Labels(("p", "q"))),
        ("Option 1: {A}\nOption 2: {B}", Labels(("1", "2"))),
        ("{A} or {B}", ChoiceText()),
    ],
)
def test_options_shown_one_by_one_are_no_other_prompt(options: str, answer: Labels | ChoiceText) -> None:
    one, block = (Template(f"{{context}}\n{shown}\nAnswer:", answer) for shown in (options, "{choices}"))
    assert static_form(one) == static_form(block)
    with pytest.raises(PromptSetError, match="near-duplicates"):
        PromptSet("t", (one,), (), (block,))


def test_words_between_options_and_what_is_in_no_order_stay() -> None:
    for text in (
        "{context}\nReply A, and nothing else, when the better one is {A}\nReply B, and nothing else, when the better one is {B}",
        "Is {A} so, given that {context}, or {B}?",
        "{B} or {A}? {context}",
        "{A} is what some say of it, others {B}",
    ):
        assert static_form(Template(text, ChoiceText())) == text_form(text)


@pytest.mark.parametrize("kind", ["respaced", "repunctuated", "recased", "one_word"])
@pytest.mark.parametrize("splits", [("train", "test"), ("train", "dev"), ("dev", "test")])
def test_a_set_with_one_prompt_in_two_splits_is_refused_with_both_named(kind: str, splits: tuple[str, str]) -> None:
    first, second = pair(next(entry for entry in PAIRS if entry["kind"] == kind and same(*pair(entry))))
    other = [
        Template(f"{word * 5} {{goal}} {{choices}} {word * 3}", Labels()) for word in ("alpha ", "bravo ", "coda ")
    ]
    sides = dict(zip(("train", "dev", "test"), ((each,) for each in other), strict=True))
    sides |= {splits[0]: (first, *sides[splits[0]]), splits[1]: (second, *sides[splits[1]])}
    with pytest.raises(PromptSetError, match=rf"{splits[0]}\[0\] {first.id} ~ {splits[1]}\[0\] {second.id}"):
        PromptSet("t", sides["train"], sides["dev"], sides["test"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Question: {q}\nAnswer:", "`Question` {q}\n`Answer`"),
        ("Question: {q}\nAnswer:", "|Question| {q}\n|Answer|"),
        ("Question: {q}\nAnswer:", "~Question= {q}\n^Answer$ +"),
        ("Q: {goal}\n{choices}\nA:", "<Q> {goal}\n{choices}\n<A>"),
        ("Question: {q}\nAnswer:", "Ques\u200btion {q}\nAns\u00adwer\ufeff"),
        ("Question: {q}\nAnswer:", "\u270f\ufe0f Question {q}\n\U0001f449 Answer"),
    ],
)
def test_symbols_and_what_has_no_width_are_no_words(first: str, second: str) -> None:
    one, other = Template(first, Labels()), Template(second, Labels())
    assert static_form(one) == static_form(other)
    with pytest.raises(PromptSetError, match="near-duplicates"):
        PromptSet("t", (one,), (), (other,))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [each for entry in PAIRS[::3] for each in pair(entry)]
    whole = reworded_pairs(some, some)
    monkeypatch.setattr("paft.prompts.similarity.BLOCK", 7)
    assert reworded_pairs(some, some) == whole
    assert {(i, j) for i, j, _ in whole} == {(j, i) for i, j, _ in whole}


@pytest.mark.real
def test_embeddings_of_the_wheel_see_what_is_alike() -> None:
    from paft.lm.embed import Embedder

    embed = Embedder("sentence-transformers/all-MiniLM-L6-v2", source="wheel")
    vectors = embed(
        ["A man is eating food.", "Someone eats a meal.", "The stock market fell.", "A man is eating food."]
    )
    assert vectors.shape == (4, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors[0] == vectors[3]).all()
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
    # nothing is cut off: two long texts that differ at their ends only differ
    long = "word " * 700
    ends = embed([long + "Pick the worst option.", long + "The weather in Rome is warm.", long])
    assert 0.5 < ends[0] @ ends[1] < 0.9999
    # alone or in a batch, the same text has the same vector
    alone = Embedder("sentence-transformers/all-MiniLM-L6-v2", source="wheel")(["Someone eats a meal."])
    assert alone[0] @ vectors[1] > 0.999
    some = [each for entry in PAIRS if entry["kind"] in ("recased", "different") for each in pair(entry)]
    near = cosine_pairs(some, MEANING, embed)
    full = cosines(some, some, embed)
    assert {(i, j) for i, j, _ in near} == {
        (int(i), int(j)) for i, j in zip(*(full >= MEANING).nonzero(), strict=True) if i < j
    }
    assert len(near) >= 10
    assert masked(Template("a {goal}\n b {choices}", Labels())) == "a - b -"


@pytest.mark.real
def test_embeddings_as_published_are_whole_floats_of_texts_cut_at_their_length() -> None:
    from paft.lm.embed import Embedder

    embed = Embedder("sentence-transformers/all-MiniLM-L6-v2", source="wheel", published=True)
    long = "word " * 700
    same, other, short = embed([long + "Pick the worst option.", long + "The weather in Rome is warm.", "word"])
    assert (same == other).all()
    assert same @ short < 0.999
    again = Embedder("sentence-transformers/all-MiniLM-L6-v2", source="wheel", published=True)
    plain = Embedder("sentence-transformers/all-MiniLM-L6-v2", source="wheel")
    assert len(embed.identity) == 16
    assert embed.identity == again.identity != plain.identity


def test_a_model_that_is_no_embedder_is_one_line(tmp_path: Path) -> None:
    from paft.lm.embed import Embedder

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AssetError, match="expected a sentence-transformers model"):
        Embedder(str(tmp_path))
