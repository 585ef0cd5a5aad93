"""A trained arm as something to hand on: adapter or merged weights, with a model card that carries the robustness table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData

from paft.config import RunConfig, validate
from paft.errors import AssetError, ConfigError, DataError, few
from paft.finished import load_results
from paft.reports import markdown_table
from paft.store import ArmDir, RunDir, new_folder, write_text

Say = Callable[[str], None]


def export_model(run: Path, arm: str, out: Path, *, merge: bool = False, say: Say = lambda _: None) -> Path:
    """Write a trained arm of a finished run into a new directory, whole or not at all. Returns the directory.

    merge: the adapter's weights are added to the model's, so that nobody needs PEFT. Raises ConfigError for an arm that is not trained
    and for what cannot be merged, DataError for a run that is not finished.
    """
    results = load_results(run)
    config = validate(RunConfig, results["config"], str(run))
    trained = [name for name in config.arms if config.training_of(name) is not None]
    settings = config.training_of(arm) if arm in config.arms else None
    if settings is None:
        raise ConfigError(f"{run}:{arm}: expected an arm that was trained there: {few(trained) or 'none was'}")
    folder = RunDir(run).arm(arm)
    if not folder.trained:
        raise DataError(f"{folder.root}: the training is not finished; run it to its end first")
    if merge and settings.lora is None:
        raise ConfigError(f"{run}:{arm}: all weights were trained, there is no adapter to merge; leave --merge out")
    if merge and config.quantization is not None:
        raise ConfigError(f"{run}:{arm}: an adapter cannot be merged into quantised weights; leave --merge out")
    whole = merge or settings.lora is None
    with new_folder(out) as scratch:
        if merge:
            _merged(config, folder, scratch, say, images=results["task"].get("images", False))
        else:
            shutil.copytree(folder.model if whole else folder.adapter, scratch, dirs_exist_ok=True)
        if whole:
            for_older_readers(scratch)
        write_text(scratch / "README.md", model_card(results, arm, merged=whole))
    return out


def _merged(config: RunConfig, folder: ArmDir, out: Path, say: Say, *, images: bool) -> None:
    from paft.lm.hf import load_model, without_chatter

    assert config.model is not None
    learner = load_model(
        config.model,
        source=config.source,
        dtype=config.dtype,
        style=config.style,
        chat_template_kwargs=config.chat_template_kwargs,
        adapter=folder.adapter,
        images=images,
        say=say,
    )
    with without_chatter():
        learner.model.merge_and_unload().save_pretrained(out)
        learner.saved_with.save_pretrained(out)


def older_words(folder: Path) -> dict[str, dict[str, Any]]:
    """What transformers 4 reads by other words than version 5 writes, by file: the rotary base, the tokenizer's class and inputs.

    Without them it takes defaults, and the model there is another one. Empty for a model that has them.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        model, tokenizer = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (_MODEL, _TOKENIZER))
    except (OSError, ValueError):
        return {}
    rope = model.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope and "rope_theta" not in model:
        found[_MODEL] = {"rope_theta": rope["rope_theta"]}
        if rope.get("rope_type", "default") != "default":
            found[_MODEL]["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        found[_TOKENIZER] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if "model_input_names" not in tokenizer:
            found[_TOKENIZER]["model_input_names"] = ["input_ids", "attention_mask"]
    return found


_MODEL, _TOKENIZER = "config.json", "tokenizer_config.json"


def for_older_readers(folder: Path) -> None:
    """Add what transformers 4 needs to a model's directory; version 5 reads it as it did."""
    for name, words in older_words(folder).items():
        told = json.loads((folder / name).read_text(encoding="utf-8"))
        write_text(folder / name, json.dumps(told | words, indent=2, ensure_ascii=False) + "\n")


def model_card(results: Mapping[str, Any], arm: str, *, merged: bool) -> str:
    """Text of the card: what was trained how, and the accuracy over wordings it has not seen, with intervals."""
    told, config, task, prompts = results["arms"][arm], results["config"], results["task"], results["prompts"]
    train = told["train"]
    settings = {key: value for key, value in train["settings"].items() if value not in (None, [], {})}
    data = ModelCardData(
        model_name=config["name"],
        base_model=config["model"],
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        tags=["paft", "prompt-robustness", *([] if merged else ["lora"])],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=task["name"],
                dataset_name=f"{task['name']}, {len(prompts['test'])} unseen prompts x {task['test_examples']} examples",
                dataset_split=task["split"],
                metric_type="accuracy",
                metric_name=f"{_SCORERS[scorer]}, {name}",
                metric_value=round(scores["estimates"][key]["value"], 4),
            )
            for scorer, scores in told["scores"].items()
            for key, name in (("mean", "mean over prompts"), ("worst", "worst prompt"))
            if scores["estimates"].get(key, {}).get("value") is not None
        ],
    )
    use = _WHOLE if merged else _ADAPTER.replace("BASE", json.dumps(config["model"]))
    seen = f"{train['distinct_prompts']} of {prompts['train']} training prompts over {train['updates']} updates"
    return "\n".join(
        [
            "---",
            data.to_yaml().strip(),
            "---",
            "",
            f"# {_plain(config['name'])}: {_plain(told['title'])}",
            "",
            f"`{_plain(config['model'])}`, tuned on {task['train_examples']} examples of {_plain(task['name'])} under {seen} (Prompt-Agnostic "
            "Fine-Tuning, [arXiv 2502.12859](https://arxiv.org/abs/2502.12859)).",
            "",
            "## Accuracy over wordings it has not seen",
            "",
            markdown_table([results]).strip(),
            "",
            "## Use",
            "",
            "```python",
            use,
            "```",
            "",
            "## Training",
            "",
            "```json",
            json.dumps({"seed": config["seed"], **settings}, indent=1),
            "```",
            "",
        ]
    )


_SCORERS = {"generation": "free answers", "likelihood": "restricted choice"}
_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this directory or repository")
tokenizer = AutoTokenizer.from_pretrained("this directory or repository")"""
_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), "this directory or repository")"""


def _plain(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def push(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload an exported directory to the hub; returns the address. Raises AssetError with the reason when that fails."""
    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Add model and card")
    except Exception as error:  # which library the hub's client speaks through changes, and so do its errors
        reason = " ".join(str(error).split())[:200]
        raise AssetError(
            f"hub repository {repo!r}: not uploaded ({reason}); {folder} is complete, push it again"
        ) from None
    return str(address)
