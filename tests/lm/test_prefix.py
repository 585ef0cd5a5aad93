"""The plan computes every token of every text once or more, never with anything else in sight."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paft.lm.prefix import Head, Row, flat, plan, take

texts_of_few_tokens = st.lists(
    st.tuples(
        st.sampled_from([(), (7,) * 9, (7,) * 30, (7,) * 30 + (8,) * 20]),
        st.lists(st.integers(1, 3), min_size=1, max_size=10).map(tuple),
    ).map(lambda parts: parts[0] + parts[1]),
    min_size=1,
    max_size=40,
    unique=True,
)


def written_out(head: Head, before: list[int]) -> list[tuple[int, tuple[int, ...], int]]:
    """(text, its tokens along its path, tokens of them in heads), checking places and sight on the way."""
    before = before + head.ids.tolist()
    assert len(before) == head.end
    found = []
    for row in head.rows:
        sees_TT = row.sees_TT()
        for j, path in zip(row.texts, row.paths, strict=True):
            assert (row.depth_T[path] == np.arange(len(path)) + len(before)).all()
            for n, place in enumerate(path):
                assert np.flatnonzero(sees_TT[place]).tolist() == path[: n + 1].tolist()
            found.append((j, (*before, *row.ids_T[path].tolist()), len(before)))
    for longer in head.heads:
        found += written_out(longer, before)
    return found


@given(
    texts_of_few_tokens,
    st.data(),
    st.sampled_from([1, 8, 20, 999]),
    st.sampled_from([1, 64]),
    st.sampled_from([0, 2, 32]),
)
def test_every_text_is_spelled_by_its_path_and_sees_only_itself(texts, data, room, width, overhead):
    latest = [data.draw(st.integers(0, len(text) - 1)) for text in texts]
    root = plan(texts, latest, room, width, overhead)
    found = written_out(root, [])
    assert sorted(j for j, *_ in found) == list(range(len(texts)))
    for j, spelled, in_heads in found:
        assert spelled == texts[j]
        assert in_heads <= latest[j]
    assert sorted(root.texts()) == list(range(len(texts)))
    trie = {text[:n] for text in texts for n in range(1, len(text) + 1)}
    assert len(trie) <= root.tokens <= sum(map(len, texts))


def test_options_of_a_question_share_a_row_and_unrelated_questions_do_not():
    context, other = list(range(100, 160)), list(range(200, 260))
    texts = [[*context, 1], [*context, 2, 3], [*other, 1], [*other, 4]]
    root = plan(texts, [len(text) - 2 for text in texts], room=768, width=576)
    assert sorted(sorted(row.texts) for row in root.rows) == [[0, 1], [2, 3]]
    assert root.tokens == 63 + 62


def test_a_long_beginning_of_many_texts_becomes_a_head_and_one_inside_it_too():
    few_shot, article = list(range(1000, 2000)), list(range(2000, 2900))
    texts = [[*few_shot, 5, n, n] for n in range(30)] + [[*few_shot, *article, n] for n in range(30)]
    root = plan(texts, [len(text) - 1 for text in texts], room=500, width=576)
    (head,) = root.heads
    (inner,) = head.heads
    assert (len(head.ids), len(inner.ids), not root.rows) == (1000, 900, True)
    assert root.tokens <= 1000 + 900 + 30 * 3 + 30


def test_what_is_read_off_a_text_never_lies_in_a_head():
    texts = [[*range(50), n] for n in range(20)]
    assert not plan(texts, [0] * 20, room=10, width=1).heads
    (head,) = plan(texts, [30] * 20, room=10, width=1, overhead=2).heads
    assert head.end == 30


def test_a_pass_ends_where_its_padding_costs_more_than_another_pass():
    rows = flat([[1] * n for n in (90, 80, 70, 10)], range(4))
    assert [len(row) for row in rows] == [90, 80, 70, 10]
    assert take(rows, budget=1000, padding=32) == 3
    assert take(rows, budget=200, padding=32) == 2
    assert take(rows, budget=5, padding=32) == 1
    assert take(rows, budget=1000, padding=500) == 4
    assert isinstance(rows[0], Row)
