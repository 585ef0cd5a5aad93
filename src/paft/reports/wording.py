"""How figures are written, and the sentences above them. Accuracies come in [0, 1] and are printed in percent;
differences and spreads are printed in points. Plain text throughout: escaping is the business of whoever prints it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

from paft.evaluation.stats import MANY
from paft.evaluation.variance import untried_share
from paft.tasks.answers import AGREEMENT, SHARED_WORDS

SCORERS = {"generation": "free answers", "likelihood": "restricted choice"}
"""What a reader sees for a scorer, in the order in which they are shown."""

WHY_BOTH = (
    "Free answers show what a user would get; restricted choice shows how much of a failure is the form of the answer "
    "rather than the decision."
)

MANY_EXAMPLES, MANY_PROMPTS = 300, 10
"""Below either of these the intervals, which rest on normal theory, are called approximate."""

MISSING = "\u2013"
"""In a table, a figure that was not computed."""

Standing = Literal["ahead", "level", "behind", "unknown"]

NBSP = "\u00a0"


def number(value: float, digits: int = 1) -> str:
    """A share in percent, without the sign.

    >>> number(0.8325)
    '83.2'
    """
    text = f"{100 * value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\u2212")


def percent(value: float) -> str:
    """A share in percent with the sign, kept on one line."""
    return f"{number(value)}{NBSP}%"


def signed(value: float) -> str:
    """A difference in points, always with its sign.

    >>> signed(0.312), signed(0.0)
    ('+31.2', '0.0')
    """
    text = number(value)
    return text if text.startswith("\u2212") or float(text) == 0 else f"+{text}"


def p_value(p: float) -> str:
    """A p value in two digits.

    >>> p_value(0.0312), p_value(1e-9)
    ('0.031', '< 0.0001')
    """
    return f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


def interval(estimate: Mapping[str, Any], difference: bool = False) -> str:
    """Both bounds, or the empty text where there is no interval."""
    if estimate["low"] is None or estimate["high"] is None:
        return ""
    write = signed if difference else number
    return f"{write(estimate['low'])} to {write(estimate['high'])}"


def level(estimate: Mapping[str, Any]) -> str:
    """Level of the interval: 95 %."""
    return f"{100 * estimate['level']:g}{NBSP}%"


def levels(result: Mapping[str, Any], scorer: str) -> str:
    """Level of all intervals of a table: 95 %; from the least to the greatest where budgets that look have left different ones."""
    found = {each["level"] for arm in result["arms"].values() for each in arm["scores"][scorer]["estimates"].values()}
    return " to ".join(f"{100 * each:g}" for each in dict.fromkeys((min(found), max(found)))) + f"{NBSP}%"


def in_brackets(estimate: Mapping[str, Any], difference: bool = False, lead: str = "") -> str:
    """The interval in brackets after a figure, with what is written before it; empty where there is none."""
    text = interval(estimate, difference)
    return f" ({lead}{text})" if text else ""


def named(arm: Mapping[str, Any]) -> str:
    """An arm's title inside a sentence: in quotation marks when it is more than one word."""
    title = clean(arm["title"])
    return f"\u201c{title}\u201d" if " " in title else title


def thousands(value: float) -> str:
    """A count with thin groups of three.

    >>> thousands(52800)
    '52,800'
    """
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """A time a person reads.

    >>> duration(210.3), duration(4000)
    ('3 min 30 s', '1 h 06 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def standing(difference: Mapping[str, Any], higher_is_better: bool = True) -> Standing:
    """Which side of zero the interval of a difference lies on."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "unknown"
    if low > 0:
        return "ahead" if higher_is_better else "behind"
    if high < 0:
        return "behind" if higher_is_better else "ahead"
    return "level"


