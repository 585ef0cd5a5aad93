"""The audit on prompts labelled by hand, on what ships, and on ten thousand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from paft.prompts import PromptSet, Template, audit, shipped_sets
from paft.prompts.auditing import FAULTS, faults_of
from paft.prompts.similarity import near_pairs, similarity_matrix
from paft.prompts.template import template_from
from paft.tasks import Labels, load_task

NAMES = {"race": "race-middle", "sst2": "sst2-demo"}
TASKS = {name: load_task(NAMES.get(name, name)) for name in ("hellaswag", "piqa", "winogrande", "race", "sst2")}
LABELLED = yaml.safe_load((Path(__file__).parent / "labelled.yaml").read_text(encoding="utf-8"))
EXACT = {"slot_missing", "slot_unknown", "slot_repeated", "options_missing", "blank", "escape", "length"}
# what rules over words found when this was written, less a margin for rewording them
AT_LEAST = {"leak": 0.6, "contract": 0.55, "polarity": 0.6, "language": 0.65, "reasoning": 0.7}


def found(row: dict) -> set[str]:
    return {fault.name for fault in faults_of(template_from(row["template"], "labelled"), TASKS[row["task"]])}


def test_recall_and_false_alarms_on_labelled_prompts() -> None:
    hits: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    alarms = []
    for row in LABELLED:
        names = found(row)
        if row["fault"] is None:
            alarms += [(row["template"]["text"][:50], name) for name in names]
        else:
            hits[row["fault"]] += row["fault"] in names
        wrong.update(names - {row["fault"]})
    total = Counter(row["fault"] for row in LABELLED)
    print(f"\n{total[None]} good prompts, {len(alarms)} false alarms")
    for name in sorted(set(total) - {None}):
        precision = hits[name] / max(1, hits[name] + wrong[name])
        print(f"{name:16} n {total[name]:3}  recall {hits[name] / total[name]:.2f}  precision {precision:.2f}")
    assert len(LABELLED) >= 300
    assert total[None] >= 150
    for name in EXACT:
        assert hits[name] / total[name] >= 0.98, name
    assert not [alarm for alarm in alarms if alarm[1] in EXACT]
    assert len(alarms) <= 3, alarms
    for name, least in AT_LEAST.items():
        assert hits[name] / total[name] >= least, name
    assert set(total) - {None} <= set(FAULTS)


@pytest.mark.parametrize("name", shipped_sets())
def test_what_ships_passes(name: str) -> None:
    prompts = PromptSet.load(name)
    task = load_task(
        {"sst2-words": "sst2-demo", "race": "race-middle", "xstorycloze": "xstorycloze-en"}.get(name, name)
    )
    for split in ("train", "dev", "test"):
        # two of the demo's train prompts differ in one word; both stay, since published figures were measured with them
        known = {"near_duplicate": 1} if (name, split) == ("sst2-words", "train") else {}
        assert audit(prompts.split(split), task).counts == known
    # perturbed prompts are made to be careless; their slots and forms are not
    for template in prompts.adversarial:
        assert {fault.name for fault in faults_of(template, task)} <= {"language"}


def test_repeats_near_duplicates_and_outliers_are_dropped_by_name() -> None:
    task = TASKS["piqa"]
    good = list(PromptSet.load("piqa").train[:60])
    spaced = replace(good[3], text=good[3].text.replace("\n", "\n\n").replace(",", " ,"))
    reworded = replace(good[5], text=good[5].text + " Thanks!")
    long = replace(
        good[7], text=good[7].text + "\n" + " ".join(f"Remark {n} on the matter at hand." for n in range(75))
    )
    selection = audit([*good, spaced, reworded, long], task)
    assert selection.kept == tuple(good)
    assert {t.id: f[0].name for t, f in selection.dropped} == {
        spaced.id: "repeat",
        reworded.id: "near_duplicate",
        long.id: "outlier",
    }
    assert selection.dropped[1][1][0].reason.endswith(good[5].id)
    assert selection.counts == {"repeat": 1, "near_duplicate": 1, "outlier": 1}
    assert selection.to_dict()["dropped"] == 3


def test_labels_may_stand_for_choices_of_any_case_and_too_many_labels_are_one_fault(tmp_path: Path) -> None:
    spec = {
        "name": "asks",
        "fields": ["text"],
        "choices": ["No", "Yes"],
        "answer": "label",
        "files": {"train": "t.jsonl"},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    (tmp_path / "t.jsonl").write_text('{"text": "so", "label": "Yes"}\n', encoding="utf-8")
    task = load_task(str(tmp_path / "task.yaml"))

    def names(text: str, *labels: str) -> list[str]:
        return [fault.name for fault in faults_of(Template(text, Labels(labels)), task)]

    assert names("{text}\nWrite 0 for No and 1 for Yes.", "0", "1") == []
    assert names("{text}\nWrite 0 for YES and 1 for no.", "0", "1") == ["contract"]
    assert names("{text}\nWrite 1 for no, 2 for yes, 3 for neither no nor yes.", "1", "2", "3") == ["contract"]


def test_a_broken_prompt_does_not_take_its_sound_twin_with_it() -> None:
    sound = PromptSet.load("piqa").train[0]
    broken = replace(sound, text=sound.text.replace("{goal}", "{gaol}"))
    selection = audit([broken, sound, broken, sound], TASKS["piqa"])
    assert selection.kept == (sound,)
    names = [(template.id, faults[-1].name) for template, faults in selection.dropped]
    assert names == [(broken.id, "slot_missing"), (broken.id, "repeat"), (sound.id, "repeat")]


def test_copies_of_what_was_shown_are_no_new_prompts() -> None:
    shipped = PromptSet.load("piqa").train
    shown, own = shipped[:20], shipped[20:24]
    echo = replace(shown[3], text=shown[3].text.upper().replace("{GOAL}", "{goal}").replace("{CHOICES}", "{choices}"))
    selection = audit([own[0], shown[0], echo, *own[1:]], TASKS["piqa"], shown=shown)
    assert selection.kept == own
    assert [(fault.name, fault.reason[-8:]) for _, (fault,) in selection.dropped] == [
        ("copied", shown[0].id),
        ("copied", shown[3].id),
    ]


def test_near_pairs_are_those_of_the_full_comparison() -> None:
    base = [t for split in ("train", "dev") for t in PromptSet.load("sst2-words").split(split)][:150]
    some = base + [replace(t, text=t.text + " Be brief, please.") for t in base[::3]]
    full = similarity_matrix(some, some)
    for least in (0.35, 0.5, 0.7, 1.0):
        fast = {(i, j): s for i, j, s in near_pairs(some, least)}
        slow = {(i, j) for i in range(len(some)) for j in range(i + 1, len(some)) if full[i, j] >= least}
        assert set(fast) == slow
        assert all(abs(full[i, j] - s) < 1e-6 for (i, j), s in fast.items())
    assert near_pairs([], 0.5) == []
    assert near_pairs([Template("x", Labels())], 0.5) == []
