"""TRL 1.16: the tokens of a training in schedule order, and settings with which `trl sft` reads them in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from paft.config import RunConfig, SFTConfig, dump_yaml
from paft.errors import ConfigError
from paft.grid import Grid
from paft.integrations.export import Exported, adapter_settings, export_dataset, precision, rows_only, trainer_arguments
from paft.lm.render import Renderer
from paft.store import new_folder, write_text

ROWS, SETTINGS = "rows", "sft.yaml"


def export_trl(
    grid: Grid,
    renderer: Renderer,
    config: RunConfig,
    arm: str,
    out: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a folder for `trl sft --config`: rows of all epochs as tokens, and the arm's settings under TRL's names.

    Raises ConfigError for what cannot be told by rows, and for settings that it has no name for.
    """
    train = rows_only(config, arm, "TRL")
    settings = _settings(config, train, arm, out.resolve())
    say(f"writing the tokens of {train.epochs} epoch(s)")
    with new_folder(out) as folder:
        done = export_dataset(grid, renderer, train, folder / ROWS / "train.parquet", seed=config.seed)
        write_text(folder / SETTINGS, _COMMENT.format(batch=train.batch_size) + dump_yaml(settings))
    return done


_COMMENT = """# Made by paft. Rows are tokens in schedule order: keep train_sampling_strategy, dataset_kwargs and num_train_epochs (all epochs are in
# the rows). An update is {batch} rows: per_device_train_batch_size x gradient_accumulation_steps x processes.
"""
_LORA = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "modules_to_save": "lora_modules_to_save",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
}
_QUANTISED = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_quant_storage")


def _settings(config: RunConfig, train: SFTConfig, arm: str, out: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": config.model,
        "dtype": precision(config),
        **({"attn_implementation": config.attention} if config.attention else {}),
        **_adapter(config, train),
        "dataset_name": str(out / ROWS),
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "train_sampling_strategy": "sequential",
        "packing": False,
        "max_length": None,
        **trainer_arguments(config, train, out / arm),
        "warmup_steps": train.warmup_ratio,
        "bf16": False,  # its default is true: mixed precision, which paft has not
        "fp16": False,
        "gradient_checkpointing": False,
        **train.arguments,
    }


def _adapter(config: RunConfig, train: SFTConfig) -> dict[str, Any]:
    if unknown := set(config.quantization or ()) - set(_QUANTISED):
        raise ConfigError(f"quantization.{min(unknown)}: has no name in the settings of trl sft; leave it out")
    if train.lora is None:
        return {}
    quantised = dict(config.quantization or {})
    if quantised.get("load_in_4bit"):
        quantised = {"bnb_4bit_quant_type": "fp4", **quantised}  # what transformers takes, and TRL does not
    return {"use_peft": True, **adapter_settings(train, _LORA, "TRL"), **quantised}