def what_scorer_means(result: Mapping[str, Any], scorer: str) -> str:
    """How answers are made and what is wrong: of choices, open answers, and answers that are worth a part."""
    if scorer == "likelihood":
        return "Only the log-probabilities of the choices are compared, so every answer is one of them."
    if judged := worth_by(result, scorer):
        return (
            f"The model writes its answer, which is scored from 0 to 1 by {judged}; no answer, or several, is worth 0. Accuracies are "
            "means of these scores."
        )
    unread = "no answer, or several," if result["task"].get("open") else "an answer that names no choice, or several,"
    return f"The model writes its answer and a parser reads it; {unread} is wrong."


def worth_by(result: Mapping[str, Any], scorer: str) -> str:
    """What free answers of partial worth are scored by; empty where each is right or wrong."""
    judge = result["task"].get("judge") if scorer == "generation" else None
    if not judge:
        return ""
    # the judge is known by a hash of its weights; a reader knows it by the name it was asked for
    named = result["config"]["evaluate"].get("embeddings") or judge
    rules = {SHARED_WORDS: "F1 of words", AGREEMENT: "how much of the right call they have (T-Eval's rule)"}
    return rules.get(judge, f"the embedding model {clean(named)}")


def main_scorer(result: Mapping[str, Any]) -> str:
    """The scorer that the sentences speak of: free answers where there are any."""
    return scorers(result)[0]


def scorers(result: Mapping[str, Any]) -> list[str]:
    """The scorers of a run, in the order in which they are shown."""
    found = [scorer for arm in result["arms"].values() for scorer in arm["scores"]]
    order = list(SCORERS)
    return sorted(dict.fromkeys(found), key=lambda scorer: order.index(scorer) if scorer in order else len(order))


def comparison_of(result: Mapping[str, Any], scorer: str) -> Mapping[str, Any] | None:
    """The last arm against the one before it, or None where that was not compared."""
    names = list(result["arms"])
    for comparison in result["comparisons"]:
        if len(names) > 1 and (comparison["a"], comparison["b"], comparison["scorer"]) == (
            names[-1],
            names[-2],
            scorer,
        ):
            found: Mapping[str, Any] = comparison
            return found
    return None


def headline(result: Mapping[str, Any], scorer: str) -> str:
    """What the last arm reaches, with the arm before it as the measure: figures only, no judgement.

    The lowest accuracy is the one observed, which a reader can find among the dots; the estimate is in the table.
    """
    names = list(result["arms"])
    last = result["arms"][names[-1]]
    mean, lowest = last["scores"][scorer]["estimates"]["mean"], _lowest(last["scores"][scorer])
    share = percent(mean["value"])
    reaches = f"gives answers worth {share}" if worth_by(result, scorer) else f"answers {share} right"
    text = (
        f"Asked in {mean['prompts']} wordings it has not seen, {named(last)} {reaches} on average"
        f"{in_brackets(mean, lead=f'{level(mean)} interval ')} and {lowest} under the worst of them"
    )
    if len(names) > 1:
        before = result["arms"][names[-2]]
        mean, lowest = before["scores"][scorer]["estimates"]["mean"], _lowest(before["scores"][scorer])
        text += f"; {named(before)}: {percent(mean['value'])}{in_brackets(mean)} and {lowest}"
    return text + "."


def _lowest(scores: Mapping[str, Any]) -> str:
    found = scores["estimates"].get("table_worst")
    if found is None:
        return percent(min(scores["accuracy_K"]))
    return f"between {percent(found['low'])} and {percent(found['high'])}"


