"""Which options a completion names: texts as whole words, and codes (A, ii, 10), which are also articles, pronouns and numbers, where they are given."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache


def _spaced(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def folded(text: str) -> str:
    """A text without its differences of case and white space."""
    return _spaced(text).casefold()


# signs and points that belong to a number stay: -5 is not 5, and 1.5 holds no 5
_PUNCTUATION = re.compile(r"(?P<number>(?<=\d)[.,:/](?=\d)|(?<!\w)[-+\u2212](?=\d))|[^\w\s]")


_EMPHASIS = re.compile(r"(?<!\w)_{1,3}(?=[^\W_])|(?<=[^\W_])_{1,3}(?!\w)")


def without_emphasis(text: str) -> str:
    """A text whose Markdown in underscores is in asterisks, which are no part of a word."""
    return _EMPHASIS.sub("*", text)


def _plain(text: str) -> str:
    return " ".join(_PUNCTUATION.sub(lambda match: match["number"] or " ", folded(text)).split())


@lru_cache(maxsize=4096)
def _form(surfaces: tuple[str, ...]) -> Callable[[str], str]:
    """The loosest way to compare texts under which surfaces that differ still do."""
    kinds = len({_spaced(surface) for surface in surfaces})
    for form in (_plain, folded):
        forms = {form(surface) for surface in surfaces}
        if len(forms) == kinds and "" not in forms:
            return form
    return _spaced


def named_alone(completion: str, surfaces: tuple[str, ...]) -> set[int]:
    """Surfaces that are all that the first line says; before them one of several lines that the first lines say."""
    form = _form(surfaces)
    if (most := max(map(_lines, surfaces), default=0)) > 1:
        said = [line for line in completion.splitlines() if line.strip()]
        for count in range(min(most, len(said)), 1, -1):
            begun = form("\n".join(said[:count]))
            if found := {
                c for c, surface in enumerate(surfaces) if _lines(surface) == count and form(surface) == begun
            }:
                return found
    first = form(next((line for line in completion.splitlines() if line.strip()), ""))
    return {c for c, surface in enumerate(surfaces) if first and form(surface) == first}


def _lines(text: str) -> int:
    return sum(1 for line in text.splitlines() if line.strip())


def first_line_decides(completion: str, surfaces: tuple[str, ...]) -> bool:
    """Whether the first line that says anything says nothing but a surface, and is over. Never where a surface has several lines."""
    if any(_lines(surface) > 1 for surface in surfaces):
        return False
    line = next((line for line in completion.splitlines(keepends=True) if line.strip()), "")
    return line.splitlines() != [line] and bool(named_alone(line, surfaces))


def named_in(completion: str, surfaces: tuple[str, ...]) -> set[int]:
    """Surfaces that occur as whole words, the longest first: one inside another is not counted as well. See NEXT."""
    form, any_of = _form(surfaces), _any_of(surfaces)

    def named(text: str) -> set[str]:
        found = ((hit[0], text[max(0, hit.start() - 60) : hit.start()]) for hit in any_of.finditer(text))
        return {each for each, before in found if not _NOT.search(before)}

    asks_on = None if any(map(NEXT.search, surfaces)) else NEXT.search(completion)
    said = (asks_on and named(form(completion[: asks_on.start()]))) or named(form(completion))
    return {c for c, surface in enumerate(surfaces) if form(surface) in said}


@lru_cache(maxsize=4096)
def _any_of(surfaces: tuple[str, ...]) -> re.Pattern[str]:
    form = _form(surfaces)
    texts = sorted({form(surface) for surface in surfaces} - {""}, key=len, reverse=True)
    words = [rf"{_edge(text[0])}{re.escape(text)}{_edge(text[-1])}" for text in texts]
    return re.compile("|".join(words) or r"(?!)")


_NOT = re.compile(
    r"(?:\b(?:not|never|cannot|hardly)|n[ '\u2019]t|\banything but|\bfar from)"
    r"(?: (?:an?|the|at all|be|being|very|really|so|that|too|as|quite|even|(?!only|mere|simply|sole|pure)\w+ly)){0,3} $"
)
"""Before a word that is denied: not a very, never. "Not only" and "not merely" do not deny."""


def _edge(character: str) -> str:
    return r"\b" if re.match(r"\w", character) else ""


_OPEN = r"(?:[-\u2022]\s+)?(?:[\s(\[{\"'\u2018\u201c*`<#]|\$(?!\d)){0,16}"
_BAD = (
    r"(?:not|wrong|false|untrue|too|less|worse|worst|ruled|nonsensical|nonsense|absurd|un(?:likely|related|reasonable|realistic|suitable|supported)"
    r"|im(?:plausible|probable|possible|practical|proper)|in(?:correct|valid|consistent|appropriate|coherent|accurate)|ir(?:relevant|rational)|illogical)\b"
)
"""What is said of an option that is refused: "A is unlikely"."""
_DEGREE = r"(?:(?:\w+ly|very|quite|rather|most|the|an?)\s+){0,3}"
_CLOSE = (
    r"(?=\s*$|\s*\n|\s*[)\]}>\u201d;!?|\u3001\u3002\u0964\uff0c\uff09]|[\"*`'\u2019](?!\w)|\s*[.,:](?!\d|\w\b|\s[^\W\d]\.)|\s+[-\u2013\u2014]\s|\$|<[/|]"
    rf"|\s+is\b(?!\s+{_DEGREE}{_BAD})|\s+(?:because|since)\b"
    r"|\s+da\b(?=\s*(?:$|[.\n])|\s+erantzun)|\s+है|\s*(?:입니다|です|が正解|是正确|是对)|\s+ဖြစ်)"
)
_SET_OFF = re.compile(
    r"[(\[{<\"'\u2018\u201c*`$]{1,8}((?:\w{2,10}\s)?\w{1,5})[)\]}>\"'\u2019\u201d*`$]{1,8}"
    rf"(?=\s(?:(?:is|was|seems|looks|sounds)\s+{_DEGREE}{_BAD}|(?:is|was|does|do|can|could|would)(?:n['\u2019]t|\s?not)\b))"
)
"""An option that is set off by marks and refused, to be read as it is without them: "**A** is wrong". "A) is not" may begin its text."""
_SPACES = re.compile(r"\s+")
_ARTICLE = re.compile(
    r"(?<!\banswer )\b(?:is|was|be|it['\u2019]s|choose|pick|select|say) a$|\b(?:respuesta|resposta|réponse) a$|(?<=é) a$"
)
"""An article that a limit of tokens cut from its noun."""
NEXT = re.compile(
    r"\n[ *#>]{0,8}(?:question|q|problem|passage|sentence|story|article|goal|context|text)\b[ \d*]{0,8}:", re.IGNORECASE
)
"""Where a model that has answered goes on to ask itself the next question. What it said before is read, and all of it where that gives nothing."""
_CYRILLIC = re.compile(r"(?<!\w)[АВСЕ](?!\w)")
"""Capitals that look like Latin ones."""
_REFUSED = re.compile(
    r"(?:\b(?:wrong|incorrect|false|worst|worse|opposite|least\s+(?:likely|plausible|probable|good))\s+(?:answer|option|choice|ending|one)\s+(?:is|was|would be)"
    r"|(?:\b(?:if|whether|suppose|supposing|assume|assuming|i doubt)|(?:\b(?:not|cannot)|n['\u2019]t)\s+(?:think|believe|say|agree))\s+(?:that\s+)?"
    r"the\s+(?:(?:correct|right|best)\s+)?(?:answer|option|choice)\s+(?:is|was|were|would be)"
    r"|(?:\b(?:not|never|cannot)|n['\u2019]t)(?:\s+(?:the|be|choose|pick|select|say|answer|option|choice|letter|label|number|numeral|ending))+"
    r"|\b(?:avoid|eliminat|reject|exclud|discard|dismiss|ignor|rul\w{1,3}\s+out)\w{0,4}(?:\s+(?:the|answer|option|choice|letter|label|number|numeral|ending))+)\b"
)
"""Words that would give an answer, of one that is refused or only thought of: "I would not choose A", "eliminate option A"."""
_NAMED = re.compile(
    r"(?:^([ *#(\[>-]{0,6})|(?<=\bis )(?=[A-Z])|(?<=\bwas )(?=[A-Z]))(?!(?i:not|never|neither|nor|except|unlike|without|vitamin|hepatitis|(?:avoid|eliminat|reject|exclud|discard|dismiss|ignor)[a-z]{0,4})\b"
    r"|[^\W\d_]{0,20}[不非])"
    r"[^\W\d_]{2,20} (?=(?:[A-Z]|\d\d?)(?:\W|$))",
    re.MULTILINE,
)
"""What a prompt calls its options, before a capital: Caller B, Remedy A."""
_COLON = r"(?:[:=](?=\s)|\uff1a)"
_CUE = (
    r"(?:\b(?:(?<!than )(?<!not )(?<!instead of )(?<!eliminate )(?<!out )(?:option|choice)|(?<!not )(?<!n't )(?<!unlikely to )be"
    r"|label|letter|number|numeral|ending|solution|is|was|it['\u2019]s|choose|pick|select|say"
    rf"|opción|opção|letra|lettre|buchstabe|вариант|буква|pilihan|huruf|chaguo|aukera)\b\s*[:=]?|(?<![不别])(?<!不要)(?<!不能)(?<!排除)选项?|विकल्प|الخيار|{_COLON})"
)
_SENTENCE = r"(?<=[.!?])[ \t]+"
"""Before a label that is a sentence, which its end shows."""
_RIGHT = r"[)\]}>\"'\u2019\u201d*`$]{0,8}\s+is\s+(?:the\s+)?(?:(?:most|more|\w+ly)\s+)?(?:correct|right|best|plausible|likely|true)\b"
_IS = r"(?:\b(?:is|was|would be|should be|must be|es|est|ist|lautet|è|é|adalah|ialah|это|ni)\b|应该是|应为|是|为|は|은|는|هو|هي|မှာ)"
_MARK = r"\s*(?:[:=]|[\u2013\u2014-](?=\s)|\uff1a)"
_ANSWER = (
    r"(?:(?:\b(?:answer|respuesta|resposta|réponse|risposta|antwort|antwoord|jawaban|jawabannya|ответ|ответом|jibu"
    r"|erantzuna|erantzun)\b|答案|答え|正解|정답|답|答|उत्तर|الإجابة|الجواب|సమాధానం|အဖြေ)"
    r"(?:\s+(?:correcta|correta|certa|correcte|corretta|esatta|giusta|yang\s+(?:paling\s+)?(?:benar|tepat)|sahihi|zuzena|الصحيحة|الصحيح))?"
    rf"(?:\s*{_IS}(?:\s+(?:la|el|die)\b|(?<=é) a\b)?(?:\s+(?:most\s+likely|likely|therefore|thus|\w+ly|donc|also|daher)\b)?)?(?:{_MARK})?(?:\s*\b(?:the\s+)?(?:option|choice|letter|number)\b)?"
    r"|(?:\b(?:(?:correct|right|best)\s+(?:option|choice|ending)|opción\s+correcta|opção\s+correta|alternativa\s+correta|opzione\s+corretta"
    r"|pilihan\s+yang\s+(?:benar|tepat))\b|正确选项|الخيار\s+الصحيح)"
    rf"(?:\s*{_IS}(?:\s+la\b)?|{_MARK})"
    r"|<answer>|\\boxed\s*\{(?:\s*\\(?:text|textbf|mathbf|mathrm)\s*\{)?)"
)
"""Words that give an answer, in the languages of the shipped prompts and tasks, and the box of mathematics."""
_ALSO = r"[\s)\]\"'*`]{0,16}(?:[,/&]|\bor\b|\band\b)" + _OPEN


def codes_in(completion: str, surfaces: tuple[str, ...]) -> set[int]:
    """Codes that are given (see Labels.parse), with those listed after them: "A or B" gives both."""
    forms = [folded(surface) for surface in surfaces]
    # a particle of a language without spaces may follow a Latin letter
    ends = {
        form: r"(?![^\W\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af])" if form.isascii() else r"(?!\w)" for form in forms
    }
    code = "|".join(rf"{re.escape(form)}{ends[form]}" for form in sorted(forms, key=len, reverse=True))
    more = rf"(?={_ALSO}(?:{code}))"
    listed = re.compile(rf"{_ALSO}(?P<code>{code})(?:{_CLOSE}|{more})")
    text = _SPACES.sub(lambda each: "\n" if "\n" in each[0] else " ", unicodedata.normalize("NFC", completion)).strip()
    if all(form.isascii() for form in forms):
        text = _NAMED.sub(r"\1", _CYRILLIC.sub(lambda each: "ABCE"["АВСЕ".index(each[0])], text))
    text = _REFUSED.sub("not", _ARTICLE.sub("", text).casefold())

    def said(given: str, text: str) -> set[int]:
        found = set()
        for each in re.finditer(given, text, re.MULTILINE):
            hit: re.Match[str] | None = each
            while hit:
                found.add(hit["code"])
                hit = listed.match(text, hit.end())
        return {c for c, form in enumerate(forms) if form in found}

    def read(text: str) -> set[int]:
        here = rf"{_OPEN}(?P<code>{code})"
        alone = rf"{_SENTENCE}{here}(?:(?=[\s*_`\"'\u201d)\]]{{0,16}}[.!]?\s*$)|{_RIGHT})"
        weaker = rf"(?:^|{_CUE}){here}(?:{_CLOSE}|{more})"
        given = said(rf"{_ANSWER}{here}(?:{_CLOSE}|\s+\(|{more})", text)
        return given or said(weaker, _SET_OFF.sub(r"\1", text)) | said(alone, text)

    asks_on = NEXT.search(text)
    return (asks_on and read(text[: asks_on.start()])) or read(text)
