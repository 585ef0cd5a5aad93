"""A prompt set: train, dev and test templates that do not leak into each other, checked whenever a set is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from paft.config import dump_yaml, load_mapping
from paft.errors import ConfigError, PromptSetError, few, nearest
from paft.prompts.similarity import NEAR_DUPLICATE, REWORDED, reworded_pairs, similarity_matrix
from paft.prompts.template import Template, template_from, template_to
from paft.tasks.types import Task

PromptSplit = Literal["train", "dev", "test", "adversarial"]
SPLITS: tuple[PromptSplit, ...] = ("train", "dev", "test")
ALL_SPLITS: tuple[PromptSplit, ...] = (*SPLITS, "adversarial")


@dataclass(frozen=True)
class PromptSet:
    """Templates of a task in three splits. Selecting anything uses dev; test is looked at once, at the end. A set for scoring alone has
    no train and dev prompts.

    info: provenance of the set (version, licence, origin). adversarial: prompts perturbed as careless users do (typos,
    casing, order ...), each of a dev prompt, for the adversarial accuracy (PAFT v3, "Con"); never trained on.
    """

    task: str
    train: tuple[Template, ...]
    dev: tuple[Template, ...]
    test: tuple[Template, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    adversarial: tuple[Template, ...] = ()

    def __post_init__(self) -> None:
        if not self.test:
            raise PromptSetError(f"prompt set {self.task!r}: split 'test' is empty; expected at least one template")
        self._refuse_repeats()
        self._refuse_leaks()

    @staticmethod
    def load(name: str | Path) -> PromptSet:
        """A shipped set by name ("hellaswag"), or a YAML/JSON file. Raises PromptSetError or TemplateError."""
        path = Path(name)
        if path.suffix.lower() in (".yaml", ".yml", ".json"):
            return _from_mapping(load_mapping(path), str(path))
        shipped = shipped_sets()
        if str(name) not in shipped:
            raise PromptSetError(
                f"prompt set {str(name)!r}: unknown{nearest(str(name), shipped)}; shipped: {few(shipped, 12)}; or a .yaml file"
            )
        with resources.as_file(shipped[str(name)]) as file:
            return _from_mapping(load_mapping(file), f"shipped set {name}")

    def split(self, name: PromptSplit) -> tuple[Template, ...]:
        """Templates of one split, in file order."""
        match name:
            case "train":
                return self.train
            case "dev":
                return self.dev
            case "test":
                return self.test
            case "adversarial":
                return self.adversarial
            case _:
                raise ConfigError(
                    f"prompt set {self.task!r}: no split {name!r}{nearest(str(name), ALL_SPLITS)}; it has {', '.join(ALL_SPLITS)}"
                )

    @property
    def fingerprint(self) -> str:
        """Hash of the ids of all templates with their splits."""
        text = "\n".join(f"{name} {template.id}" for name in ALL_SPLITS for template in self.split(name))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check(self, task: Task) -> None:
        """Raise TemplateError unless every template can ask every question of the task."""
        for name in ALL_SPLITS:
            for template in self.split(name):
                template.check(task)

    def to_yaml(self) -> str:
        """Text of a prompt file with the same content."""
        splits: dict[str, Any] = {
            name: [template_to(template) for template in self.split(name)] for name in ALL_SPLITS if self.split(name)
        }
        return dump_yaml({"task": self.task, **self.info, **splits})

    def similarity(self, first: PromptSplit, second: PromptSplit) -> float:
        """Highest similarity of a template of one split with a template of another, in [0, 1]; 0 where a split is empty."""
        return float(similarity_matrix(self.split(first), self.split(second)).max(initial=0.0))

    def _refuse_repeats(self) -> None:
        place: dict[str, str] = {}
        for name in ALL_SPLITS:
            for position, template in enumerate(self.split(name)):
                here = f"{name}[{position}]"
                if template.id in place:
                    raise PromptSetError(
                        f"prompt set {self.task!r}: {here} repeats {place[template.id]} (id {template.id}); keep one"
                    )
                place[template.id] = here

    def _refuse_leaks(self) -> None:
        pairs_of_splits: list[tuple[PromptSplit, PromptSplit]] = [("train", "test"), ("dev", "test"), ("train", "dev")]
        if self.adversarial:
            pairs_of_splits.append(("train", "adversarial"))
        for first, second in pairs_of_splits:
            rows, columns = self.split(first), self.split(second)
            alike = similarity_matrix(rows, columns)
            near = [
                (int(i), int(j), float(alike[i, j])) for i, j in zip(*(alike >= NEAR_DUPLICATE).nonzero(), strict=True)
            ]
            known = {(i, j) for i, j, _ in near}
            near += [(i, j, share) for i, j, share in reworded_pairs(rows, columns) if (i, j) not in known]
            if near:
                named = [
                    f"{first}[{i}] {rows[i].id} ~ {second}[{j}] {columns[j].id} ({share:.2f})" for i, j, share in near
                ]
                raise PromptSetError(
                    f"prompt set {self.task!r}: {len(near)} prompts of {second!r} are near-duplicates of {first!r} (5-grams in "
                    f"common >= {NEAR_DUPLICATE}, or words in order >= {REWORDED}): {few(named, 3)}; keep each group in one split"
                )


def shipped_sets() -> dict[str, Any]:
    """Names of the prompt sets that ship with the package, with their files."""
    folder = resources.files("paft.prompts") / "library"
    return {
        file.name.removesuffix(".yaml"): file
        for file in sorted(folder.iterdir(), key=lambda f: f.name)
        if file.name.endswith(".yaml")
    }


def _from_mapping(values: Mapping[str, Any], where: str) -> PromptSet:
    known = {"task", "version", "license", "origin", *ALL_SPLITS}
    for key in values:
        if key not in known:
            raise PromptSetError(
                f"{where}: unknown key {key!r}{nearest(str(key), known)}; known: {few(sorted(known), 9)}"
            )
    for key in ("task", "test"):
        if key not in values:
            raise PromptSetError(f"{where}: key {key!r} is missing")
    splits: dict[str, tuple[Template, ...]] = {}
    for name in ALL_SPLITS:
        entries: Sequence[Any] = values.get(name) or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise PromptSetError(f"{where}: {name} is not a list of templates (mappings with text and answer)")
        splits[name] = tuple(template_from(entry, f"{where}, {name}[{n}]") for n, entry in enumerate(entries))
    info = {key: values[key] for key in ("version", "license", "origin") if key in values}
    try:
        return PromptSet(
            str(values["task"]), splits["train"], splits["dev"], splits["test"], info, splits["adversarial"]
        )
    except PromptSetError as error:
        raise PromptSetError(f"{where}: {error}") from None
