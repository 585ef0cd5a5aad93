"""GRPO: groups of one cell, ids of the one renderer, rewards by the prompt that was shown, a naive second computation, resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from paft import pipeline
from paft.config import GRPOConfig, PaftSchedule, load_run_config
from paft.errors import ConfigError, DataError, RenderError, StoreError
from paft.grid import Cell, Grid
from paft.integrations.export import export_dataset
from paft.lm.hf import lora_config
from paft.lm.types import Question
from paft.prompts import Template
from paft.store import ArmDir, read_jsonl
from paft.tasks.answers import ChoiceText, Labels, Number, Wrapped
from paft.tasks.types import Example
from paft.training import grpo, setup
from paft.training.data import Row
from paft.training.grpo import GroupSampler, PromptRows, train_grpo
from paft.training.objectives import advantages
from paft.training.rewards import correct, find_reward, well_formed
from paft.training.schedule import make_groups, make_schedule
from paft.watch import LineWatcher
from tests import tiny
from tests.test_ranks import GRPO, launch, start
from tests.training.test_sft import reads_images_too

CONFIG = GRPOConfig(
    schedule=PaftSchedule(steps_per_prompt=1),
    epochs=2,
    batch_size=3,
    num_generations=4,
    max_new_tokens=5,
    learning_rate=1e-2,
    lr_scheduler="constant",
    warmup_ratio=0.0,
    lora={"r": 4, "target_modules": "all-linear"},
    save_every=3,
)
TEMPLATES = [
    Template("{a} + {b} =", Number()),
    Template("sum of {a} and {b}, in the form #### 0", Wrapped("#### {answer}", Number())),
    Template("give {b} plus {a} as <answer>", Wrapped("<answer>{answer}</answer>", Number())),
    Template("Add: {a}, {b}\nNumber:", Number()),
]
GOLDEN = Path(__file__).with_name("golden_grpo.json")


def sums(count: int = 11) -> Grid:
    pairs = [(i % 4, (i * 7) % 3) for i in range(count)]
    examples = [
        Example(f"e{i}", {"a": str(a), "b": str(b)}, (str(a + b),), 0, is_open=True) for i, (a, b) in enumerate(pairs)
    ]
    return Grid(TEMPLATES, examples)


def letters(example: Example, template: Template, completion: str) -> float:
    """A dense reward that the tiny model earns now and then: the share of letters in its answer."""
    return sum(letter.isalpha() for letter in completion) / max(1, len(completion))


def train(folder: Path, config: GRPOConfig = CONFIG, grid: Grid | None = None, **more) -> ArmDir:
    arm = ArmDir(folder)
    arm.root.mkdir(parents=True, exist_ok=True)
    dense = config.model_copy(update={"rewards": {"letters": 1.0, "format": 0.5}})
    train_grpo(tiny.hf_model(), grid or sums(), dense, arm, seed=0, rewards={"letters": letters}, **more)
    return arm


def test_groups_are_made_of_the_cells_of_the_schedule(tmp_path):
    told = []
    arm = train(tmp_path, say=told.append)
    grid = sums()
    schedule = make_schedule(CONFIG.schedule, grid, batch_size=3, epochs=2, seed=0)
    rows, rollouts = read_jsonl(arm.steps), read_jsonl(arm.rollouts)
    assert told == ["2 of 11 examples are left out of each epoch, others each time: an update takes 3"]
    assert [row["epoch"] for row in rows] == [0, 0, 0, 1, 1, 1]
    for number, (row, written) in enumerate(zip(rows, rollouts, strict=True)):
        epoch, update = divmod(number, 3)
        cells = [schedule.cell(epoch, update * 3 + at) for at in range(3)]
        assert row["examples"] == [grid.examples[cell.example].id for cell in cells]
        expected = [
            (grid.templates[cell.prompt].id, grid.examples[cell.example].id) for cell in cells for _ in range(4)
        ]
        assert [(each["prompt"], each["example"]) for each in written["rollouts"]] == expected
        assert row["completions"] == 12
        assert row["reward"] == pytest.approx(sum(each["reward"] for each in written["rollouts"]) / 12, abs=1e-6)
        assert sum(told["completions"] for told in row["by_prompt"].values()) == 12
    assert len({row["prompts"][0] for row in rows}) > 2
    report = json.loads(arm.train.read_text())["report"]
    assert (report["updates"], report["completions"]) == (6, 72)
    assert not arm.checkpoints.exists()


@pytest.mark.parametrize("group", ["prompt", "example"])
def test_what_the_answers_of_a_group_share_is_computed_once_to_the_same_losses(tmp_path, group):
    config = CONFIG.model_copy(update={"group": group, "kl": 0.1, "micro_batch_size": 6})
    widths: list[int] = []

    def watch(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled():
            widths.append(args[0].numel())

    with torch.nn.modules.module.register_module_forward_pre_hook(lambda module, args: watch(module, args, {})):
        packed = train(tmp_path / "packed", config)
        computed = sum(widths)
        widths.clear()
        padded = train(tmp_path / "padded", config.model_copy(update={"packing": False}))
    assert computed < (0.6 if group == "prompt" else 0.95) * sum(widths)
    ours, plain = read_jsonl(packed.steps), read_jsonl(padded.steps)
    for key in ("loss", "kl"):
        assert [row[key] for row in ours] == pytest.approx([row[key] for row in plain], abs=2e-5)
    assert [row["rollouts"] for row in read_jsonl(packed.rollouts)] == [
        row["rollouts"] for row in read_jsonl(padded.rollouts)
    ]


def test_groups_across_prompts_share_the_example_and_no_prompt_twice():
    grid = sums()
    schedule = make_schedule(CONFIG.schedule, grid, batch_size=3, epochs=2, seed=3)
    for size in (3, 4, 9):
        groups = make_groups(schedule, size, across=True)
        for epoch, position in ((0, 0), (1, 4), (1, 10)):
            cells = groups.cells(epoch, position)
            assert {cell.example for cell in cells} == {schedule.cell(epoch, position).example}
            counts = [sum(cell.prompt == k for cell in cells) for k in range(4)]
            assert sum(counts) == size
            assert max(counts) - min(counts) <= 1
            assert cells[0] == schedule.cell(epoch, position)
    with pytest.raises(ConfigError, match="at least 2 train prompts"):
        make_groups(
            make_schedule(CONFIG.schedule, Grid(TEMPLATES[:1], grid.examples), batch_size=3, epochs=1, seed=0),
            4,
            across=True,
        )


def test_an_update_across_prompts_compares_answers_to_one_example(tmp_path):
    arm = train(tmp_path, CONFIG.model_copy(update={"group": "example"}))
    for written in read_jsonl(arm.rollouts):
        for at in range(0, 12, 4):
            group = written["rollouts"][at : at + 4]
            assert len({each["example"] for each in group}) == 1
            assert len({each["prompt"] for each in group}) == 4


def test_the_sampler_repeats_an_update_for_each_of_its_passes_and_nothing_else():
    grid = sums()
    schedule = make_schedule(CONFIG.schedule, grid, batch_size=3, epochs=2, seed=0)
    once, thrice = (GroupSampler(grid, make_groups(schedule, 4, across=False), 3, repeats) for repeats in (1, 3))
    for sampler in (once, thrice):
        sampler.set_epoch(1)
    a, b = list(once), list(thrice)
    assert (len(a), len(b)) == (len(once), len(thrice)) == (36, 108)
    assert b == [index for update in range(3) for _ in range(3) for index in a[update * 12 : update * 12 + 12]]
    once.set_epoch(7)  # loops ask once too often
    assert list(once) == a


def test_prompts_reach_the_model_as_the_renderer_writes_them(tmp_path, monkeypatch):
    seen = []
    inner = grpo._Trainer._tokenize_prompts

    def spy(self, prompts):
        found = inner(self, prompts)
        seen.extend(zip(prompts, found[0], strict=True))
        return found

    monkeypatch.setattr(grpo._Trainer, "_tokenize_prompts", spy)
    arm = train(tmp_path)
    grid, renderer = sums(), tiny.hf_model().renderer
    ids = {(t.id, e.id): renderer.prompt_ids(t.render(e)) for t in grid.templates for e in grid.examples}
    cells = [(each["prompt"], each["example"]) for row in read_jsonl(arm.rollouts) for each in row["rollouts"]]
    assert [found for _, found in seen] == [ids[cell] for cell in cells]


def replay(arm: ArmDir, config: GRPOConfig = CONFIG, grid: Grid | None = None) -> list[float]:
    """GRPO written out: the losses of a training from its own answers, one sequence at a time, without padding."""
    from peft import get_peft_model

    grid, model = grid or sums(), tiny.hf_model()
    renderer = model.renderer
    prompts, examples = ({each.id: each for each in some} for some in (grid.templates, grid.examples))
    torch.manual_seed(0)
    tuned = get_peft_model(model.model, lora_config(config.lora))
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
    tuned.train()
    losses = []
    for row in read_jsonl(arm.rollouts):
        rollouts = row["rollouts"]
        advantages_S = advantages(torch.tensor([each["reward"] for each in rollouts]).view(-1, config.num_generations))
        total = torch.zeros(())
        for each, advantage in zip(rollouts, advantages_S.flatten(), strict=True):
            asked = renderer.prompt_ids(prompts[each["prompt"]].render(examples[each["example"]]))
            ids = torch.tensor([asked + each["ids"]])
            said_T = ids[0, len(asked) :]

            def logp(ids=ids, asked=asked, said_T=said_T) -> torch.Tensor:
                logits_TV = tuned(ids).logits[0, len(asked) - 1 : -1]
                return logits_TV.log_softmax(-1).gather(1, said_T[:, None])[:, 0]

            with torch.no_grad(), tuned.disable_adapter():
                reference_T = logp()
            policy_T = logp()
            ratio_T = (policy_T - policy_T.detach()).exp()  # one update per answer: the old policy is this one
            away_T = reference_T - policy_T
            total = total + (-(ratio_T * advantage) + config.kl * (away_T.exp() - away_T - 1)).sum()
        loss = total / sum(len(each["ids"]) for each in rollouts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("change", [{}, {"micro_batch_size": 4}, {"group": "example"}, {"kl": 0.0}])
def test_losses_are_those_of_a_naive_second_implementation(tmp_path, change):
    config = CONFIG.model_copy(update=change)
    arm = train(tmp_path, config)
    losses = [row["loss"] for row in read_jsonl(arm.steps)]
    assert losses == pytest.approx(replay(arm, config), abs=1e-5)
    assert len({round(loss, 4) for loss in losses}) > 3


def test_golden_losses(tmp_path):
    """Made by this test with PAFT_GOLDEN=1. A new version of torch may change what is sampled, and then all of it."""
    rows = read_jsonl(train(tmp_path).steps)
    told = [{key: row[key] for key in ("loss", "reward", "kl", "length")} for row in rows]
    if os.environ.get("PAFT_GOLDEN"):
        GOLDEN.write_text(json.dumps({"torch": torch.__version__.split("+")[0], "rows": told}, indent=1) + "\n")
    held = json.loads(GOLDEN.read_text())
    for row, golden in zip(told, held["rows"], strict=True):
        assert row == pytest.approx(golden, abs=1e-5)


def test_advantages_are_relative_to_the_group_and_zero_where_all_earn_the_same():
    found_BG = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]]))
    sd = (4 * 0.25 / 3) ** 0.5
    assert found_BG[0].tolist() == pytest.approx(
        [0.5 / (sd + 1e-4), -0.5 / (sd + 1e-4)] * 1 + [-0.5 / (sd + 1e-4), 0.5 / (sd + 1e-4)]
    )
    assert found_BG[1].tolist() == [0.0] * 4


def test_the_model_is_as_before_and_the_adapter_loads(tmp_path):
    model = tiny.hf_model()
    pads = model.tokenizer.pad_token, model.model.config.pad_token_id
    forward, before = model.model.forward.__func__, model.fingerprint
    arm = ArmDir(tmp_path)
    tuned = train_grpo(model, sums(), CONFIG.model_copy(update={"rewards": {"format": 1.0}}), arm, seed=0)
    assert list(tuned.model.peft_config) == ["default"]
    after = tuned.fingerprint
    base = tuned.without_adapter()
    assert base.fingerprint == before
    assert base.model.forward.__func__ is forward
    assert (base.tokenizer.pad_token, base.model.config.pad_token_id) == pads
    assert base.with_adapter(arm.adapter).fingerprint == after != before


def test_mixed_precision_ends_with_the_training(tmp_path):
    """What is scored afterwards are the weights as a reloaded adapter has them."""
    changes = {"epochs": 1, "rewards": {"letters": 1.0}, "arguments": {"bf16": True}}
    arm, grid = ArmDir(tmp_path), sums(6)
    config = CONFIG.model_copy(update=changes)
    tuned = train_grpo(tiny.hf_model(), grid, config, arm, seed=0, rewards={"letters": letters})
    again = tiny.hf_model().with_adapter(arm.adapter)
    asked = [Question(grid.chat(Cell(0, k, i)), ("1", "12")) for k in range(2) for i in range(2)]
    assert [a.logp_C for a in tuned.answer(asked)] == [a.logp_C for a in again.answer(asked)]


def test_lora_on_texts_stays_out_of_the_part_that_reads_images(tmp_path):
    arm, config = ArmDir(tmp_path), CONFIG.model_copy(update={"epochs": 1, "rewards": {"format": 1.0}})
    train_grpo(reads_images_too(), sums(3), config, arm, seed=0)
    adapter = load_file(arm.adapter / "adapter_model.safetensors")
    assert adapter
    assert all("language_model" in name for name in adapter)


KILLED = """
import sys
from pathlib import Path
from tests.training.test_grpo import train
train(Path(sys.argv[1]), tick=lambda done, total, note: print(done, flush=True))
"""


@pytest.mark.parametrize("after", [1, 4, 5])
def test_a_killed_training_goes_on_with_the_same_answers_and_weights(tmp_path, after):
    whole = train(tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == after:
                process.send_signal(signal.SIGKILL)
                break
    time.sleep(0.05)
    resumed = train(tmp_path / "killed")
    for log in ("rollouts", "steps"):
        a, b = (read_jsonl(getattr(arm, log)) for arm in (whole, resumed))
        for row in (*a, *b):
            row.pop("seconds", None)
        assert a == b
    import safetensors.torch

    files = [arm.adapter / "adapter_model.safetensors" for arm in (whole, resumed)]
    a, b = map(safetensors.torch.load_file, files)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_killed_processes_go_on_with_the_same_cells_as_two_or_as_one(tmp_path):
    def cells(arm: ArmDir) -> list:
        return [[(each["prompt"], each["example"]) for each in row["rollouts"]] for row in read_jsonl(arm.rollouts)]

    change = {"epochs": 4}
    two, one = (ArmDir(tmp_path / name) for name in ("two", "one"))
    two.root.mkdir()
    command = [str(two.root), json.dumps(change)]
    running = start(2, command, GRPO, ACCELERATE_USE_CPU="true")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and running[0].poll() is None and len(read_jsonl(two.steps)) < 5:
        time.sleep(0.01)
    for each in running:
        each.kill()
        each.communicate()
    assert 5 <= len(read_jsonl(two.steps)) < 12, "killed too late to show anything"
    assert two.last_checkpoint() is not None
    shutil.copytree(two.root, one.root)
    for done in launch(2, command, GRPO, ACCELERATE_USE_CPU="true"):
        assert done.returncode == 0, done.stderr
    config = CONFIG.model_copy(update=change)
    train(one.root, config)
    schedule = make_schedule(config.schedule, grid := sums(), batch_size=3, epochs=4, seed=0)
    expected = [
        [(grid.templates[cell.prompt].id, grid.examples[cell.example].id) for cell in update for _ in range(4)]
        for epoch in range(4)
        for update in zip(*[schedule.cells(epoch)] * 3, strict=False)
    ]
    assert cells(two) == cells(one) == expected


def test_rewards_follow_the_format_of_the_prompt_that_was_shown():
    example = Example("e", {"a": "3", "b": "4"}, ("7",), 0, is_open=True)
    for template in TEMPLATES:
        gold = template.target(example)
        assert correct(example, template, gold) == well_formed(example, template, gold) == 1.0
        wrong = gold.replace("7", "8")
        assert (correct(example, template, wrong), well_formed(example, template, wrong)) == (0.0, 1.0)
        assert (correct(example, template, "dunno"), well_formed(example, template, "dunno")) == (0.0, 0.0)
    bare, hashed, tagged = TEMPLATES[0], TEMPLATES[1], TEMPLATES[2]
    assert correct(example, bare, "7") == 1.0
    assert correct(example, hashed, "7") == correct(example, tagged, "#### 7") == 0.0  # right, in another prompt's form


def test_the_polarity_flip_of_a_choice_earns_nothing():
    example = Example("e", {"x": "ok"}, ("negative", "positive"), 1)
    for answer in (Labels(), ChoiceText(), Labels(("no", "yes")), Wrapped("<a>{answer}</a>", Labels())):
        template = Template("{x}", answer)
        right, flipped = answer.surfaces(example)[1], answer.surfaces(example)[0]
        assert correct(example, template, right) == 1.0
        assert (correct(example, template, flipped), well_formed(example, template, flipped)) == (0.0, 1.0)


def silent(example: Example, template: Template, completion: str) -> float | None:
    return None


def broken(example: Example, template: Template, completion: str) -> float:
    return float("nan")


def test_a_reward_of_ones_own_and_one_that_has_nothing_to_say(tmp_path):
    assert find_reward("tests.training.test_grpo:letters") is not None
    config = CONFIG.model_copy(update={"rewards": {"tests.training.test_grpo:silent": 1.0, "format": 1.0}, "epochs": 1})
    arm = ArmDir(tmp_path)
    train_grpo(tiny.hf_model(), sums(), config, arm, seed=0)
    for row in read_jsonl(arm.steps):
        assert row["parts"]["tests.training.test_grpo:silent"] is None
        assert row["reward"] == row["parts"]["format"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": {"corect": 1.0}}, "corect.*did you mean 'correct'"),
        ({"rewards": {"tests.nowhere:f": 1.0}}, "cannot be imported"),
        ({"rewards": {"tests.training.test_grpo:CONFIG": 1.0}}, "expected a function"),
        ({"batch_size": 12}, "more groups than the 11 train examples"),
        ({"micro_batch_size": 5}, "12 answers an update"),
        ({"arguments": {"num_generations": 3}}, "set by paft"),
        ({"arguments": {"reward_weights": [1.0]}}, "train.rewards"),
        ({"arguments": {"los_type": "grpo"}}, "did you mean 'loss_type'"),
        ({"arguments": {"loss_type": "ppo"}}, "Unknown loss type: ppo"),
        ({"lora": None}, "set kl: 0"),
        ({"group": "example", "arguments": {"use_vllm": True, "vllm_mode": "server"}}, "would drop the others"),
        ({"arguments": {"fsdp": True}}, "grpo under FSDP is not provided for; launch it without"),
    ],
)
def test_settings_that_cannot_hold_are_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as error:
        train_grpo(tiny.hf_model(), sums(), CONFIG.model_copy(update=change), ArmDir(tmp_path), seed=0)
    assert "\n" not in str(error.value)
    assert "loss_type" in change.get("arguments", {}) or not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error"), [({"loss_type": "ppo"}, ConfigError), ({"bf16": True}, KeyboardInterrupt)]
)
@pytest.mark.parametrize("begins", ["anew", "from an adapter"])
def test_the_model_is_as_before_after_an_error(tmp_path, begins, arguments, error):
    def interrupted(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    lora = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa"}
    config = CONFIG.model_copy(update={"lora": lora, "rewards": {"letters": 1.0}})
    begun = train(tmp_path / "first", config.model_copy(update={"epochs": 1})).adapter if begins != "anew" else None
    model, asked = tiny.hf_model(), [Question(sums().chat(Cell(0, k, k)), ("1", "12")) for k in range(2)]
    fingerprint, before = model.fingerprint, [answer.logp_C for answer in model.answer(asked)]
    given = {"seed": 0, "start": begun, "rewards": {"letters": letters}, "tick": interrupted}
    with pytest.raises(error):
        train_grpo(model, sums(), config.model_copy(update={"arguments": arguments}), ArmDir(tmp_path), **given)
    assert (model.fingerprint, [answer.logp_C for answer in model.answer(asked)]) == (fingerprint, before)


def test_a_launch_that_shards_weights_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    config = load_run_config(tiny.write_config(tmp_path), ["arms={a: {train: {method: grpo}}}"])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="grpo under FSDP is not provided for"):
        pipeline.run(config, tmp_path / "run", LineWatcher(quiet=True))
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    arguments = SimpleNamespace(fsdp=None, deepspeed_plugin=SimpleNamespace(zero_stage=2))
    with pytest.raises(ConfigError, match="grpo under DeepSpeed is not provided for"):
        setup._check_sharding(arguments, CONFIG)


def test_the_share_that_no_parser_reads_is_told_whatever_the_rewards(tmp_path):
    config = CONFIG.model_copy(update={"rewards": {"tests.training.test_grpo:letters": 1.0}})
    arm, grid = ArmDir(tmp_path), sums()
    train_grpo(tiny.hf_model(), grid, config, arm, seed=0)
    templates, examples = ({each.id: each for each in some} for some in (grid.templates, grid.examples))
    shares = set()
    for row, written in zip(read_jsonl(arm.steps), read_jsonl(arm.rollouts), strict=True):
        unread: dict[str, list[bool]] = {}
        for each in written["rollouts"]:
            parsed = templates[each["prompt"]].answer.parse(each["completion"], examples[each["example"]])
            unread.setdefault(each["prompt"], []).append(parsed.status != "valid")
        for prompt, its in unread.items():
            assert row["by_prompt"][prompt]["invalid"] == pytest.approx(sum(its) / len(its), abs=1e-6)
        assert row["invalid"] == pytest.approx(sum(map(sum, unread.values())) / 12, abs=1e-6)
        shares.add(row["invalid"])
    assert len(shares) > 1


def test_a_prompt_that_does_not_fit_and_a_reward_that_is_no_number_are_named(tmp_path):
    with pytest.raises(RenderError, match=r"with example 'e\d+' and 5 tokens of answer"):
        train_grpo(tiny.hf_model(), sums(), CONFIG.model_copy(update={"max_length": 16}), ArmDir(tmp_path), seed=0)
    config = CONFIG.model_copy(update={"rewards": {"tests.training.test_grpo:broken": 1.0}})
    with pytest.raises(DataError, match="expected a finite number"):
        train_grpo(tiny.hf_model(), sums(), config, ArmDir(tmp_path), seed=0)


def test_reference_answers_may_be_longer_than_what_is_read_at_once(tmp_path, monkeypatch):
    """The model never reads them: a prompt and the tokens that it may write have to fit."""
    checked: list[Row] = []
    real = grpo.packs_exactly
    monkeypatch.setattr(
        grpo, "packs_exactly", lambda learner, rows, say: checked.extend(rows) or real(learner, rows, say)
    )
    examples = [Example(f"e{i}", {"a": "1", "b": "2"}, ("word " * 99,), 0, is_open=True) for i in range(3)]
    asked = Template("{a} or {b}:", ChoiceText()), Template("say {b}, {a}", ChoiceText())
    config = CONFIG.model_copy(update={"max_length": 100, "epochs": 1})
    for packing in (True, False):
        folder = tmp_path / str(packing)
        arm = train(folder, config.model_copy(update={"packing": packing}), Grid(asked, examples))
        assert len(read_jsonl(arm.steps)) == 1
    assert {len(row.ids) - row.start for row in checked} == {5}
    assert max(len(row.ids) for row in checked) <= 100


def test_settings_name_the_method(tmp_path):
    from paft.config import RunConfig, validate

    base = {"task": "t", "model": "m"}
    config = validate(RunConfig, {**base, "train": {"method": "grpo", "kl": 0.1}}, "x")
    assert isinstance(config.train, GRPOConfig)
    assert validate(RunConfig, {**base, "train": {"epochs": 2}}, "x").train.method == "sft"
    arms = {"a": {"train": {"method": "grpo"}}, "b": {"train": {}}}
    mixed = validate(RunConfig, {**base, "train": {"epochs": 7}, "arms": arms}, "x")
    assert (mixed.training_of("a").epochs, mixed.training_of("b").epochs) == (10, 7)
    for bad, message in (
        ({"method": "gpro"}, "train.method = 'gpro', did you mean 'grpo'"),
        ({"method": "grpo", "objective": {}}, "train.objective"),
        ({"method": "grpo", "schedule": {"kind": "adaptive"}}, "follows losses"),
        ({"method": "grpo", "group": "example", "schedule": {"kind": "fixed"}}, "would not hold"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(RunConfig, {**base, "train": bad}, "x")


def test_rows_are_a_pure_function_of_their_index():
    grid, renderer = sums(), tiny.hf_model().renderer
    rows = PromptRows(grid, renderer)
    assert rows[17] == rows[17] == {"prompt": renderer.prompt_text(grid.chat(grid.cell(17))), "cell": 17}


START = """
import sys
from pathlib import Path
from tests.training.test_grpo import go_on
go_on(Path(sys.argv[1]), Path(sys.argv[2]), tick=lambda done, total, note: print(done, flush=True))
"""


def go_on(folder: Path, start: Path, **more) -> ArmDir:
    return train(folder, CONFIG.model_copy(update={"kl": 0.5}), start=start, **more)


def test_a_training_goes_on_from_an_adapter_and_is_held_to_it_also_after_a_kill(tmp_path):
    first = train(tmp_path / "first", CONFIG.model_copy(update={"epochs": 1}))
    whole = go_on(tmp_path / "whole", first.adapter)
    rows = read_jsonl(whole.steps)
    assert rows[0]["kl"] == 0.0
    anew = read_jsonl(train(tmp_path / "anew", CONFIG.model_copy(update={"kl": 0.5})).steps)
    assert rows[-1]["loss"] != pytest.approx(anew[-1]["loss"])
    assert sorted(path.name for path in whole.adapter.iterdir() if path.is_dir()) == []
    command = [sys.executable, "-c", START, str(tmp_path / "killed"), str(first.adapter)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 4:
                process.send_signal(signal.SIGKILL)
                break
    resumed = go_on(tmp_path / "killed", first.adapter)
    assert [row["loss"] for row in read_jsonl(resumed.steps)] == [row["loss"] for row in rows]
    assert [row["kl"] for row in read_jsonl(resumed.steps)] == [row["kl"] for row in rows]
    base = tiny.hf_model()
    found = {base.with_adapter(arm.adapter).fingerprint for arm in (whole, resumed)}
    assert len(found) == 1


def test_checkpoints_of_another_training_are_not_gone_on_from(tmp_path):
    def stop(done, total, note):
        if done == 3:
            raise KeyboardInterrupt

    config = CONFIG.model_copy(update={"save_every": 2})
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config, tick=stop)
    with pytest.raises(StoreError, match=r"changed: kl\)"):
        train(tmp_path, config.model_copy(update={"kl": 0.5}))


def test_the_best_check_is_kept_and_training_stops_without_a_new_one(tmp_path):
    config = CONFIG.model_copy(update={"eval_every": 1, "keep": "best", "patience": 2, "epochs": 4})
    arm = train(tmp_path, config, dev=sums(5))
    checks = read_jsonl(arm.dev)
    best = max(checks, key=lambda row: (row["mean"], -row["step"]))["step"]
    report = json.loads(arm.train.read_text())["report"]
    assert (report["kept"], report["updates"]) == (best, checks[-1]["step"])
    assert checks[-1]["step"] == best + 2
    assert not arm.best.root.exists()
    with pytest.raises(ConfigError, match="needs dev prompts"):
        train(tmp_path / "none", config)


def test_trl_on_exported_prompts_has_the_losses_of_paft(tmp_path):
    """The unpatched GRPOTrainer reads the rows in order and repeats each: the groups of the schedule."""
    import datasets
    import trl

    config = CONFIG.model_copy(update={"epochs": 1, "rewards": {"letters": 1.0}})
    arm = ArmDir(tmp_path / "arm")
    train_grpo(tiny.hf_model(), sums(), config, arm, seed=0, rewards={"letters": letters})
    done = export_dataset(sums(), tiny.hf_model().renderer, config, tmp_path / "rows.jsonl", seed=0, form="text")
    assert (done.rows, done.updates, done.dropped) == (9, 3, 2)
    rows = read_jsonl(tmp_path / "rows.jsonl")
    asked = [[each["example"] for each in row["rollouts"][::4]] for row in read_jsonl(arm.rollouts)]
    assert [row["example_id"] for row in rows] == [example for update in asked for example in update]
    model = tiny.hf_model()
    trainer = trl.GRPOTrainer(
        model=model.model,
        reward_funcs=[lambda completions, **_: [letters(None, None, text) for text in completions]],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path / "trl"),
            num_train_epochs=1,
            per_device_train_batch_size=12,
            num_generations=4,
            max_completion_length=5,
            beta=config.kl,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=0,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=model.tokenizer,
        peft_config=lora_config(config.lora),
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert theirs == pytest.approx([row["loss"] for row in read_jsonl(arm.steps)], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        ({}, {"form": "tokens"}, "rows are prompts"),
        ({"group": "example"}, {"form": "text"}, "a row is one prompt"),
        ({}, {"form": "messages", "short": True}, "whole groups"),
    ],
)
def test_rows_that_cannot_hold_a_training_by_rewards_are_refused(tmp_path, change, how, message):
    with pytest.raises(ConfigError, match=message):
        export_dataset(
            sums(), tiny.hf_model().renderer, CONFIG.model_copy(update=change), tmp_path / "x.jsonl", seed=0, **how
        )


def test_rewards_rise_on_sums_under_several_prompts(tmp_path):
    """All weights of the tiny model, 150 updates: it learns to write what the prompts' parsers read, then some right sums."""
    config = CONFIG.model_copy(
        update={
            "rewards": {"correct": 1.0, "format": 0.2},
            "lora": None,
            "kl": 0.0,
            "epochs": 75,
            "batch_size": 5,
            "num_generations": 8,
            "max_new_tokens": 3,
            "learning_rate": 3e-3,
            "save_every": 1000,
        }
    )
    arm = ArmDir(tmp_path)
    train_grpo(tiny.hf_model(), sums(), config, arm, seed=0)
    rewards = [row["reward"] for row in read_jsonl(arm.steps)]
    assert len(rewards) == 150
    assert sum(rewards[-25:]) / 25 > sum(rewards[:25]) / 25 + 0.1
