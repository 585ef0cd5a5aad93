from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paft.config import FixedSchedule, PaftSchedule, RunConfig, dump_yaml, load_mapping, load_run_config
from paft.errors import ConfigError

BASE = {"task": "piqa", "model": "m"}


def load(*overrides: str, **values: Any) -> RunConfig:
    return load_run_config(None, overrides, {**BASE, **values})


def refused(*overrides: str, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=x", "unknown key 'modle', did you mean 'model'?"),
        ("train.lerning_rate=1", "unknown key 'train.lerning_rate', did you mean 'learning_rate'?"),
        ("train.num_train_epochs=2", "unknown key 'train.num_train_epochs': give train.epochs"),
        (
            "train.gradient_accumulation_steps=2",
            "unknown key 'train.gradient_accumulation_steps': follows from train.batch_size and train.micro_batch_size",
        ),
        ("train.schedule.K=2", "unknown key 'train.schedule.K': give train.schedule.steps_per_prompt"),
        ("arms.paft.train.max_steps=2", "arms.paft.train: unknown key 'max_steps': give train.epochs"),
        ("train.zzz=2", "schedule, warmup_ratio, weight_decay"),
        ("evaluate.thresholdz=[1]", "unknown key 'evaluate.thresholdz', did you mean 'thresholds'?"),
        ("data.heldout=0.2", "unknown key 'data.heldout', did you mean 'held_out'?"),
        (
            "train.schedule.steps_per_promt=2",
            "unknown key 'train.schedule.steps_per_promt', did you mean 'steps_per_prompt'?",
        ),
        (
            "train.schedule.prompt=2",
            "unknown key 'train.schedule.prompt'; known here: batches_per_prompt, examples_per_prompt, kind, steps_per_prompt",
        ),
        (
            "train.schedule.kind=paff",
            "train.schedule.kind = 'paff', did you mean 'paft'?; expected fixed or static or paft",
        ),
        (
            "train.schedule={steps_per_prompt: 2, examples_per_prompt: 3}",
            "steps_per_prompt and examples_per_prompt: a prompt is kept for one count; give one of them",
        ),
        (
            "train={schedule: {kind: adaptive, every: 6}, dataloader_workers: 2}",
            "schedule.every 6: with 2 dataloader_workers the draws run up to 7 updates ahead of the losses; give 7 or more",
        ),
        ("train.lora.init_lora_weights=pissa", "init_lora_weights pissa: rewrites the model's own weights"),
        ("train.lora.target_modules=3", "train.lora: target_modules = 3; expected a list of names, or all-linear"),
        ("train.lora.bias=nope", "train.lora: bias = 'nope'; expected none, all or lora_only"),
        ("train.lora.rank_pattern=x", "train.lora: rank_pattern = 'x'; expected numbers by name of a module"),
        ("train.lora.r=a", "train.lora: r = 'a'; expected a whole number of 1 or more"),
        ("train.lora.r=0", "train.lora: r = 0; expected a whole number of 1 or more"),
        ("train.lora.lora_alpha=a", "train.lora: lora_alpha = 'a'; expected a number"),
        ("train.schedule.batches_per_prompt=2", "say how large they are: micro_batch_size"),
        ("train.schedule={kind: mixture, share: 1}", "train.schedule.share = '1': Input should be less than 1"),
        ("arms.paft.tain={}", "unknown key 'arms.paft.tain', did you mean 'train'?"),
        ("arms.paft.train.epoch=2", "arms.paft.train: unknown key 'epoch', did you mean 'epochs'?"),
        (
            "arms.paft.train.schedule.steps_per_promt=2",
            "arms.paft.train: unknown key 'schedule.steps_per_promt', did you mean",
        ),
        ("train.epochs=0", "train.epochs = '0': Input should be greater than or equal to 1"),
        ("train.epochs=yes", "epochs is True; expected a number"),
        ("name=no", "name is False; expected a number or a text (quote yes, no, on, off in YAML)"),
        ("train.learning_rate=inf", "Input should be a finite number"),
        ("train.learning_rate=.nan", "Input should be a finite number"),
        ("train.weight_decay=.inf", "Input should be a finite number"),
        ("evaluate.thresholds=[0.5, .nan]", "evaluate.thresholds.1 = 'nan'"),
        ("evaluate.thresholds=[1.5]", "evaluate.thresholds.0 = '1.5'"),
        (
            "evaluate.scorers=generation",
            "evaluate.scorers = 'generation': expected a list, as in evaluate.scorers=[generation]",
        ),
        ("train.report_to=wandb", "train.report_to = 'wandb': expected a list, as in train.report_to=[wandb]"),
        ("train=null", "train is empty: fill it or take the line out"),
        ("evaluate=null", "evaluate is empty: fill it or take the line out"),
        ("train.epochs=null", "train.epochs is empty: fill it or take the line out"),
        ("evaluate.scorers=[]", "evaluate.scorers = '[]'"),
        ("evaluate.scorers=[liklihood]", "evaluate.scorers.0 = 'liklihood'"),
        ("source=web", "source = 'web'"),
        ("name=../up", "name '../up': expected the name of a directory below runs/; give a path by --out"),
        ("name=..", "name '..': expected the name of a directory"),
        ('name="a\\0b"', "name 'a\\x00b': expected the name of a directory"),
        ('name="a\\nb"', "name 'a\\nb': expected the name of a directory"),
        ('name=""', "name '': expected the name of a directory"),
        ("arms={}", "arms is empty; name at least one model"),
        ("arms.a-b={}", "arms: 'a-b' is not a plain name"),
        ("evaluate.split=train", "the scored split 'train' may not also train or select"),
        ("data.held_out=0", "data.held_out is 0 and no data.dev_split is given"),
        ("novalue", "override 'novalue': expected key=value"),
        ("=1", "override '=1': expected key=value"),
    ],
)
def test_a_wrong_setting_is_named_with_the_nearest_right_one(override: str, message: str) -> None:
    assert message in refused(override)


