"""Which candidate prompts may enter a set, and why the others may not. Nothing is dropped without a name and a reason.

Structure is exact (`Template.faults`). What a prompt *says* is read by rules over its own words, made to be right when they
speak: they miss what is said in unusual ways, which is what the behavioural check and a reader are for.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from paft.prompts.similarity import MEANING, Embed, cosine_pairs, near_pairs, reworded_pairs, static_form
from paft.prompts.template import Fault, Template, template_to
from paft.tasks.answers import LETTERS, ChoiceText, Labels, Plan, ToolCall, Wrapped
from paft.tasks.types import Task

FAULTS = {
    "slot_missing": "a required field is not shown",
    "slot_unknown": "a slot that the task does not have",
    "slot_repeated": "a slot shown twice",
    "options_missing": "the options, or some of them, are not shown",
    "blank": "a placeholder that nobody filled",
    "escape": "a literal backslash-n or backslash-t",
    "empty": "no text",
    "leak": "the words give an answer away",
    "contract": "the words ask for another form than the target has",
    "polarity": "asks the inverse question",
    "reasoning": "asks for more than the bare answer",
    "language": "garbled text",
    "length": "far too long, or the same text over and over",
    "outlier": "much longer than the other prompts of the set",
    "repeat": "the same prompt as another",
    "near_duplicate": "nearly the same prompt as another",
    "copied": "nearly a prompt that the writer was shown as an example",
    "judged": "every judge found a fault",
    "disputed": "some judges found a fault, or one gave no verdict; or the solver gave no answers",
    "behaviour": "a capable model answers far worse under it than under prompts like it",
    "reviewed": "dropped by hand",
}
"""Every fault by its name."""

OPEN_TO_REVIEW = frozenset(
    {"leak", "contract", "polarity", "reasoning", "language", "length", "outlier", "judged", "disputed", "behaviour"}
)
"""Faults that are a matter of reading: a person may overrule them."""

Decision = Literal["keep", "drop"]

MAX_CHARACTERS = 3000
OUTLIER = 6.0
"""Robust standard deviations of log length above the median."""


@dataclass(frozen=True)
class Selection:
    """What was kept, and what was dropped with its faults, both in the order given."""

    kept: tuple[Template, ...]
    dropped: tuple[tuple[Template, tuple[Fault, ...]], ...]

    @property
    def counts(self) -> dict[str, int]:
        """Templates per fault; one template may have several."""
        return dict(
            Counter(name for _, faults in self.dropped for name in {fault.name for fault in faults}).most_common()
        )

    def to_dict(self) -> dict[str, object]:
        """For the audit file that stays with a set."""
        return {
            "kept": len(self.kept),
            "dropped": len(self.dropped),
            "counts": self.counts,
            "templates": [
                {**template_to(template), "faults": [{"name": f.name, "reason": f.reason} for f in faults]}
                for template, faults in self.dropped
            ],
        }


def audit(
    templates: Sequence[Template],
    task: Task,
    similarity: float = 0.7,
    shown: Sequence[Template] = (),
    *,
    embed: Embed | None = None,
    opinions: Mapping[str, Sequence[Fault]] = MappingProxyType({}),
    decisions: Mapping[str, Decision] = MappingProxyType({}),
) -> Selection:
    """The templates without a fault. Of a group of near-duplicates the first stays: Jaccard of 5-grams >= similarity, the same
    but for some words, or, with embed, a cosine of sentence embeddings >= MEANING.

    shown: prompts that writers were given as examples; what comes as near to one of them is no prompt of theirs.
    opinions: faults that others found (judges, a model that answers), by template id.
    decisions: a person's word, by template id: "keep" overrules faults of OPEN_TO_REVIEW, "drop" is a fault of its own.
    """
    faults: list[list[Fault]] = []
    for template in templates:
        found = [*faults_of(template, task), *opinions.get(template.id, ())]
        match decisions.get(template.id):
            case "keep":
                found = [fault for fault in found if fault.name not in OPEN_TO_REVIEW]
            case "drop":
                found.append(Fault("reviewed", "dropped by hand"))
        faults.append(found)
    first: dict[str, int] = {}
    for place, template in enumerate(templates):
        form = static_form(template) + repr(template.answer)
        earlier = first.get(form, first.get(template.id))
        if earlier is not None:
            faults[place].append(Fault("repeat", f"the same as {templates[earlier].id}"))
            continue
        first[template.id] = place
        if not faults[place]:  # the sound twin of a broken prompt, such as one with a misspelt slot, stays
            first[form] = place
    _mark_outliers(templates, faults, {each for each, word in decisions.items() if word == "keep"})
    steps: list[tuple[str, Callable[[Sequence[Template]], list[tuple[int, int, float]]]]] = [
        ("like", lambda each: near_pairs(each, similarity)),
        ("in its words like", lambda each: [(a, b, alike) for a, b, alike in reworded_pairs(each, each) if a < b]),
    ]
    if embed is not None:
        steps.append(("in meaning like", lambda each: cosine_pairs(each, MEANING, embed)))
    for how, pairs_of in steps:
        sound = [place for place, found in enumerate(faults) if not found]
        compared = [*shown, *(templates[place] for place in sound)]
        gone: set[int] = set()
        for a, b, alike in sorted(pairs_of(compared)):
            if b < len(shown) or a in gone or b in gone:
                continue
            gone.add(b)
            name = "copied" if a < len(shown) else "near_duplicate"
            faults[sound[b - len(shown)]].append(Fault(name, f"{alike:.2f} {how} {compared[a].id}"))
    dropped = tuple((template, tuple(found)) for template, found in zip(templates, faults, strict=True) if found)
    return Selection(tuple(t for t, found in zip(templates, faults, strict=True) if not found), dropped)


def faults_of(template: Template, task: Task) -> Iterator[Fault]:
    """Everything that is wrong with one template by itself."""
    structural = list(template.faults(task))
    yield from structural
    if any(fault.name in ("slot_unknown", "empty") for fault in structural):
        return
    words = _Words(template, task)
    yield from words.faults()


def _mark_outliers(templates: Sequence[Template], faults: list[list[Fault]], kept: set[str]) -> None:
    if len(templates) < 20:
        return
    lengths = np.log([max(1, len(template.static_text.strip())) for template in templates])
    middle = float(np.median(lengths))
    spread = max(1.4826 * float(np.median(np.abs(lengths - middle))), 0.1)
    for template, length, found in zip(templates, lengths, faults, strict=True):
        if (length - middle) / spread > OUTLIER and template.id not in kept:
            found.append(
                Fault("outlier", f"{len(template.static_text)} characters; the median is {np.exp(middle):.0f}")
            )


_NEGATED = re.compile(
    r"\b(?:no|not|never|without|nor|neither|skip|omit|avoid|instead of|rather than|n't|don['\u2019]?t|dont|cannot|leave out"
    r"|ohne|kein\w*|nicht|sans|pas|ne|sin|senza|non|sem|zonder|geen|bez|nie|nein)\b[^.!?\n]{0,40}$",
    re.IGNORECASE,
)
_MORE = re.compile(
    r"\b(?:explain (?:your|why|briefly)|explain\W*$|explanation (?:of|for|why)|with an? (?:\w+ )?(?:explanation|justification|rationale|reason)"
    r"|give (?:an? |your |the |me )?(?:\w+ )?(?:reason|reasons|reasoning|explanation|justification|rationale)\b"
    r"|(?:think|reason|work|go)[^.!?\n]{0,20} step[- ]by[- ]step|think (?:aloud|out loud|it through)|show (?:your|the|all) (?:work|reasoning|steps|thinking)|justify|walk me through"
    r"|(?:give|show|write|state|include|share) (?:your|the) (?:reasoning|rationale|justification|chain of thought)\b|(?:state|give|rate|report|add|include)[^.\n]{0,30}\b(?:confidence|certainty|probabilit(?:y|ies)|how (?:sure|certain|confident))"
    r"|confidence (?:score|level|rating|from|between|in (?:percent|%))|how (?:sure|certain|confident) (?:you are|are you)"
    r"|(?:all|both|two|several|the two|top (?:two|three)) (?:answers|options|endings|choices|letters|solutions) (?:that|which|you|could|in)"
    r"|rank (?:all|the|these|them)|(?:tell (?:me|us)|say|write|note|add|state) why\b|(?:one|two|a few|three) sentences? (?:of|on|about) (?:why|reasoning|explanation)"
    r"|(?:list|weigh|compare|discuss)[^.\n]{0,30}\b(?:pros and cons|each option|every option|all (?:the )?options)"
    r"|(?:short|brief|one[- ]line|one[- ]sentence|quick) (?:explanation|reason|justification|rationale|argument)|(?:then|and|also|please) explain\b"
    r"|your (?:thoughts|thinking|reasons|second choice)|before (?:you )?answer(?:ing)?,? (?:think|reason|describe|explain|write|list)|first (?:think|reason|explain|describe|analy[sz]e)\b"
    r"|in percent\b|on a scale|from 0 to (?:1|10|100)\b|second[- ]best|runner[- ]up|begr\u00fcnde|expli(?:que|quez|ca)|justifi(?:ez|que))",
    re.IGNORECASE,
)
_ASKS = (
    r"(?:which|what|who|pick|choose|select|identify|find|mark|give|tell|name|state|point (?:to|out)|indicate|spot|put|circle"
    r"|(?:letter|number|label|name|text|digit|index) of|looking for|want|need|report)"
)
_THING = (
    r"(?:option|ending|answer|choice|one|continuation|solution|method|way|candidate|word|statement|approach|alternative"
    r"|idea|proposal|version|suggestion|tip|filler|noun|advice|reply)"
)
_FAIL = (
    r"(?:work|fit|follow|belong|make (?:any )?sense|happen|help|succeed|continue|describe|match|achieve|agree|be (?:true|right|correct)"
    r"|supported|correct|right|true|plausible|the (?:right|correct|true|best))"
)
_INVERSE = re.compile(
    rf"\b{_ASKS}\b[^.?!;:\n]{{0,60}}?(?:\b(?:the )?(?:worst|least (?:likely|plausible|sensible|suitable|useful|fitting"
    r"|convincing|believable|probable|practical|effective|appropriate|helpful|reasonable|natural|logical|good|supported|accurate))\b"
    rf"|\b(?:the|a) (?:wrong|incorrect|false|bad|implausible|impossible|unlikely|nonsensical|useless|unsuitable|mistaken) {_THING}\b(?!s)"
    rf"|\b(?:will|would|does|do|can|could|should|is|are)(?: not|n['\u2019]t| never) (?:\w+ )?{_FAIL}\b"
    rf"|\b(?:won|doesn|wouldn|isn|can|couldn)['\u2019]?t (?:\w+ )?{_FAIL}\b|\bcannot (?:\w+ )?{_FAIL}\b"
    r"|\bis (?:wrong|incorrect|false|nonsense|impossible|mistaken)\b|\bodd one out\b|\bto (?:be )?(?:discard|reject|eliminate|throw|rule)(?:ed)?\b)",
    re.IGNORECASE,
)
_INVERSE_ELSEWHERE = re.compile(
    r"\b(?:quale|welche\w*|quelle?s?|cu[a\u00e1]l|qual|welke|wat|was|kt\u00f3r\w+)\b[^.?!\n]{0,60}"
    r"\b(?:sbagliat\w|falsch\w*|schlechte\w*|fausse?|mauvaise?|peor|pire|peggiore?|pior|errad\w|verkeerd\w?|slechtste|b\u0142\u0119dn\w*)\b",
    re.IGNORECASE,
)
_MOJIBAKE = re.compile(
    r"\u00c3[\u0080-\u00bf\u0192\u201a-\u2122]|\u00e2\u20ac|\u00c2[\u00a0-\u00bf]|\u00ef\u00bf\u00bd|\ufffd|\u00d0[\u0080-\u00bf\u2018-\u2122]|\u00e3\u0081|\u00f0\u0178"
)
_WORD = re.compile(r"[^\W\d_]+")
_GIVES = r"(?:answer|solution|result|key|label|verdict|correct (?:option|choice|answer|one|ending)|right (?:option|choice|answer|one|ending)|gold|truth)"


class _Words:
    """What a template says, in its own words: the rules for leak, contract, polarity, reasoning, language, length."""

    def __init__(self, template: Template, task: Task):
        self.template, self.task = template, task
        self.text = f"{template.system}\n\n{template.text}" if template.system else template.text
        first = [self.text.find(f"{{{name}}}") for name in template.slots]
        self.start, self.end = min(first, default=0), max(first, default=0)
        inner = template.inner_answer
        self.labels: tuple[str, ...] = ()
        if isinstance(inner, Labels):
            self.labels = inner.labels or LETTERS[: task.num_choices]
        elif task.choices:
            self.labels = task.choices

    def faults(self) -> Iterator[Fault]:
        """All of them."""
        for rule in (self.leak, self.contract, self.polarity, self.reasoning, self.language, self.length):
            if reason := rule():
                yield Fault(rule.__name__, reason)

    def leak(self) -> str | None:
        """A sentence that gives one answer away; a list of all labels and a worked example before the fields do not."""
        if not self.labels:
            return None
        label = "|".join(re.escape(each) for each in sorted(self.labels, key=len, reverse=True))
        said = rf"[\s:=>\"'`(\[*{{]*(?P<label>{label})(?![\w/])(?!\s*(?:,? ?(?:or|and)\b|\||/|if\b|when\b|for (?!this)|to\b|means?\b|stands?\b|=|\.\.|\u2026))"
        given: dict[str, str] = {}
        for pattern, everywhere in (
            (rf"\b(?:the|correct|right|its|true|real|official) {_GIVES}(?: here| again)?,? (?:is|was|must be|should be|has to be|will be|says?|reads?)(?: clearly| obviously| of course| always| definitely)?(?: option| ending| letter| number| choice| label)?{said}", True),
            (rf"\b(?:hint|psst|spoiler|clue|secret|between us|confidentially|p\.?s\.?)\b[^.?!\n]{{0,60}}?{said}", True),
            (rf"(?<!<)\b(?:{_GIVES}|correct)[\"']?(?: for \w+| key)?\s*(?:\([^)\n]*\))?\s*:{said}", False),
            (rf"\b(?:it(?:['\u2019]s| is) (?:clearly|obviously|of course|certainly|surely|definitely|actually)|we (?:all )?know (?:that )?(?:it(?:['\u2019]s| is)|the answer is)|(?:key|he|she|teacher|friend|it|book|solution|expert)s? says? (?:that )?(?:it(?:['\u2019]s| is))?){said}", True),
        ):  # fmt: skip
            for match in re.finditer(pattern, self.text, re.IGNORECASE):
                single = len(match["label"]) == 1
                if single and (match["label"] not in self.labels or re.match(r" \w", self.text[match.end() :])):
                    single_word = re.match(r" (?:for this|is|because|here|obviously)\b", self.text[match.end() :])
                    if match["label"] not in self.labels or not single_word:
                        continue  # an article, a pronoun
                sentence = re.split(r"[.?!\n]", self.text[match.end() :])[0]
                others = [each for each in self.labels if _fold(each) != _fold(match["label"])]
                if any(re.search(rf"(?<!\w){re.escape(each)}(?!\w)", sentence) for each in others):
                    continue  # the other answers are named beside it
                if match.start() >= self.start or everywhere:
                    given[_fold(match["label"])] = " ".join(match[0].split())[:60]
        if len(given) == 1:
            return f"says {next(iter(given.values()))!r}"
        marked = re.search(r"\{(?:[A-Z]|choices)\}[^\S\n]*[(\[<*\u2190-]+[^\S\n]*(?:this is )?(?:the )?(?:correct|right|true|best|gold)\b|[\u2713\u2714\u2705]\s*\{[A-Z]\}|\{[A-Z]\}\s*[\u2713\u2714\u2705]", self.text, re.IGNORECASE)  # fmt: skip
        return f"marks an option as right: {marked[0]!r}" if marked else None

    def contract(self) -> str | None:
        """The form that the words ask for, where it is plain, against the form of the target."""
        inner = self.template.inner_answer
        text = re.sub(r"\{[A-Za-z_]+\}", "\u25a1", self.text)
        is_text = isinstance(inner, ChoiceText) and self.task.choices is None and self.task.num_choices > 1
        if reason := self._wrap_asked(text) or self._mapping(text):
            return reason
        letter, number = _asks(text, "letter"), _asks(text, "number|digit")
        if is_text:
            asked = letter or number
            return f"asks for {asked!r}; the target is the option's text" if asked else None
        if not isinstance(inner, Labels):
            return None
        own, target = {_fold(label) for label in self.labels}, f"the target is one of {', '.join(self.labels)}"
        named = _listed_labels(text, self.task.num_choices)
        if named and own not in named and not self._explains(text):
            return f"lists {' / '.join(sorted(named[0]))} as answers; {target}"
        shown = self._markers()
        if (
            shown
            and {_fold(marker) for marker in shown} != own
            and not any(_word(label, text) for label in self.labels)
        ):
            return f"shows the options as {', '.join(shown)}; {target}"
        if letter and not any(len(label) == 1 and label.isalpha() for label in own) and not self._explains(text):
            return f"asks for {letter!r}; {target}"
        if number and not any(re.search(r"\d", label) for label in own) and not own & _NUMBER_WORDS:
            return f"asks for {number!r}; {target}"
        full = self.task.choices is None and _asks(
            text, r"(?:full|complete|entire|exact) (?:text|wording)|option word for word"
        )
        if full and not (letter or number or named):
            return f"asks for {full!r}; the target is a label"
        return None

    def _wrap_asked(self, text: str) -> str | None:
        wrap = self.template.answer.wrap if isinstance(self.template.answer, Wrapped) else ""
        if "\\boxed" in text and "\\boxed" not in wrap:
            return f"asks for \\boxed; the target is {wrap or 'the bare answer'}"
        asked = re.search(
            r"\b(?:answer|reply|respond|return|output|write|send|give)\b[^.\n]{0,25}\b(?:as|in|with|only|valid|a|one)\b[^.\n]{0,15}\bjson\b(?! (?:below|above|input|record))",
            text,
            re.IGNORECASE,
        )
        negated = asked and (_NEGATED.search(text[: asked.start()]) or _NEGATED.search(asked[0]))
        due = wrap.lstrip().startswith("{") or self.template.inner_answer in (Plan(), ToolCall())
        if asked and not negated and not due and not re.search(r"[\":{]\s*$", text):
            return f"asks for {' '.join(asked[0].split())!r}; the target is {wrap or 'the bare answer'}"
        return None

    def _mapping(self, text: str) -> str | None:
        """Own labels of a labelling task must stand for what the words say: `1 if it is positive`."""
        choices = self.task.choices
        if not choices or len(self.labels) != len(choices):  # another count is a fault of its structure
            return None
        if [_fold(x) for x in self.labels] == [_fold(x) for x in choices]:
            return None
        words = "|".join(map(re.escape, choices))
        said = {}
        for label in self.labels:
            pattern = rf"(?<!\w){re.escape(label)}[\"'`)\]]*\s*(?:if|for|when|=|:|means|->|stands for|is)\s+(?:[a-z']+ ){{0,4}}?[\"'`]?({words})\b"
            if match := re.search(pattern, text, re.IGNORECASE):
                said[label] = match[1]
        means = dict(zip(self.labels, choices, strict=True))
        wrong = [label for label, choice in said.items() if _fold(means[label]) != _fold(choice)]
        return (
            f"says that {wrong[0]} stands for {said[wrong[0]]}; in `answer` it stands for {means[wrong[0]]}"
            if wrong
            else None
        )

    def _explains(self, outside: str) -> bool:
        """Whether the words map something to the own labels: `yes if ...`, `1 = ...`, `answer X for ...`."""
        label = "|".join(re.escape(each) for each in self.labels)
        return bool(
            re.search(
                rf"(?<!\w)(?:{label})[\"'`)\]]*\s*(?:if|when|for|=|:|means|stands|->|,? ?or\b|/)|(?:write|say|put|use|answer|type|press|is|means|=)\s*[\"'`(\[]*(?:{label})(?!\w)",
                outside,
                re.IGNORECASE,
            )
        )

    def _markers(self) -> list[str]:
        """What stands before each option at the start of its line, when all are shown one by one."""
        found = []
        for letter in LETTERS[: self.task.num_choices]:
            match = re.search(
                rf"(?:^|\n|\s)[(\[]?([A-Za-z]|\d{{1,2}}|[ivxIVX]{{1,3}})[).\]:]+\s*[\"'`]?\{{{letter}\}}", self.text
            )
            if not match:
                return []
            found.append(match[1])
        return found

    def polarity(self) -> str | None:
        """The inverse question, asked in a clause that asks for something."""
        for match in [*_INVERSE.finditer(self.text), *_INVERSE_ELSEWHERE.finditer(self.text)]:
            lead = re.split(r"[.?!\n]", self.text[: match.start()])[-1]
            named = self.task.choices and not re.search(r"\bnot\b|n['\u2019]t|opposite", match[0], re.IGNORECASE)
            if not (_NEGATED.search(lead) or named):
                return f"asks {' '.join(match[0].split())[:70]!r}"
        return None

    def reasoning(self) -> str | None:
        """A wish for an explanation, a confidence or several answers that is not negated. Texts scored by similarity may be explanations."""
        if getattr(self.task, "score", "exact") == "similarity":
            return None
        for match in _MORE.finditer(self.text):
            before = re.split(r"[.!?\n;]", self.text[max(0, match.start() - 80) : match.start()])[-1]
            after = self.text[match.end() : match.end() + 40]
            if _NEGATED.search(before) or re.match(r"[^.!?\n]{0,25}\b(?:is|are|will be) (?:not|unnecessary|ignored)|[^.!?\n]{0,20}\bnot (?:needed|required|wanted)", after):  # fmt: skip
                continue
            return f"asks {' '.join(match[0].split())[:60]!r}"
        return None

    def language(self) -> str | None:
        """Wrongly decoded text, words that mix alphabets, words that no language here spells."""
        static = self.template.static_text
        if broken := _MOJIBAKE.search(static):
            return f"wrongly decoded characters near {static[max(0, broken.start() - 8) : broken.end() + 8]!r}"
        words = _WORD.findall(static)
        mixed = [word for word in words if len(_scripts(word)) > 1]
        if mixed:
            return f"words that mix alphabets: {mixed[0]!r}"
        latin = [
            word.casefold() for word in words if len(word) >= 4 and _scripts(word) <= {"LATIN"} and not word.isupper()
        ]
        odd = [word for word in latin if _unspellable(word)]
        if len(odd) >= 3 and len(odd) > 0.25 * len(latin):
            return f"words that no language spells so: {', '.join(odd[:3])}"
        spoken = [name for name, own in _COMMON.items() if len(own & {word.casefold() for word in words}) >= 2]
        if len(spoken) >= 3:
            return f"a mixture of languages: {', '.join(spoken)}"
        return None

    def length(self) -> str | None:
        """More than MAX_CHARACTERS, or a sentence repeated three times."""
        static = self.template.static_text
        if len(static) > MAX_CHARACTERS:
            return f"{len(static)} characters by itself; at most {MAX_CHARACTERS}"
        parts = Counter(" ".join(part.split()).casefold() for part in re.split(r"[.!?\n]+", static))
        again = [(part, count) for part, count in parts.items() if count >= 4 and len(part) > 25]
        return f"repeats {again[0][0][:40]!r} {again[0][1]} times" if again else None


# frequent words that only one of these languages has
_COMMON = {
    language: frozenset(words.split())
    for language, words in {
        "English": "the of which with following please answer and this is what that from you it",
        "German": "der und ist nicht das eine einem einen auf mit dann von folgende w\u00e4hlen zum bitte sie",
        "French": "les des est dans avec une pour r\u00e9pondre lettre quelle vous qui du le",
        "Spanish": "los las el y con pregunta respuesta siguiente opci\u00f3n texto es del",
        "Dutch": "het een van niet welke volgende schrijf zin antwoord",
        "Italian": "il gli della che di frase risposta scrivi quale",
    }.items()
}

_FAMILIES = (
    tuple("abcdefgh"), tuple("12345678"), ("yes", "no"), ("true", "false"), ("i", "ii", "iii", "iv", "v"),
    ("negative", "positive"), ("good", "bad"), ("first", "second", "third", "fourth"), ("one", "two", "three", "four"),
    ("left", "right"), ("0", "1", "2", "3"),
)  # fmt: skip


def _listed_labels(text: str, count: int) -> list[frozenset[str]]:
    """Sets of labels that the words list as the possible answers: "A or B", "1, 2, 3 or 4", "yes/no"."""
    found = []
    token = r"[\"'`(\[*<]*([A-Za-z]+|\d{1,2})[\"'`)\]*>]*"
    join = r"\s*(?:,|/|\||;|\bor\b|\boder\b|\bou\b|,\s*or\b)\s*"
    for match in re.finditer(rf"(?<![\w{{]){token}(?:{join}{token}){{{count - 1}}}(?![\w}}])", text):
        words = [
            word for word in re.findall(r"[A-Za-z]+|\d{1,2}", match[0]) if word.casefold() not in ("or", "oder", "ou")
        ]
        labels = frozenset(word.casefold() for word in words)
        if len(labels) == count and any(labels == frozenset(family[:count]) for family in _FAMILIES):
            found.append(labels)
    return found


_VERB = r"(?:answer|reply|respond|give|write|state|say|name|type|return|print|output|send|provide|pick|choose|select|enter|tell|only|just|put|need|want)"
_NUMBER_WORDS = frozenset({"one", "first", "i", "ii", "1st", "un", "eins", "uno", "erste"})


def _asks(text: str, what: str) -> str | None:
    """The request for a form, such as "Answer with the letter", unless it is negated or about spelling."""
    pattern = rf"\b{_VERB}\b[^.!?\n]{{0,30}}?(?<!to the )(?<!of )\b(?:{what})\b(?! (?:by letter|words?|of (?:words|letters)|case))"
    for match in re.finditer(pattern, text, re.IGNORECASE):
        middle = match[0].split(None, 1)[-1]
        if not _NEGATED.search(middle.rsplit(None, 1)[0] + " ") and not _NEGATED.search(text[max(0, match.start() - 30) : match.start()]):  # fmt: skip
            return " ".join(match[0].split())
    return None


def _word(label: str, text: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text))


def _fold(text: str) -> str:
    return text.strip().casefold()


def _scripts(word: str) -> set[str]:
    names = {unicodedata.name(c, "?").split()[0] for c in word if c.isalpha()}
    east = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL"}
    found = {
        "EAST" if name in east else name for name in names if name not in ("MODIFIER", "FULLWIDTH", "MATHEMATICAL")
    }
    return found - {"LATIN"} if "EAST" in found else found  # no spaces are written around A or B there


def _unspellable(word: str) -> bool:
    """No vowel at all, five consonants in a row that no compound explains, or a letter three times."""
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    return bool(
        not re.search(r"[aeiouy\u0131\u00f8\u0153\u00e6]", plain)
        or re.search(r"[bcdfghjklmnpqrtvwxz]{6}|[bcdfgjkpqvwxz]{4}|q[^u\W]|[jvwx][qxzjk]|(.)\1\1", plain)
    )
