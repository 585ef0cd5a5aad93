"""A gate's verdict and a table of pairs, for terminals, and for machines that read JUnit XML."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from paft.evaluation.comparisons import Pairwise, Seeded
from paft.evaluation.gate import Checked, Verdict
from paft.evaluation.stats import Estimate
from paft.reports.tables import P_MEANS, ahead_count, compared_on, in_part
from paft.reports.wording import MISSING, clean, in_brackets, number, p_value, signed

SIGNS = {"pass": "met", "fail": "missed", "undecided": "open"}


def verdict_text(verdict: Verdict) -> str:
    """The verdict, its reason, and a line per demand."""
    looks = f", {verdict.looks} looks" if verdict.looks > 1 else ""
    wrong = "verdict" if verdict.errors == "all" else "outcome of each demand"
    lines = [
        f"{verdict.word}: {clean(verdict.reason)}",
        f"{verdict.prompts} prompts x {verdict.examples} examples{looks}; chance of a wrong {wrong} at most {verdict.alpha:g}",
    ]
    width = max(len(each.title) for each in verdict.criteria)
    for each in verdict.criteria:
        tier = "" if each.tier == "critical" else "  (advisory)"
        lines.append(f"  {SIGNS[each.outcome]:<6}  {clean(each.title):<{width}}  {_figures(each)}{tier}")
    return "\n".join(lines)


def _figures(each: Checked) -> str:
    low, high = ("?" if bound is None else f"{bound:.3f}" for bound in (each.low, each.high))
    return f"{each.value:.3f} ({low} to {high})"


def junit_xml(verdict: Verdict, name: str) -> str:
    """The demands as test cases: a missed one is a failure, one that stayed open is an error, an advisory one is skipped
    with its outcome as message."""
    critical = [each for each in verdict.criteria if each.tier == "critical"]
    suite = ElementTree.Element(
        "testsuite",
        name=f"paft gate {clean(name)}",
        tests=str(len(verdict.criteria)),
        failures=str(sum(each.outcome == "fail" for each in critical)),
        errors=str(sum(each.outcome == "undecided" for each in critical)),
        skipped=str(len(verdict.criteria) - len(critical)),
    )
    for each in verdict.criteria:
        case = ElementTree.SubElement(suite, "testcase", classname="paft.gate", name=clean(each.title))
        message = f"{SIGNS[each.outcome]}: {_figures(each)}; {each.method}"
        if each.tier == "advisory":
            ElementTree.SubElement(case, "skipped", message=f"advisory, {message}")
        elif each.outcome != "pass":
            ElementTree.SubElement(case, "failure" if each.outcome == "fail" else "error", message=message)
        ElementTree.SubElement(case, "system-out").text = message
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def pairs_table(pairs: Sequence[Pairwise]) -> str:
    """Markdown: differences a - b in points with intervals, and the p value of the mean, in brackets that kept for all pairs together."""
    head = ("a", "b", "mean", "SD over prompts", "worst prompt", "a ahead on", "p (Holm)")
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * 5]
    told = [pair.to_dict() for pair in pairs]
    part = in_part(told)
    for pair, each in zip(pairs, told, strict=True):
        c = pair.comparison
        figures = [_difference(part) for part in (c.mean, c.prompt_sd, c.worst)]
        p = f"{p_value(pair.p)} ({p_value(pair.p_holm)})"
        cells = [_name(pair.a), _name(pair.b), *figures, ahead_count(each, part), p]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Differences a - b in points on {compared_on(told)}; in brackets {100 * pairs[0].comparison.mean.level:g} % intervals. {P_MEANS}",
    ]
    return "\n".join(lines)


def seeds_table(rows: Sequence[Seeded]) -> str:
    """Markdown: every arm over the training seeds, then every paired difference, in points with intervals."""
    head = ("over seeds", "mean", "SD over prompts", "SD over seeds")
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * 3]
    for row in rows:
        title = _name(row.a) if row.b is None else f"{_name(row.a)} - {_name(row.b)}"
        centre = _difference(row.over.mean) if row.b is not None else _share(row.over.mean)
        lines.append("| " + " | ".join([title, centre, _share(row.over.prompt_sd), _share(row.over.seed_sd)]) + " |")
    mean = rows[0].over.mean
    lines += [
        "",
        f"Percent and points; {mean.prompts} prompts x {mean.examples} examples; in brackets {100 * mean.level:g} % intervals over new "
        "prompts, new examples and new seeds. SD over prompts: item noise removed, of the scores averaged over seeds (a difference: of the "
        "differences).",
    ]
    return "\n".join(lines)


def _name(text: str) -> str:
    """For a cell of Markdown that is also read in a terminal: only what would end the cell, or be HTML, is written otherwise."""
    return " ".join(clean(text).split()).replace("<", "&lt;").replace("|", "\\|")


def _share(part: Estimate) -> str:
    return number(part.value) + in_brackets(part.to_dict())


def _difference(part: Estimate | None) -> str:
    if part is None:
        return MISSING
    return signed(part.value) + in_brackets(part.to_dict(), difference=True)
