"""axolotl 0.19: the tokens of a training in schedule order, and settings with which `axolotl train` reads them in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paft.config import RunConfig, SFTConfig, dump_yaml
from paft.errors import ConfigError
from paft.grid import Grid
from paft.integrations.export import (
    Exported,
    adapter_settings,
    check_rows,
    precision,
    rows_in_order,
    rows_only,
    split_update,
)
from paft.lm.render import Renderer
from paft.store import new_folder, write_rows, write_text

ROWS, SETTINGS = "rows.parquet", "sft.yaml"


def export_axolotl(
    grid: Grid,
    renderer: Renderer,
    config: RunConfig,
    arm: str,
    out: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a folder for `axolotl train`: rows of all epochs as tokens, and the arm's settings under its names.

    Raises ConfigError for what cannot be told by rows, and for settings that it has no name for.
    """
    train = rows_only(config, arm, "axolotl")
    plan = check_rows(grid, train)
    settings = _settings(config, train, plan, out.resolve(), arm)
    say(f"writing the tokens of {train.epochs} epoch(s)")
    with new_folder(out) as folder:
        rows = rows_in_order(grid, renderer, train, config.seed, "tokens", plan.per_epoch)
        write_rows(({**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows), folder / ROWS)
        write_text(folder / SETTINGS, _COMMENT.format(batch=train.batch_size) + dump_yaml(settings))
    return plan


_COMMENT = """# Made by paft. Rows are tokens in schedule order: keep curriculum_sampling (which reads in order), both shuffles and sample_packing off,
# and num_epochs (all epochs are in the rows). An update is {batch} rows: micro_batch_size x gradient_accumulation_steps x processes.
"""
_LORA = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "modules_to_save": "lora_modules_to_save",
    "rank_pattern": "lora_rank_pattern",
    "alpha_pattern": "lora_alpha_pattern",
    "fan_in_fan_out": "lora_fan_in_fan_out",
    "layers_to_transform": "peft_layers_to_transform",
    "layers_pattern": "peft_layers_pattern",
    "layer_replication": "peft_layer_replication",
    "init_lora_weights": "peft_init_lora_weights",
    "trainable_token_indices": "peft_trainable_token_indices",
    "ensure_weight_tying": "peft_ensure_weight_tying",
    "use_dora": "peft_use_dora",
    "use_rslora": "peft_use_rslora",
}
_FOUR_BITS = {"bnb_4bit_use_double_quant": False, "bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": "uint8"}
"""What transformers takes for 4 bits where nothing is said, and axolotl does not."""
_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
"""On by themselves, they would read doubly quantised fp4 weights as nf4, and need a GPU."""
_TRACKERS = {name: f"use_{name}" for name in ("wandb", "tensorboard", "mlflow", "trackio")}


def _settings(config: RunConfig, train: SFTConfig, plan: Exported, out: Path, arm: str) -> dict[str, Any]:
    if train.arguments:
        raise ConfigError(
            f"train.arguments.{min(train.arguments)}: is transformers' name, and axolotl has names of its own; leave it out and "
            "add axolotl's to the file that is written"
        )
    if unknown := set(train.report_to) - set(_TRACKERS):
        raise ConfigError(f"train.report_to {min(unknown)}: axolotl knows {', '.join(_TRACKERS)}")
    update, dtype = split_update(train), precision(config)
    if dtype == "float16" and train.lora is None:
        raise ConfigError(
            "dtype float16 with lora null: axolotl mixes float16 with float32 there, and fails; give bfloat16"
        )
    return {
        "base_model": config.model,
        dtype: True,
        "bf16": False,
        "fp16": False,
        "tf32": False,
        **({"attn_implementation": config.attention} if config.attention else {}),
        **_adapter(config, train),
        "datasets": [{"path": str(out / ROWS), "ds_type": "parquet", "type": None}],
        "dataset_prepared_path": str(out / "prepared"),
        "val_set_size": 0,
        "curriculum_sampling": True,
        "shuffle_merged_datasets": False,
        "shuffle_before_merging_datasets": False,
        "sample_packing": False,
        "pad_to_sequence_len": False,
        "sequence_len": train.max_length,
        "excess_length_strategy": "raise",
        "output_dir": str(out / arm),
        "num_epochs": 1,
        "micro_batch_size": update["per_device_train_batch_size"],
        "gradient_accumulation_steps": update["gradient_accumulation_steps"],
        "gradient_checkpointing": False,
        "optimizer": "adamw_torch",
        "learning_rate": train.learning_rate,
        "lr_scheduler": train.lr_scheduler,
        "warmup_steps": math.ceil(train.warmup_ratio * plan.updates),  # it would round a ratio down
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "seed": config.seed,
        "logging_steps": 1,
        "save_steps": train.save_every,
        **{_TRACKERS[name]: True for name in train.report_to},
    }


def _adapter(config: RunConfig, train: SFTConfig) -> dict[str, Any]:
    if train.lora is None:
        return {}
    lora = adapter_settings(train, _LORA, "axolotl")
    if lora.get("peft_init_lora_weights") is False:
        raise ConfigError("train.lora.init_lora_weights false: axolotl leaves it out; train with paft")
    for name in ("peft_layers_to_transform", "peft_layers_pattern"):
        if isinstance(lora.get(name), int | str):
            lora[name] = [lora[name]]
    kind: dict[str, Any] = {"adapter": "lora"}
    more = dict(config.quantization or {})
    four, eight = more.pop("load_in_4bit", None), more.pop("load_in_8bit", None)
    if four is True and eight is None and set(more) <= {*_FOUR_BITS, "bnb_4bit_compute_dtype"}:
        kind = {"adapter": "qlora", "load_in_4bit": True, "bnb_config_kwargs": {**_FOUR_BITS, **more}}
    elif eight is True and four is None and not more:
        if precision(config) == "float32":
            raise ConfigError(
                "quantization load_in_8bit with dtype float32: axolotl takes float16 for the rest then; set dtype=bfloat16"
            )
        kind["load_in_8bit"] = True
    elif config.quantization is not None:
        raise ConfigError(
            f"quantization {config.quantization}: axolotl is told {{load_in_8bit: true}}, or {{load_in_4bit: true}} with "
            f"{', '.join(_FOUR_BITS)}, bnb_4bit_compute_dtype; leave out the rest"
        )
    return {**kind, **lora, **dict.fromkeys(_KERNELS, False)}
