"""LLaMA-Factory 0.9.5: the cells of a training in schedule order, and settings that make it read them in order.

Rows hold the text as the model's own template writes it, so its template is `empty`; every row's tokens are compared with paft's before
anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paft.config import RunConfig, SFTConfig, dump_yaml
from paft.errors import ConfigError, DataError
from paft.grid import Grid
from paft.integrations.export import (
    Exported,
    adapter_settings,
    check_rows,
    precision,
    quantised_bits,
    rows_in_pieces,
    rows_only,
    trainer_arguments,
)
from paft.lm.render import Renderer
from paft.store import new_folder, write_text

DATA, INFO, SETTINGS = "rows.jsonl", "dataset_info.json", "sft.yaml"
_TURN = "{{idx}}"
"""What its formatter fills after the text is in; {{content}}, its other slot, is filled once, with the text."""


def export_llamafactory(
    grid: Grid,
    renderer: Renderer,
    config: RunConfig,
    arm: str,
    out: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a folder for `llamafactory-cli train`: rows of all epochs, dataset_info.json, and the arm's settings under its names.

    Raises ConfigError for what cannot be told by rows, and for settings that it has no name for, DataError for a row that it would change.
    """
    train = rows_only(config, arm, "LLaMA-Factory")
    settings = _settings(config, train, arm, out.resolve())
    plan = check_rows(grid, train)
    with new_folder(out) as folder:
        with (folder / DATA).open("w", encoding="utf-8") as file:
            for row in rows_in_pieces(grid, renderer, train, config.seed, plan, "LLaMA-Factory", say):
                if _TURN in row["prompt"]:
                    raise DataError(
                        f"prompt {row['prompt_id']}, example {row['example_id']}: holds {_TURN}, for which LLaMA-Factory writes the number "
                        "of a turn; take it out of the prompt or the example"
                    )
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        info = {
            "paft": {
                "file_name": DATA,
                "formatting": "alpaca",
                "columns": {"prompt": "prompt", "response": "completion"},
            }
        }
        write_text(folder / INFO, json.dumps(info, indent=2) + "\n")
        write_text(folder / SETTINGS, _COMMENT.format(batch=train.batch_size) + dump_yaml(settings))
    return plan


_COMMENT = """# Made by paft. Rows are in schedule order: keep disable_shuffling and num_train_epochs as they are (all epochs are in the rows).
# An update is {batch} rows: per_device_train_batch_size x gradient_accumulation_steps x processes.
"""
_LORA = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
}


def _settings(config: RunConfig, train: SFTConfig, arm: str, out: Path) -> dict[str, Any]:
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": config.model,
        **_attention(config),
        **_adapter(config, train),
        "dataset": "paft",
        "dataset_dir": str(out),
        "template": "empty",
        "cutoff_len": train.max_length,
        "disable_shuffling": True,
        "packing": False,
        "overwrite_cache": True,
        **trainer_arguments(config, train, out / arm),
        "warmup_ratio": train.warmup_ratio,
        # its bf16 is mixed precision over float32 weights
        "pure_bf16": precision(config) == "bfloat16",
        "fp16": precision(config) == "float16",
        **train.arguments,
    }


_ATTENTION = {"sdpa": "sdpa", "eager": "disabled", "flash_attention_2": "fa2"}


def _attention(config: RunConfig) -> dict[str, str]:
    if config.attention is None:
        return {}
    if config.attention not in _ATTENTION:
        raise ConfigError(
            f"attention {config.attention}: LLaMA-Factory has a name for {', '.join(_ATTENTION)}; give one of them, or leave it out"
        )
    return {"flash_attn": _ATTENTION[config.attention]}


def _adapter(config: RunConfig, train: SFTConfig) -> dict[str, Any]:
    bits = quantised_bits(config, "LLaMA-Factory")
    if train.lora is None:
        return {"finetuning_type": "full"}
    lora = adapter_settings(train, _LORA, "LLaMA-Factory")
    target = lora["lora_target"]
    if target == "all-linear":
        lora["lora_target"] = "all"
    elif isinstance(target, str):  # to peft a pattern of whole names, to LLaMA-Factory a list of names parted by commas
        raise ConfigError(
            f"train.lora.target_modules {target!r}: a pattern has no name in LLaMA-Factory's settings; list the modules"
        )
    else:
        lora["lora_target"] = ",".join(target)
    quantised = {"quantization_bit": bits, "quantization_type": "fp4", "double_quantization": False} if bits else {}
    return {"finetuning_type": "lora", **lora, **quantised}
