"""Gates: the rules on known bounds, wrong verdicts by simulation, and cells bought only until the verdict is clear."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.special import expit

from paft.config import PolicyConfig, validate
from paft.errors import ConfigError, ShapeError
from paft.evaluation.gate import hunt, judge, looks
from paft.evaluation.matrix import INVALID, UNSCORED, ScoreMatrix
from paft.reports.verdict import junit_xml, verdict_text


def policy(*criteria, **rest) -> PolicyConfig:
    return PolicyConfig(criteria=list(criteria), **rest)


def table(values_KN, answers_KN=None, tokens_KN=None) -> ScoreMatrix:
    values_KN = np.asarray(values_KN, dtype=float)
    k, n = values_KN.shape
    return ScoreMatrix(
        tuple(f"p{row}" for row in range(k)),
        tuple(f"e{column}" for column in range(n)),
        values_KN,
        np.zeros((k, n), dtype=int) if answers_KN is None else answers_KN,
        np.full((k, n), 3) if tokens_KN is None else tokens_KN,
        np.ones((k, n), dtype=bool),
    )


def answered(accuracy_K, n: int, seed: int = 0) -> np.ndarray:
    """Independent right and wrong answers."""
    return (np.random.default_rng(seed).random((len(accuracy_K), n)) < np.asarray(accuracy_K)[:, None]).astype(float)


WORST = {"measure": "worst", "at_least": 0.7}


def test_one_hidden_bad_prompt_turns_go_into_no_go():
    good = answered([0.9] * 20, 400)
    assert judge(table(good), policy(WORST)).word == "GO"
    spoilt = good.copy()
    spoilt[13] = answered([0.5], 400, seed=1)
    verdict = judge(table(spoilt), policy(WORST))
    assert (verdict.word, verdict.exit_code) == ("NO-GO", 1)
    assert "worst prompt at least 0.7" in verdict.reason
    assert judge(table(spoilt), policy({"measure": "mean", "at_least": 0.7})).word == "GO"
    assert judge(table(spoilt), policy({"measure": "lowest", "rank": 2, "at_least": 0.7})).word == "GO"
    assert judge(table(spoilt), policy({"measure": "p10", "at_least": 0.7})).word == "GO"


@pytest.mark.parametrize(
    ("criterion", "passes", "fails"),
    [
        ({"measure": "mean"}, 0.8, 0.99),
        ({"measure": "worst"}, 0.7, 0.95),
        ({"measure": "lowest", "rank": 3}, 0.7, 0.95),
        ({"measure": "p10"}, 0.7, 0.95),
        ({"measure": "share", "of": 0.7}, 0.9, None),
        ({"measure": "share", "of": 0.97}, None, 0.9),
    ],
)
def test_every_demand_on_accuracy_has_three_answers(criterion, passes, fails):
    matrix = table(answered([0.88] * 10 + [0.92] * 10, 600))
    for bar, word in ((passes, "GO"), (fails, "NO-GO")):
        if bar is not None:
            assert judge(matrix, policy({**criterion, "at_least": bar})).word == word
    few = table(answered([0.88] * 10 + [0.92] * 10, 12))
    undecided = (
        {**criterion, "at_least": 0.88}
        if criterion["measure"] != "share"
        else {**criterion, "at_least": 0.5, "of": 0.9}
    )
    assert judge(few, policy(undecided)).word == "INCONCLUSIVE"
    assert judge(few, policy(undecided)).exit_code == 3


def test_demands_that_set_an_upper_bound():
    values_KN = answered([0.85, 0.86, 0.85, 0.84] * 4, 500)
    answers_KN = np.where(np.random.default_rng(3).random(values_KN.shape) < 0.02, INVALID, 0)
    matrix = table(values_KN, answers_KN)
    base = {"runs/base": np.clip(values_KN + (np.random.default_rng(4).random(values_KN.shape) < 0.03), 0, 1)}
    for criterion, passes, fails in (
        ({"measure": "prompt_sd"}, 0.1, None),
        ({"measure": "invalid"}, 0.05, 0.005),
        ({"measure": "tokens"}, 5, 2),
        ({"measure": "drop", "against": "runs/base"}, 0.03, -0.02),
    ):
        assert judge(matrix, policy({**criterion, "at_most": passes}), base).word == "GO"
        if fails is not None:
            assert judge(matrix, policy({**criterion, "at_most": fails}), base).word == "NO-GO"
    spread = table(answered(np.linspace(0.2, 0.95, 16), 500))
    assert judge(spread, policy({"measure": "prompt_sd", "at_most": 0.05})).word == "NO-GO"


def test_advisory_demands_are_reported_and_do_not_count():
    matrix = table(answered([0.9] * 5, 300))
    verdict = judge(
        matrix, policy({"measure": "mean", "at_least": 0.8}, {**WORST, "at_least": 0.99, "tier": "advisory"})
    )
    assert verdict.word == "GO"
    assert [each.outcome for each in verdict.criteria] == ["pass", "fail"]


def test_alpha_is_shared_among_critical_demands_unless_the_policy_says_otherwise():
    matrix = table(answered([0.8] * 6, 200))
    criteria = {"measure": "mean", "at_least": 0.5}, {"measure": "mean", "at_least": 0.5}
    together, each = (judge(matrix, policy(*criteria, errors=errors)).criteria[0] for errors in ("all", "each"))
    alone = judge(matrix, policy(criteria[0], alpha=0.025)).criteria[0]
    assert (together.low, together.high) == (alone.low, alone.high)
    assert each.low > together.low


@pytest.mark.parametrize(
    ("criterion", "complaint"),
    [
        ({"measure": "mean", "at_most": 0.5}, "needs at_least"),
        ({"measure": "tokens", "at_least": 5}, "needs at_most"),
        ({"measure": "mean", "at_least": 80}, "80 % is 0.8"),
        ({"measure": "lowest", "at_least": 0.5}, "rank belongs to measure 'lowest', which needs it"),
        ({"measure": "mean", "at_least": 0.5, "rank": 2}, "rank belongs to measure 'lowest'"),
        ({"measure": "worst", "at_least": 0.5, "tier": "advisory"}, "every criterion is advisory"),
        ({"measure": "wurst", "at_least": 0.5}, "wurst"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(criterion, complaint):
    with pytest.raises(ConfigError, match=complaint):
        validate(PolicyConfig, {"criteria": [criterion]}, "policy.yaml")


def test_what_a_table_cannot_answer_is_refused():
    matrix = table(answered([0.9] * 3, 20))
    with pytest.raises(ConfigError, match="rank 4: the table has 3 prompts"):
        judge(matrix, policy({"measure": "lowest", "rank": 4, "at_least": 0.5}))
    with pytest.raises(ConfigError, match="no such finished run"):
        judge(matrix, policy({"measure": "drop", "against": "runs/x", "at_most": 0.1}))
    holes = table(
        np.where(np.arange(60).reshape(3, 20) == 5, np.nan, 1.0),
        np.where(np.arange(60).reshape(3, 20) == 5, UNSCORED, 0),
    )
    with pytest.raises(ShapeError, match="1 cells are not scored"):
        judge(holes, policy(WORST))


def words(accuracy_K, demand, n: int, runs: int, growing: bool, seed: int) -> list[str]:
    """Verdicts over new tables; examples differ in difficulty, and so do prompts on examples."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(runs):
        values_KN = (generator.random((len(accuracy_K), n)) < np.asarray(accuracy_K)[:, None]).astype(float)
        if not growing:
            found.append(judge(table(values_KN), demand).word)
        else:
            columns: list[int] = []

            def ask(examples, columns=columns, values_KN=values_KN):
                columns.extend(examples)
                return table(values_KN[:, columns])

            found.append(hunt(demand, n, ask, range(n)).word)
    return found


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize(
    ("criterion", "just_bad", "just_good"),
    [
        ({"measure": "worst", "at_least": 0.8}, [0.7999] + [0.95] * 9, [0.8] * 10),
        ({"measure": "share", "of": 0.8, "at_least": 0.9}, [0.7999] * 2 + [0.95] * 8, [0.5] + [0.8] * 9),
        ({"measure": "share", "of": 0.8, "at_least": 0.1}, [0.7999] * 10, [0.8] + [0.5] * 9),
        ({"measure": "mean", "at_least": 0.8}, [0.7999] * 10, [0.8] * 10),
    ],
)
def test_wrong_verdicts_at_the_boundary_are_as_rare_as_alpha_says_however_often_one_looks(
    criterion, just_bad, just_good, growing
):
    runs = 150 if growing else 400
    demand = policy(criterion, alpha=0.1)
    wrong_go = words(just_bad, demand, 300, runs, growing, 1).count("GO") / runs
    wrong_no = words(just_good, demand, 300, runs, growing, 2).count("NO-GO") / runs
    allowed = 0.1 + 3 * np.sqrt(0.1 * 0.9 / runs)
    assert wrong_go <= allowed
    assert wrong_no <= allowed