def verdicts(result: Mapping[str, Any], scorer: str) -> list[str]:
    """Whether the last arm is ahead of the arm before it on average, in spread, and under the worst prompt.

    Each is decided by the interval of the paired difference; an interval that holds zero is called no clear difference.
    """
    comparison = comparison_of(result, scorer)
    if comparison is None:
        return []
    a, b = (named(result["arms"][comparison[side]]) for side in ("a", "b"))
    mean, sd = comparison["mean"], comparison["prompt_sd"]
    by = f"{number(abs(mean['value']))} points"
    bounds = in_brackets(mean, True, f"{level(mean)} interval ")
    match standing(mean):
        case "ahead":
            first = f"On average {a} is ahead of {b} by {by}{bounds}."
        case "behind":
            first = f"On average {a} is behind {b} by {by}{bounds}."
        case "level":
            first = f"No clear difference on average between {a} and {b}: {signed(mean['value'])} points{bounds}, an interval that includes zero."
        case "unknown":
            first = f"On average {a} differs from {b} by {signed(mean['value'])} points; no interval can be given."
        case never:
            assert_never(never)
    own, other = (
        result["arms"][comparison[side]]["scores"][scorer]["estimates"]["prompt_sd"]["value"] for side in ("a", "b")
    )
    if sd is None or comparison["worst"] is None:
        return [first]
    both = f"standard deviation over prompts {number(own)} points against {number(other)}, difference {signed(sd['value'])}{in_brackets(sd, True)}"
    match standing(sd, higher_is_better=False):
        case "ahead":
            second = f"The accuracy of {a} depends less on the wording: {both}."
        case "behind":
            second = f"The accuracy of {a} depends more on the wording: {both}."
        case "level" | "unknown":
            second = f"No clear difference in how much accuracy depends on the wording: {both}."
        case never:
            assert_never(never)
    worst = comparison["worst"]
    bounds = in_brackets(worst, True)
    match standing(worst):
        case "ahead":
            third = (
                f"Under the worst prompt {a} is ahead of {b} by an estimated {number(worst['value'])} points{bounds}."
            )
        case "behind":
            third = (
                f"Under the worst prompt {a} is behind {b} by an estimated {number(-worst['value'])} points{bounds}."
            )
        case "level" | "unknown":
            third = f"No clear difference under the worst prompt: an estimated {signed(worst['value'])} points{bounds}."
        case never:
            assert_never(never)
    return [first, second, third]


def cautions(result: Mapping[str, Any]) -> list[str]:
    """What the intervals do not cover, and when they are rough."""
    found = []
    if any(arm["train"] for arm in result["arms"].values()):
        found.append("One training seed: the intervals cover prompts and examples, not the luck of training.")
    if result["config"]["evaluate"].get("stop") == "settled":
        found.append(
            "Free answers were cut once their reading was settled: tokens per answer and answers ended by the model are not those of a "
            "model left alone."
        )
    mean = next(iter(result["arms"].values()))["scores"][main_scorer(result)]["estimates"]["mean"]
    k, of = mean["prompts"], mean["examples"]
    # a race asks for its mean only a block of the examples
    n = min(arm["budget"].get("sampled_examples", of) for arm in result["arms"].values())
    few = [f"{n}{' sampled' * (n < of)} examples, fewer than {MANY_EXAMPLES}"] if n < MANY_EXAMPLES else []
    few += [f"{k} prompts, fewer than {MANY_PROMPTS}"] if k < MANY_PROMPTS else []
    if few:
        found.append(f"Approximate: {' and '.join(few)}; the intervals may cover less often than their level says.")
    if k < MANY:
        found.append(
            f"{k} prompts cannot rule out that up to {percent(untried_share(k))} of new wordings are worse than every one of "
            f"these (95{NBSP}% confidence). Figures about new prompts, P10 and CVaR above all, take it that no such group exists."
        )
    return found


def noise_note(result: Mapping[str, Any], scorer: str) -> str:
    """How much of the raw spread is item noise, by the last arm's own figures."""
    last = list(result["arms"].values())[-1]
    scores = last["scores"][scorer]
    if scores["raw_sd"] is None:
        return (
            f"Of {named(last)} {spent_note(last)}: a mixture model over prompts tells from them how they would fare on all "
            "examples. Figures about exactly these prompts and examples would be without error had every cell been bought."
        )
    sd = scores["estimates"]["prompt_sd"]
    raw = number(scores["raw_sd"])
    why = (
        ""
        if raw == "0.0"
        else f": with {sd['examples']} examples it would not be zero even if every wording were equally good"
    )
    return (
        f"A raw standard deviation includes item noise{why}. For {named(last)} it is {raw} points as observed and "
        f"{number(sd['value'])} with that noise removed."
    )