@pytest.mark.parametrize("asked", ["evaluate.split=train", "data.held_out=0"])
def test_where_nothing_trains_any_split_may_be_scored(asked: str) -> None:
    load_run_config(None, [asked, "model=m", "task=piqa", "arms={base: {}}"])


def test_an_arm_may_count_in_another_unit_than_the_common_settings() -> None:
    own = ["train.schedule.steps_per_prompt=2", "arms={p: {train: {schedule: {kind: paft, examples_per_prompt: 1}}}}"]
    settings = load_run_config(None, [*own, "model=m", "task=piqa"]).training_of("p")
    assert settings is not None
    assert settings.schedule.hold == (1, "examples")  # type: ignore[union-attr]


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^settings: key 'task' is missing$"):
        load_run_config(None)
    with pytest.raises(ConfigError, match=r"^settings: key 'model' is missing$"):
        load_run_config(None, ["task=piqa"])


def test_overrides_lie_over_the_file_and_the_file_over_the_base(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("task: file\ntrain: {epochs: 5, batch_size: 2}\n")
    found = load_run_config(
        path, ["train.epochs=7", "name=a=b", "data.train_examples=null", "train.lora=null"], {**BASE, "seed": 3}
    )
    assert (found.task, found.model, found.seed, found.train.epochs, found.train.batch_size) == ("file", "m", 3, 7, 2)
    assert found.name == "a=b"
    assert found.data.train_examples is None
    assert found.train.lora is None


@pytest.mark.parametrize(
    ("text", "value"), [("5e-4", 5e-4), ("1e-5", 1e-5), ("2.5E-3", 2.5e-3), ("0.01", 0.01), ("1", 1.0), ("1e0", 1.0)]
)
def test_numbers_with_an_exponent_are_numbers_on_the_command_line_and_in_files(
    text: str, value: float, tmp_path: Path
) -> None:
    assert load(f"train.learning_rate={text}").train.learning_rate == value
    path = tmp_path / "c.yaml"
    path.write_text(f"task: t\nmodel: m\ntrain: {{learning_rate: {text}}}\n")
    assert load_run_config(path).train.learning_rate == value
    if "e-" in text:
        assert load(f"train.lora.lora_dropout={text}").train.lora["lora_dropout"] == value  # type: ignore[index]


def test_what_only_looks_like_a_number_stays_a_text() -> None:
    """Ids of templates are hex digits: some read as numbers with a huge exponent."""
    for made in ("12345e10", "12e45678", "1e234567"):
        found = load("train.schedule.kind=fixed", f"train.schedule.prompt={made}")
        assert found.train.schedule == FixedSchedule(prompt=made)
    assert load("name=nan").name == "nan"
    assert load("name=infinity").name == "infinity"


def test_a_schedule_is_of_one_kind() -> None:
    assert load("train.schedule.steps_per_prompt=2").train.schedule == PaftSchedule(steps_per_prompt=2)
    started = {"schedule": {"kind": "paft", "steps_per_prompt": 1}}
    assert load("train.schedule.kind=fixed", train=started).train.schedule == FixedSchedule()
    assert load("train.schedule.steps_per_prompt=3", train=started).train.schedule == PaftSchedule(steps_per_prompt=3)
    assert "steps_per_prompt" in refused("train.schedule.kind=fixed", "train.schedule.steps_per_prompt=2")


def test_an_override_inside_the_default_arms_or_adapter_changes_that_part_only() -> None:
    found = load("arms.paft.train.epochs=9")
    assert list(found.arms) == ["base", "single", "paft"]
    assert [arm.title for arm in found.arms.values()] == [arm.title for arm in load().arms.values()]
    assert found.training_of("paft").epochs == 9  # type: ignore[union-attr]
    assert found.training_of("single").epochs == 3  # type: ignore[union-attr]
    lora = load("train.lora.r=32").train.lora
    assert lora == {**load().train.lora, "r": 32}  # type: ignore[dict-item]


def test_an_arm_takes_the_common_settings_but_for_its_own() -> None:
    found = load(
        train={"schedule": {"kind": "paft", "steps_per_prompt": 2}, "epochs": 5},
        arms={
            "base": {},
            "one": {"train": {"schedule": {"kind": "fixed", "prompt": 3}}},
            "same": {"train": {}},
            "k": {"train": {"schedule": {"steps_per_prompt": 8}}},
        },
    )
    assert found.training_of("base") is None
    assert [found.training_of(name).epochs for name in ("one", "same", "k")] == [5, 5, 5]  # type: ignore[union-attr]
    assert found.training_of("one").schedule == FixedSchedule(prompt=3)  # type: ignore[union-attr]
    assert found.training_of("same").schedule == PaftSchedule(steps_per_prompt=2)  # type: ignore[union-attr]
    assert found.training_of("k").schedule == PaftSchedule(steps_per_prompt=8)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.yaml", b"a: [1\nb: 2", r"not YAML \(.*line [23] column \d+\)"),
        ("c.yaml", b"a:\n  b: 1\n c: 2", "not YAML .*line 3"),
        ("c.yaml", b"a: 1\nb: 2\na: 3", r"not YAML \(key 'a' is given twice, line 3 column 1\)"),
        ("c.yaml", b"a: {b: 1, b: 2}", "key 'b' is given twice, line 1"),
        ("c.yaml", b"a: 2026-13-45", r"cannot be read \(month must be in 1..12\)"),
        ("c.yaml", b"a: !!python/object/apply:os.system [ls]", "not YAML .*could not determine a constructor"),
        ("c.yaml", b"- a\n- b", "expected a mapping of keys to values, got list"),
        ("c.yaml", b"", "c.yaml: is empty; expected a mapping of keys to values"),
        ("c.yaml", b"a: \xff", "byte 3 is not UTF-8; save the file as UTF-8"),
        ("c.yaml", b"a: \x00", "not YAML"),
        ("c.json", b'{"a": 1,}', "not JSON .*line 1 column"),
        ("c.json", b'{"a": 1, "a": 2}', "key 'a' is given twice"),
        ("c.json", b"[" * 100_000, "cannot be read"),
    ],
    ids=range(13),
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_mapping(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_mapping(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_mapping(tmp_path)


def test_another_kind_drops_what_the_file_says_and_not_what_the_command_line_does(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "task: piqa\nmodel: m\nevaluate: {budget: {kind: racing, cells: 9, half_width: {table_worst: 0.1}}}\n"
    )
    kind, cells = "evaluate.budget.kind=adaptive", "evaluate.budget.cells=500"
    for order in (
        [kind, cells],
        [cells, kind],
        [cells, "seed=1", kind],
        ["evaluate.budget.kind=balanced", cells, kind],
    ):
        budget = load_run_config(path, order).evaluate.budget
        assert (budget.kind, budget.cells, budget.half_width) == ("adaptive", 500, {})
    for whole in ("evaluate.budget={kind: racing, cells: 7}", "evaluate={budget: {kind: racing, cells: 7}}"):
        budget = load_run_config(path, [whole, kind]).evaluate.budget
        assert (budget.kind, budget.cells) == ("adaptive", None)


def test_seeds_that_no_library_takes_are_refused() -> None:
    assert load(f"seed={2**32 - 1}").seed == 2**32 - 1
    for seed in (-1, 2**32):
        assert f"seed = '{seed}'" in refused(f"seed={seed}")


def test_a_run_or_its_arms_name_a_model() -> None:
    assert load("model=null", "arms={a: {model: x}, b: {model: x}}").model is None
    assert refused("model=null", "arms={a: {model: x}, b: {}}").endswith("key 'model' is missing")


def test_yaml_references_and_merges_still_work(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("one: &x {a: 1, b: 2}\ntwo: {<<: *x, b: 3}\n")
    assert load_mapping(path) == {"one": {"a": 1, "b": 2}, "two": {"a": 1, "b": 3}}


def test_what_is_written_down_is_what_ran(tmp_path: Path) -> None:
    made = [
        load(),
        load(
            "train.learning_rate=5e-4",
            "train.lora=null",
            "evaluate.prompts=3",
            "name='yes and: #no'",
            "seed=4294967295",
        ),
        load("train.schedule.kind=fixed", "train.schedule.prompt='12345678'", "train.warmup_ratio=1e-7"),
    ]
    for config in made:
        path = tmp_path / "config.yaml"
        path.write_text(dump_yaml(config.model_dump()), encoding="utf-8")
        assert load_run_config(path) == config


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abyn01e~.", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abyn01e~.", min_size=1), plain, max_size=4))
def test_any_plain_value_survives_yaml(values: dict[str, Any]) -> None:
    assert yaml.safe_load(dump_yaml(values)) == values


def test_the_shipped_demo_is_a_valid_run() -> None:
    from importlib import resources

    with resources.as_file(resources.files("paft") / "configs" / "demo.yaml") as path:
        found = load_run_config(path)
    assert set(found.arms) == {"base", "single", "paft"}


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("task: piqa\nmodel: x\ntrain:\n", ["train.lora.r=4"], None),
        ("task: piqa\nmodel: x\ntrain: 3\n", [], "train"),
        (
            "task: piqa\nmodel: x\ntrain: {objective: {worst: {kind: cvarr}}}\n",
            [],
            "did you mean 'cvar'?; expected group_dro or cvar",
        ),
        (
            "task: piqa\nmodel: x\ntrain: {schedule: {kind: pafft}}\n",
            [],
            "did you mean 'paft'?; expected fixed or static or paft",
        ),
    ],
)
def test_settings_that_are_no_mapping_or_of_no_kind_are_one_line(tmp_path, text, overrides, said):
    (tmp_path / "run.yaml").write_text(text)
    if said is None:
        assert load_run_config(tmp_path / "run.yaml", overrides).training_of("paft").lora["r"] == 4
        return
    with pytest.raises(ConfigError) as caught:
        load_run_config(tmp_path / "run.yaml", overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