def test_looking_often_at_exact_bounds_would_break_the_promise():
    """The reason for sequences: the same demand judged as if each look were the only one."""
    generator, wrong, demand = np.random.default_rng(5), 0, policy({"measure": "mean", "at_least": 0.8}, alpha=0.1)
    for _ in range(200):
        values_KN = (generator.random((3, 600)) < 0.7999).astype(float)
        wrong += any(judge(table(values_KN[:, :n]), demand).word == "GO" for n in range(20, 601, 20))
    assert wrong / 200 > 0.15


def test_examples_sorted_by_difficulty_would_break_the_promise():
    generator, wrong = np.random.default_rng(6), 0
    demand = policy({"measure": "mean", "at_least": 0.8}, alpha=0.1)
    for _ in range(40):
        easy_first_N = -np.sort(-expit(generator.normal(1.2, 1.2, 400)))
        values_KN = (generator.random((5, 400)) < easy_first_N).astype(float)
        assert easy_first_N.mean() < 0.8
        wrong += hunt(demand, 400, lambda columns, v=values_KN: table(v[:, : columns[-1] + 1]), range(400)).word == "GO"
    assert wrong / 40 > 0.9


def test_cells_are_bought_only_until_the_verdict_is_clear():
    n = 5000
    demand = policy(WORST, {"measure": "mean", "at_least": 0.75})
    for accuracy_K, word, most in (
        ([0.95] * 20, "GO", 200),
        ([0.95] * 19 + [0.3], "NO-GO", 100),
        ([0.7] * 20, None, n),
    ):
        values_KN, bought = answered(accuracy_K, n), []

        def ask(examples, bought=bought, values_KN=values_KN):
            bought.extend(examples)
            return table(values_KN[:, bought])

        verdict = hunt(demand, n, ask, range(n))
        assert word in (verdict.word, None)
        assert verdict.examples == len(bought) <= most
        if word == "NO-GO":
            assert (verdict.looks, verdict.examples) == (1, 20)
            assert "look" not in verdict_text(verdict)
        else:
            assert f"{list(looks(demand, n)).index(verdict.examples) + 1} looks" in verdict_text(verdict)
    assert list(looks(demand, 10)) == [10]


