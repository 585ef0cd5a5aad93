"""PAFT as a flat loop: LoRA fine-tuning while the prompt changes, in plain PyTorch. What `paft train` does, without the Trainer.

    python examples/sft_loop.py examples/piqa-small.yaml --out adapter

Read it to see the whole method, copy it to change it. One process, one device, no resume.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import get_scheduler

from paft.config import SFTConfig, load_run_config
from paft.grid import Grid
from paft.lm.hf import HFModel, load_model
from paft.lm.render import Renderer
from paft.materials import prepare
from paft.training.data import CellDataset, pad
from paft.training.objectives import IGNORED
from paft.training.schedule import make_schedule, updates_per_epoch


def with_adapter(model: HFModel, config: SFTConfig, seed: int) -> PeftModel:
    """The model with a LoRA adapter to train; its random half is drawn by the seed."""
    torch.manual_seed(seed)
    return get_peft_model(model.model, LoraConfig(task_type="CAUSAL_LM", **config.lora))


def train(
    tuned: PeftModel, renderer: Renderer, grid: Grid, config: SFTConfig, seed: int
) -> Iterator[tuple[set[str], float]]:
    """Yields (ids of the prompts, loss in nats per answer token) of every update."""
    cells = CellDataset(grid, renderer, config.max_length)
    schedule = make_schedule(config.schedule, grid, batch_size=config.batch_size, epochs=config.epochs, seed=seed)
    tuned.train()
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    updates = config.epochs * updates_per_epoch(len(cells), config.batch_size)
    warmup = -int(-updates * config.warmup_ratio // 1)  # rounded up
    rates = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=updates)
    for epoch in range(config.epochs):
        order = schedule.cells(epoch)
        while update := list(islice(order, config.batch_size)):  # its examples share a prompt where K counts updates
            batch = pad([cells[grid.flat(cell)] for cell in update], renderer.eos_id)
            fed = {name: batch[name].to(tuned.device) for name in ("input_ids", "attention_mask", "position_ids")}
            targets_BT = batch["shift_labels"].to(tuned.device)  # of the answer, at the places that predict it
            answer_BT = targets_BT != IGNORED
            loss = torch.nn.functional.cross_entropy(tuned(**fed).logits[answer_BT].float(), targets_BT[answer_BT])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            yield {grid.templates[cell.prompt].id for cell in update}, loss.item()


def main() -> None:
    """The training of one arm of a settings file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="settings of a run, as for `paft run`")
    parser.add_argument("--arm", default="paft", help="the arm whose training this is")
    parser.add_argument("--out", type=Path, required=True, help="where the adapter goes")
    options = parser.parse_args()
    run = load_run_config(options.config)
    config = run.training_of(options.arm)
    if config is None:
        raise SystemExit(f"--arm {options.arm}: nothing is trained there; give an arm that is")
    materials = prepare(run)
    model = load_model(run.model, source=run.source, dtype=run.dtype, style=run.style)
    grid, tuned = Grid(materials.prompts.train, materials.train), with_adapter(model, config, run.seed)
    for number, (prompts, loss) in enumerate(train(tuned, model.renderer, grid, config, run.seed), 1):
        print(f"update {number}: prompt {', '.join(sorted(prompts))}, loss {loss:.3f}")
    tuned.save_pretrained(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
