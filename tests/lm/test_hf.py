"""The fast path against the plain one: every score and every free answer, whatever is batched with what."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PromptTuningConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from paft.assets import ModelFiles
from paft.errors import AssetError, ConfigError, RenderError, ResourceError
from paft.lm.hf import _identity, load_model, pick_dtype
from paft.lm.passes import Cost, kernel_mask
from paft.lm.types import Message, Question
from paft.training.setup import with_lora
from tests import tiny

SHARING = ["llama", "qwen2", "mistral", "gemma3_text", "gpt_neox", "gpt2"]
ALONE = ["gpt_neo", "bloom", "mamba"]
SMALL = Cost(overhead=1, room=24, batch=200, decode=3, held=300)


def questions(count: int = 12) -> list[Question]:
    """Ragged prompts with a common head, and 2 to 5 ragged choices."""
    head = "read this sentence , then decide . choose the right option and write its letter : "
    made = []
    for i in range(count):
        text = head + " ".join(tiny.WORDS[j % 8] for j in range(i * 3 % 17 + 1)) + " ?"
        choices = tuple(
            " ".join(tiny.WORDS[(i + c + j) % 8] for j in range((i + 2 * c) % 4 + 1)) for c in range(2 + i % 4)
        )
        made.append(Question((Message("user", text),), choices))
    return made


def plain_scores(lm, question) -> list[float]:
    """Each choice by itself: one unpadded forward, log-probabilities summed in float64."""
    scores = []
    for choice in question.choices:
        ids, start = lm.renderer.pair_ids(question.chat, choice)
        with torch.inference_mode():
            logp_TV = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        scores.append(sum(float(logp_TV[t - 1, ids[t]]) for t in range(start, len(ids))))
    return scores


def plain_text(lm, question, limit) -> tuple[str, int]:
    ids = lm.renderer.prompt_ids(question.chat)
    said: list[int] = []
    with torch.inference_mode():
        for _ in range(limit):
            token = int(lm.model(torch.tensor([ids + said])).logits[0, -1].argmax())
            if token in lm.end_ids:
                return lm.tokenizer.decode(said), len(said) + 1
            said.append(token)
    return lm.tokenizer.decode(said), len(said)


@pytest.mark.parametrize("kind", [*SHARING, *ALONE])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("small", [False, True])
def test_scores_and_free_answers_equal_those_computed_one_by_one(kind, chat, small):
    lm = tiny.hf_model(kind, chat)
    said: list[str] = []
    lm.say = said.append
    if small:
        lm._engine.cost = SMALL
    asked = [replace(question, max_new_tokens=3 + n % 4) for n, question in enumerate(questions())]
    answers = lm.answer(asked, batch_tokens=64 if small else None)
    for question, answer in zip(asked, answers, strict=True):
        for fast, slow, tokens in zip(answer.logp_C, plain_scores(lm, question), answer.tokens_C, strict=True):
            assert abs(fast - slow) <= 1e-4 * tokens
        text, tokens = plain_text(lm, question, question.max_new_tokens)
        assert answer.completion is not None
        assert (answer.completion.text, answer.completion.tokens) == (text, tokens)
    assert any("shares no beginnings" in line for line in said) == (kind in ALONE)
    assert lm._engine._shares == (kind in SHARING)


def test_a_shared_beginning_is_computed_once():
    lm = tiny.hf_model()
    lm.answer(questions(2))  # finds out whether the model shares
    head = "read this sentence , then decide . " * 9
    asked = [Question((Message("user", f"{head} {word} ?"),), ("A", "B")) for word in tiny.WORDS]
    before = lm.tokens_read
    answers = lm.answer(asked)
    alone = sum(answer.prompt_tokens for answer in answers)
    assert lm.tokens_read - before < alone / 3


def test_the_parts_of_a_question_answered_apart_are_those_answered_together():
    lm = tiny.hf_model()
    for question in questions(4):
        (both,) = lm.answer([replace(question, max_new_tokens=5)])
        (scored,), (free,) = lm.answer([question]), lm.answer([replace(question, choices=(), max_new_tokens=5)])
        joined = scored | free
        assert joined.logp_C == pytest.approx(both.logp_C, abs=1e-5)
        assert replace(joined, logp_C=both.logp_C) == both
        assert both.seconds > 0
        assert joined.seconds == scored.seconds + free.seconds


def test_one_prompt_asked_with_two_limits_gets_two_answers():
    lm = tiny.hf_model()
    chat = questions(1)[0].chat
    short, long = lm.answer([Question(chat, max_new_tokens=2), Question(chat, max_new_tokens=6)])
    for answer, limit in ((short, 2), (long, 6)):
        text, tokens = plain_text(lm, Question(chat), limit)
        assert (answer.completion.text, answer.completion.tokens) == (text, tokens)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_a_free_answer_that_is_settled_goes_no_further(kind):
    lm = tiny.hf_model(kind)
    whole = lm.answer([Question(question.chat, max_new_tokens=9) for question in questions()])
    cut = lm.answer(
        [Question(question.chat, max_new_tokens=9, settled=lambda text: len(text) > 4) for question in questions()]
    )
    stops = set()
    for question, long, short in zip(questions(), whole, cut, strict=True):
        texts = [plain_text(lm, question, limit) for limit in range(1, 10)]
        expected = next((each for each in texts if len(each[0]) > 4), texts[-1])
        assert (short.completion.text, short.completion.tokens) == expected
        assert long.completion.text.startswith(short.completion.text)
        stops.add(short.completion.stop)
        assert (short.completion.stop == "settled") == (len(short.completion.text) > 4)
    assert "settled" in stops


def test_what_is_settled_knows_of_a_thought_that_the_chat_template_opened():
    lm = tiny.hf_model()
    heard = []
    asked = Question(questions()[3].chat, max_new_tokens=2, settled=lambda text: bool(heard.append(text)))
    lm.answer([asked])
    assert heard
    assert not any("<think>" in text for text in heard)
    lm.tokenizer.chat_template += "<think>\n"
    heard.clear()
    lm.answer([asked])
    assert heard
    assert all(text.startswith("<think>") for text in heard)


def test_a_cell_has_the_same_score_in_any_company():
    lm = tiny.hf_model()
    asked = questions()
    together = lm.answer(asked)
    alone = [lm.answer([question])[0] for question in asked]
    for a, b in zip(together, alone, strict=True):
        assert a.logp_C == pytest.approx(b.logp_C, abs=1e-4)


def test_a_seam_inside_a_token_is_counted_and_scored_exactly():
    lm = tiny.hf_model(chat=False)
    seamed = Question((Message("user", "choose the right opt\n"),), ("\nion", "ion x"))
    answer = lm.answer([replace(question, max_new_tokens=4) for question in (seamed, *questions(3))])[0]
    assert answer.logp_C == pytest.approx(plain_scores(lm, seamed), abs=1e-3)
    assert answer.completion is not None
    assert answer.completion.text == plain_text(lm, seamed, 4)[0]


def test_quantised_weights_are_scored_exactly_and_are_another_model(tmp_path):
    folder = str(tiny.saved_model(tmp_path / "model"))
    said: list[str] = []
    lm = load_model(folder, quantization={"load_in_4bit": True}, say=said.append)
    assert any("weights quantised" in line for line in said)
    asked = [replace(question, max_new_tokens=4) for question in questions()]
    for question, answer in zip(asked, lm.answer(asked), strict=True):
        for fast, slow, tokens in zip(answer.logp_C, plain_scores(lm, question), answer.tokens_C, strict=True):
            assert abs(fast - slow) <= 1e-4 * tokens
        assert (answer.completion.text, answer.completion.tokens) == plain_text(lm, question, 4)
    assert lm._engine._shares
    plain, other = (
        load_model(folder),
        load_model(folder, quantization={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    )
    assert len({each.fingerprint for each in (lm, plain, other)}) == 3
    assert plain.answer(asked)[0].logp_C != lm.answer(asked)[0].logp_C
    with pytest.raises(ConfigError, match="not understood by transformers"):
        load_model(folder, quantization={"load_in_3bit": True})


def test_a_kernel_of_attention_is_chosen_by_name(tmp_path):
    folder = str(tiny.saved_model(tmp_path / "model"))
    assert load_model(folder, attention="eager").model.config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match="flex_attention: cannot be trained on a CPU"):
        load_model(folder, attention="flex_attention")
    with pytest.raises(AssetError, match="quick_attention"):
        load_model(folder, attention="quick_attention")


def test_free_answers_without_choices():
    lm = tiny.hf_model()
    asked = [Question(question.chat, max_new_tokens=3) for question in questions(3)]
    for question, answer in zip(asked, lm.answer(asked), strict=True):
        assert answer.logp_C == ()
        assert answer.completion is not None
        assert answer.completion.text == plain_text(lm, question, 3)[0]


def test_out_of_memory_halves_the_batch_and_goes_on():
    lm = tiny.hf_model()
    said: list[str] = []
    lm.say = said.append
    expected = [answer.logp_C for answer in lm.answer(questions())]
    real = lm.model.forward

    def small(*args, **kwargs):
        if kwargs["input_ids"].numel() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    lm.model.forward = small
    for alone, answer in zip(expected, lm.answer(questions()), strict=True):
        assert answer.logp_C == pytest.approx(alone, abs=1e-4)
    assert any("going on with half" in line for line in said)


def test_out_of_memory_on_one_question_is_one_line():
    lm = tiny.hf_model()

    def never(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    lm.model.forward = never
    with pytest.raises(ResourceError, match="out of memory on a single question"):
        lm.answer(questions(1))


def test_out_of_memory_in_a_head_or_while_writing_goes_on_too(monkeypatch):
    """A head is a pass of one row, and so is each token of many answers: both may find no memory left."""
    lm = tiny.hf_model()
    said: list[str] = []
    lm.say = said.append
    asked = [replace(question, max_new_tokens=4) for question in questions()]
    expected = lm.answer(asked)
    engine, real, heard = lm._engine, lm.model.forward, []
    engine.cost = replace(SMALL, decode=64, held=10_000)
    forward = engine._forward

    def no_heads(rows, layers, start, wanted, keep=False):
        if (
            keep
            and start == 0
            and len(rows) == 1
            and len(rows[0].ids_T) < min(len(q.prompt) for q in lm._rendered.values())
        ):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(rows, layers, start, wanted, keep)

    def small(*args, **kwargs):
        rows, width = kwargs["input_ids"].shape
        if width == 1 and rows * kwargs["attention_mask"].shape[-1] > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(engine, "_forward", no_heads)
    lm.model.forward = small
    found = lm.answer(asked, done=lambda index, answer: heard.append(index))
    for alone, answer in zip(expected, found, strict=True):
        assert answer.logp_C == pytest.approx(alone.logp_C, abs=1e-4)
        assert answer.completion == alone.completion
    assert sorted(heard) == sorted([*range(len(asked))] * 2)  # scores and free answer, each once
    assert any("a beginning that texts have in common" in line for line in said)
    assert any("answers at once; going on with half" in line for line in said)
    said.clear()
    lm.answer(asked[:2])
    assert not any("answers at once" in line for line in said), "what was learned is kept"


def test_a_question_longer_than_the_model_reads_is_refused_before_any_forward():
    lm = tiny.hf_model()
    with pytest.raises(RenderError, match="reads at most 4096"):
        lm.answer([Question((Message("user", "word " * 100_000),), ("a", "b"))])


def test_the_fingerprint_follows_the_weights_and_the_rendering():
    first, again, other = tiny.hf_model(), tiny.hf_model(), tiny.hf_model(seed=1)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert tiny.hf_model(chat=False).fingerprint != first.fingerprint


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_in_half_precision_shared_scores_are_those_of_one_by_one_up_to_its_rounding(kind):
    lm = tiny.hf_model(kind)
    lm.model.to(torch.bfloat16)
    asked = questions(60)
    differ = 0
    for question, answer in zip(asked, lm.answer(asked), strict=True):
        plain = plain_scores(lm, question)
        assert answer.logp_C == pytest.approx(plain, rel=0.02, abs=0.05)
        best, *rest = sorted(plain, reverse=True)
        if max(range(len(plain)), key=answer.logp_C.__getitem__) != plain.index(best):
            differ += 1
            assert best - rest[0] < 0.05, "decisions differ only between choices that half precision cannot tell apart"
    assert differ <= 3


@pytest.mark.parametrize(
    "settings",
    [
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
        LoraConfig(r=2, target_modules="all-linear", use_dora=True, use_rslora=True, init_lora_weights=False),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
        LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False),
        VeraConfig(r=2, target_modules=["q_proj"], d_initial=0.5),
        PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    ],
    ids=lambda settings: settings.peft_type.value + "+" * bool(getattr(settings, "use_dora", False)),
)
def test_the_fingerprint_tells_adapters_apart_of_whatever_kind(tmp_path, settings):
    base = tiny.hf_model()
    seen = {base.fingerprint}
    for n in range(2):
        model = tiny.hf_model().model
        torch.manual_seed(n)
        tuned = get_peft_model(model, copy.deepcopy(settings))
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data += 0.01 * torch.randn_like(parameter)
        in_memory = base.wrapping(tuned).fingerprint
        tuned.save_pretrained(tmp_path / str(n), save_embedding_layers=False)
        assert tiny.hf_model().with_adapter(tmp_path / str(n)).fingerprint == in_memory
        seen.add(in_memory)
    assert len(seen) == 3


def test_an_adapter_whose_weights_do_not_fit_is_refused(tmp_path):
    tuned = get_peft_model(tiny.hf_model().model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    base, asked = tiny.hf_model(), questions(2)
    fingerprint, before = base.fingerprint, [answer.logp_C for answer in base.answer(asked)]
    renamed = {name.replace("model.layers", "model.language_model.layers"): each for name, each in weights.items()}
    for named in (renamed, dict(list(weights.items())[:2])):
        save_file(named, file)
        with pytest.raises(AssetError, match=r"holds no weights for layers of memory .*; give the model that it was"):
            base.with_adapter(tmp_path)
        assert [answer.logp_C for answer in base.answer(asked)] == before
    save_file({name: each[:, :1].contiguous() for name, each in weights.items()}, file)
    with pytest.raises(AssetError, match=r"does not fit memory \(.*size mismatch"):
        base.with_adapter(tmp_path)
    with pytest.raises(AssetError, match=r"does not fit memory \(.*size mismatch"):
        with_lora(base, {"r": 2}, seed=0, start=tmp_path)
    with pytest.raises(AssetError, match=r"adapter .*elsewhere: no adapter_config.json"):
        with_lora(base, {"r": 2}, seed=0, start=tmp_path / "elsewhere")
    assert (base.fingerprint, [answer.logp_C for answer in base.answer(asked)]) == (fingerprint, before)
    save_file(weights, file)
    with pytest.raises(AssetError, match=r"does not fit memory \(.*q_proj.* not found"):
        tiny.hf_model("gpt2").with_adapter(tmp_path)


def test_the_fingerprint_follows_the_scale_of_an_adapter(tmp_path):
    tuned = get_peft_model(tiny.hf_model().model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    before = tiny.hf_model().with_adapter(tmp_path).fingerprint
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 32}))
    assert tiny.hf_model().with_adapter(str(tmp_path)).fingerprint != before


def test_a_local_model_is_known_by_all_its_bytes(tmp_path):
    weights = tmp_path / "model.safetensors"
    content = bytearray(5 << 20)
    weights.write_bytes(content)
    files = ModelFiles(tmp_path, None, "local", "")
    before = _identity("m", files)
    content[len(content) // 2] ^= 1  # far from both ends
    weights.write_bytes(content)
    assert _identity("m", files) != before


def test_files_that_were_cut_are_one_line(tmp_path):
    tuned = get_peft_model(tiny.hf_model().model, LoraConfig(r=2, target_modules=["q_proj"]))
    for part, made in (("adapter", tuned), ("model", tiny.hf_model().model)):
        made.save_pretrained(tmp_path / part)
        (weights,) = (tmp_path / part).glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AssetError, match="adapter: the file is damaged or was cut"):
        tiny.hf_model().with_adapter(tmp_path / "adapter")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(AssetError, match="the file is damaged or was cut; fetch it again"):
        load_model(str(tmp_path / "model"))
    (tmp_path / "model" / "config.json").write_text("[]")
    with pytest.raises(AssetError, match="cannot be loaded"):
        load_model(str(tmp_path / "model"))


def test_settings_that_peft_fails_at_are_one_line_and_leave_the_model():
    lm = tiny.hf_model()
    before = lm.fingerprint
    with pytest.raises(ConfigError, match=r"^train\.lora .*'x'"):
        with_lora(lm, {"r": 2, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": "x"}}, 0)
    assert lm.fingerprint == before


def test_a_precision_that_does_not_exist_is_refused():
    for dtype in ("float33", "int8"):
        with pytest.raises(ConfigError, match=f"dtype '{dtype}'.*; expected auto, float32"):
            pick_dtype(dtype, torch.device("cpu"))


def test_done_hears_of_every_answer_once():
    heard: list[int] = []
    tiny.hf_model().answer(questions(), batch_tokens=64, done=lambda index, answer: heard.append(index))
    assert sorted(heard) == list(range(12))


@pytest.mark.parametrize("tuned", [False, True])
def test_a_models_own_penalties_do_not_change_greedy_answers(tuned):
    """Whichever way it is decoded: alone, with others, or as a model that shares nothing."""
    lm = tiny.hf_model()
    if tuned:
        lm = lm.wrapping(get_peft_model(lm.model, LoraConfig(r=2, target_modules=["q_proj"])).eval())
    asked = [replace(question, choices=(), max_new_tokens=8) for question in questions(4)]
    inner = lm.model.get_base_model() if tuned else lm.model
    inner.generation_config.repetition_penalty = 50.0
    inner.generation_config.suppress_tokens = [5, 6, 7]
    wanted = [plain_text(lm, question, 8)[0] for question in asked]
    together = [found.completion.text for found in lm.answer(asked)]
    lm._engine._shares = False
    apart = [found.completion.text for found in lm.answer(asked)]
    assert together == apart == wanted
    assert inner.generation_config.repetition_penalty == 50.0


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flash_attention_3"])
def test_a_kernel_that_takes_no_mask_is_not_tried_with_one(kernel):
    """It would read the mask as lengths, past the end of its rows, and end the process on a GPU."""
    lm = tiny.hf_model()
    lm.model.config._attn_implementation_internal = kernel
    with pytest.raises(ValueError, match="takes no mask of its own"):
        kernel_mask(torch.ones(1, 1, 4, 4, dtype=torch.bool), lm.model)