def test_the_spread_is_judged_when_all_cells_are_bought():
    values_KN = answered([0.9] * 12, 200)
    demand = policy({"measure": "prompt_sd", "at_most": 0.1})
    verdict = hunt(demand, 200, lambda columns: table(values_KN[:, : columns[-1] + 1]), range(200))
    assert (verdict.word, verdict.examples) == ("GO", 200)


def test_a_few_equal_answers_do_not_show_that_prompts_are_equal():
    alike = table(np.tile([1.0, 0, 1, 1], (2, 1)))
    assert judge(alike, policy({"measure": "prompt_sd", "at_most": 0.1})).word == "INCONCLUSIVE"


def test_a_finished_table_is_judged_on_passages():
    """Five questions each on forty passages: at the bar itself the mean errs as often as alpha says, and not as one of 200 does."""
    generator, bar = np.random.default_rng(8), policy({"measure": "mean", "at_least": 0.7}, alpha=0.1)
    wrong = {True: 0, False: 0}
    for _ in range(200):
        easy_N = np.repeat(generator.random(40) < 0.7, 5) * 0.9 + 0.07
        plain = table((generator.random((4, 200)) < easy_N).astype(float))
        for told in wrong:
            groups_N = tuple(str(n // 5) for n in range(200)) if told else None
            wrong[told] += judge(replace(plain, groups_N=groups_N), bar).word != "INCONCLUSIVE"
    assert wrong[True] / 200 < 0.2 + 3 * np.sqrt(0.2 * 0.8 / 200)
    assert wrong[False] / 200 > 0.4


def test_a_demand_says_what_it_takes_for_independent():
    values_KN = answered([0.8] * 4, 40)
    told = replace(table(values_KN), groups_N=tuple(str(n // 2) for n in range(40)))
    means = {"measure": "mean", "at_least": 0.5}, {"measure": "drop", "against": "a", "at_most": 0.5}
    means += {"measure": "invalid", "at_most": 0.5}, {"measure": "tokens", "at_most": 9}
    others = {**WORST, "rank": None}, {"measure": "prompt_sd", "at_most": 0.2}
    demand, against = policy(*means, *others), {"a": values_KN}
    once, growing, alone = (
        [each.method for each in judge(matrix, demand, against, look=look).criteria]
        for matrix, look in ((told, None), (told, 1), (table(values_KN), None))
    )
    assert ["in 20 groups" in method for method in once] == [True] * 4 + [False] * 2
    assert ["as if they were independent" in method for method in once] == [False] * 4 + [True] * 2
    assert all("as if they were independent" in method for method in growing)
    assert not any("group" in method for method in alone)


def test_machines_can_read_the_verdict():
    matrix = table(answered([0.9] * 5 + [0.6], 300))
    verdict = judge(
        matrix,
        policy(
            {"measure": "mean", "at_least": 0.7},
            WORST,
            {"measure": "worst", "at_least": 0.61, "tier": "advisory"},
            {"measure": "p10", "at_least": 0.6},
        ),
    )
    assert json.loads(json.dumps(verdict.to_dict()))["word"] == verdict.word == "NO-GO"
    suite = ElementTree.fromstring(junit_xml(verdict, "runs/<x> & \x00y"))
    assert [suite.get(key) for key in ("tests", "failures", "skipped")] == ["4", "1", "1"]
    assert [[child.tag for child in case if child.tag != "system-out"] for case in suite] == [
        [],
        ["failure"],
        ["skipped"],
        ["error"],
    ]
    text = verdict_text(verdict)
    assert "chance of a wrong verdict at most 0.05" in text
    each = verdict_text(judge(matrix, policy(WORST, {"measure": "mean", "at_least": 0.7}, errors="each")))
    assert "chance of a wrong outcome of each demand at most 0.05" in each
    assert text.startswith("NO-GO: worst prompt at least 0.7")
    assert "(advisory)" in text


def test_a_limit_of_tokens_that_was_not_met_may_be_met_yet():
    """Twenty answers of one token say little of a mean where one may have 32."""
    short = table(np.ones((3, 20)), tokens_KN=np.ones((3, 20), dtype=int))
    demand = policy({"measure": "tokens", "at_most": 1.5})
    assert judge(short, demand).word == "GO"
    assert judge(short, demand, answer_limit=32).word == "INCONCLUSIVE"


def test_looks_that_grow_beyond_all_numbers_end_at_all_examples():
    demand = {"measure": "mean", "at_least": 0.5}
    assert list(looks(policy(demand, first=2, growth=1e308), 100)) == [2, 100]


def test_a_baseline_with_holes_is_refused_before_anything_is_bought():
    holes = np.ones((3, 40))
    holes[0, 7] = np.nan
    demand = policy({"measure": "drop", "against": "runs/a", "at_most": 0.1})
    with pytest.raises(ShapeError, match="'runs/a': some of its cells are not scored"):
        hunt(demand, 40, lambda _: pytest.fail("it was asked"), range(40), {"runs/a": holes})
