"""GRPO with changing prompts as a flat loop, in plain PyTorch. What `paft train` does with `method: grpo`, without TRL.

    python examples/grpo_loop.py examples/arithmetic/grpo.yaml --out adapter

Read it to see the whole method, copy it to change it. One process, one device, no resume.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import get_scheduler

from paft.config import GRPOConfig, load_run_config
from paft.grid import Cell, Grid
from paft.lm.hf import HFModel, load_model
from paft.materials import prepare
from paft.training.data import Row, pad
from paft.training.objectives import IGNORED, advantages, token_nll
from paft.training.rewards import Reward, find_reward
from paft.training.schedule import make_groups, make_schedule


def with_adapter(model: HFModel, config: GRPOConfig, seed: int) -> PeftModel:
    """The model with a LoRA adapter to train; its random half is drawn by the seed."""
    torch.manual_seed(seed)
    return get_peft_model(model.model, LoraConfig(task_type="CAUSAL_LM", **config.lora))


@torch.no_grad()
def answer(tuned: PeftModel, model: HFModel, grid: Grid, cells: list[Cell], config: GRPOConfig) -> list[Row]:
    """One sampled answer per cell: token ids of prompt and answer, up to the end mark or the limit."""
    prompts = [model.renderer.prompt_ids(grid.chat(cell)) for cell in cells]
    batch = pad([Row(0, ids, len(ids)) for ids in prompts], model.renderer.eos_id)
    written_BT = tuned.generate(
        input_ids=batch["input_ids"].to(tuned.device),
        attention_mask=batch["attention_mask"].to(tuned.device),
        do_sample=True,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=config.max_new_tokens,
        eos_token_id=sorted(model.end_ids),
        pad_token_id=model.renderer.eos_id,
    )
    rows = []
    for cell, prompt, ids in zip(cells, prompts, written_BT[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
        end = next((place for place, token in enumerate(ids, 1) if token in model.end_ids), len(ids))
        rows.append(Row(grid.flat(cell), prompt + ids[:end], len(prompt)))
    return rows


def reward(model: HFModel, grid: Grid, row: Row, rewards: dict[str, Reward], weights: dict[str, float]) -> float:
    """What an answer earns under the prompt that was shown."""
    cell = grid.cell(row.index)
    text = model.tokenizer.decode(row.ids[row.start :], skip_special_tokens=True)
    earned = {
        name: judge(grid.examples[cell.example], grid.templates[cell.prompt], text) for name, judge in rewards.items()
    }
    return sum(weights[name] * value for name, value in earned.items() if value is not None)


def answer_logp(tuned: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probability of each answer token of a padded batch, in nats, row after row."""
    logits_BTV = tuned(**{name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}).logits
    answer_BT = batch["shift_labels"] != IGNORED
    return -token_nll(logits_BTV[answer_BT], batch["shift_labels"][answer_BT])


def train(
    tuned: PeftModel, model: HFModel, grid: Grid, config: GRPOConfig, seed: int, rewards: dict[str, Reward]
) -> Iterator[tuple[set[str], float, float]]:
    """Yields (ids of the prompts, mean reward, loss) of every update."""
    schedule = make_schedule(config.schedule, grid, batch_size=config.batch_size, epochs=config.epochs, seed=seed)
    groups = make_groups(schedule, config.num_generations, across=config.group == "example")
    per_epoch = grid.shape[1] // config.batch_size
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    updates = config.epochs * per_epoch
    warmup = -int(-updates * config.warmup_ratio // 1)  # rounded up
    rates = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=updates)
    torch.manual_seed(seed)
    for number in range(updates):
        epoch, update = divmod(number, per_epoch)
        positions = range(update * config.batch_size, (update + 1) * config.batch_size)
        cells = [cell for position in positions for cell in groups.cells(epoch, position)]  # a group after the other
        tuned.eval()
        rows = answer(tuned, model, grid, cells, config)
        tuned.train()
        earned_BG = torch.tensor([reward(model, grid, row, rewards, config.rewards) for row in rows])
        earned_BG = earned_BG.view(config.batch_size, config.num_generations)
        batch = pad(rows, model.renderer.eos_id)
        rows_M = batch["rows"][batch["shift_labels"] != IGNORED].to(tuned.device)  # whose token is it
        batch = {name: tensor.to(tuned.device) for name, tensor in batch.items()}
        advantage_M = advantages(earned_BG).flatten().to(tuned.device)[rows_M]
        logp_M = answer_logp(tuned, batch)
        ratio_M = (logp_M - logp_M.detach()).exp()  # 1, with the gradient of the policy: answers serve one update
        loss_M = -ratio_M * advantage_M
        if config.kl:
            with torch.no_grad(), tuned.disable_adapter():
                away_M = answer_logp(tuned, batch)
            away_M = away_M - logp_M
            loss_M = loss_M + config.kl * (away_M.exp() - away_M - 1)
        loss = loss_M.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        yield {grid.templates[cell.prompt].id for cell in cells}, earned_BG.mean().item(), loss.item()


def main() -> None:
    """The training of one arm of a settings file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="settings of a run, as for `paft run`")
    parser.add_argument("--arm", default="paft", help="the arm whose training this is")
    parser.add_argument("--out", type=Path, required=True, help="where the adapter goes")
    options = parser.parse_args()
    run = load_run_config(options.config)
    config = run.training_of(options.arm)
    if not isinstance(config, GRPOConfig):
        raise SystemExit(f"--arm {options.arm}: is not trained by method grpo; give an arm that is")
    materials = prepare(run)
    model = load_model(run.model, source=run.source, dtype=run.dtype, style=run.style)
    grid, tuned = Grid(materials.prompts.train, materials.train), with_adapter(model, config, run.seed)
    rewards = {name: find_reward(name) for name in config.rewards}
    for number, (prompts, earned, loss) in enumerate(train(tuned, model, grid, config, run.seed, rewards), 1):
        print(f"update {number}: prompt {', '.join(sorted(prompts))}, reward {earned:.3f}, loss {loss:.3f}")
    tuned.save_pretrained(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