def bought_in_part(result: Mapping[str, Any], scorer: str) -> tuple[bool, str]:
    """Whether of any arm a part of the cells was bought, and where that is not so of all, of which: " of A, B"."""
    arms = list(result["arms"].values())
    part = [named(arm) for arm in arms if arm["scores"][scorer]["raw_sd"] is None]
    return bool(part), f" of {', '.join(part)}" if 0 < len(part) < len(arms) else ""


def spent_note(arm: Mapping[str, Any]) -> str:
    """How many cells were bought of an arm, of how many."""
    budget = arm["budget"]
    note = f"{thousands(budget['cells'])} of {thousands(budget['of'])} cells were bought"
    missed = ", ".join(name.removeprefix("table_") for name in budget["missed"])
    return note + (f"; not reached within the budget: {missed}" if missed else "")


def provenance(result: Mapping[str, Any]) -> str:
    """One line that says where the figures come from."""
    config, task = result["config"], result["task"]
    return clean(
        f"{config['name']}: task {task['name']}, split {task['split']}, {len(result['prompts']['test'])} unseen prompts x "
        f"{task['test_examples']} examples; model {model_of(config)}, seed {config['seed']}; prompt set {result['prompts']['set']} "
        f"({result['prompts']['fingerprint']}); paft {result['paft']}, {result['made']}"
    )


def model_of(config: Mapping[str, Any]) -> str:
    """The run's model, or those of its arms where it has none: loaded, served, or with answers that were recorded elsewhere."""
    arms = config["arms"]
    recorded = [f"{arm['title'] or name} (recorded answers)" for name, arm in arms.items() if arm.get("recorded")]
    if config["model"] is not None and len(recorded) < len(arms):
        return str(config["model"])
    loaded = [str(arm["model"]) for arm in arms.values() if arm["model"] is not None]
    servers = [arm["server"] for arm in arms.values() if arm["server"] is not None]
    named = [f"{server['model'] or 'the one'} at {server['base_url']}" for server in servers]
    return ", ".join(dict.fromkeys([*loaded, *named, *recorded]))


def bars(estimates: Mapping[str, Any]) -> list[str]:
    """Keys, without "table_", of the shares of prompts that reach a threshold."""
    return [plain for key in estimates if (plain := key.removeprefix("table_")).startswith("share>=")]


def pick(estimates: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """An estimate, or where only a part of the cells was bought the same about exactly these prompts and examples."""
    return estimates.get(key) or estimates.get(f"table_{key}")


def bar_title(key: str) -> str:
    """A threshold as a reader sees it: "≥ 60 %"."""
    return f"\u2265{NBSP}{100 * float(key.split('>=')[1]):g}{NBSP}%"


def clean(text: str) -> str:
    """Text that can be printed anywhere: control signs shown as pictures, halves of broken pairs replaced.

    Tabs and line ends stay. What HTML or Markdown make of the rest is decided by who prints it.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        _shown(sign) if unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t" else sign for sign in text
    )


def _shown(sign: str) -> str:
    code = ord(sign)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def first_words(text: str, limit: int = 70) -> str:
    """The start of a text on one line, cut between words where possible."""
    line = " ".join(clean(text[: 20 * limit]).split())
    if len(line) <= limit:
        return line
    cut = line[:limit]
    return (cut[: cut.rfind(" ")] if " " in cut[limit // 2 :] else cut) + " \u2026"


def slots(text: str) -> Sequence[tuple[str, bool]]:
    """The text in pieces, each with whether it is a slot that a field of the example fills.

    >>> slots("Is {sentence} good?")
    [('Is ', False), ('{sentence}', True), (' good?', False)]
    """
    pieces = re.split(r"(\{[A-Za-z_]\w*\})", text)
    return [(piece, position % 2 == 1) for position, piece in enumerate(pieces) if piece]
