"""Offline generation on the demo model, as a user of vLLM's LLM would write it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quire import LLM, SamplingParams
from quire_api.errors import UserError
from quire_runtime.config import EngineConfig

MODEL = Path(__file__).parents[2] / "models" / "quire-tiny"
QUESTION = [{"role": "user", "content": "What is a pod?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def llm():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield LLM(model=MODEL, dtype="float32", device="cpu", max_num_seqs=16, max_model_len=512)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nothing_leaks(llm):
    yield
    assert llm.engine.stats.kv_blocks_used == 0
    assert not llm.engine.has_work


def test_the_package_imports_without_torch():
    program = "import quire, sys; from quire import SamplingParams; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_texts_and_ids_give_the_same_answer(llm):
    text = "A pod is"
    ids = llm.get_tokenizer().encode(text)
    by_text, by_ids, by_dict = llm.generate([text, {"prompt_token_ids": ids}, {"prompt": text}], GREEDY, use_tqdm=False)
    assert by_text.prompt == text
    assert by_text.prompt_token_ids == ids
    assert by_text.finished
    assert by_text.outputs[0].text
    assert by_text.outputs[0] == by_ids.outputs[0] == by_dict.outputs[0]
    assert by_text.outputs[0].text == llm.get_tokenizer().decode(by_text.outputs[0].token_ids)


def test_a_single_prompt_of_any_kind_is_a_list_of_one(llm):
    ids = llm.get_tokenizer().encode("A pod is")
    for prompt in ("A pod is", ids, {"prompt_token_ids": ids}):
        assert len(llm.generate(prompt, GREEDY, use_tqdm=False)) == 1


def test_answers_equal_transformers_in_the_order_of_the_prompts(llm):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    prompts = ["Count from 1 to 9.", "Kubernetes", "What is a block of the KV cache, and who frees it?"]
    counts = [30, 4, 17]
    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in counts]
    for output, count in zip(llm.generate(prompts, params, use_tqdm=False), counts, strict=True):
        made = model.generate(
            torch.tensor([output.prompt_token_ids]), do_sample=False, max_new_tokens=count, eos_token_id=None
        )
        assert output.outputs[0].token_ids == made[0, len(output.prompt_token_ids) :].tolist()
        assert output.outputs[0].finish_reason == "length"


def test_chat_ends_by_itself(llm):
    (output,) = llm.chat(QUESTION, SamplingParams(temperature=0, max_tokens=200), use_tqdm=False)
    answer = output.outputs[0]
    assert "pod" in answer.text.lower()
    assert (answer.finish_reason, answer.stop_reason) == ("stop", None)
    assert answer.token_ids[-1] in llm.engine.eos_token_ids
    assert "<|" not in answer.text


def test_several_conversations(llm):
    outputs = llm.chat([QUESTION, [{"role": "user", "content": "What is 2 + 3?"}]], GREEDY, use_tqdm=False)
    assert outputs[0].outputs[0].text != outputs[1].outputs[0].text


def test_the_models_own_defaults_apply_without_parameters(llm):
    assert llm.get_default_sampling_params().temperature == pytest.approx(0.1)
    assert len(llm.chat(QUESTION, use_tqdm=False)[0].outputs[0].token_ids) <= 16


def test_stop_strings_cut_the_text_across_tokens(llm):
    plain = llm.chat(QUESTION, GREEDY, use_tqdm=False)[0].outputs[0].text
    stop = plain[7:12]
    cut = plain[: plain.index(stop)]
    params = [
        SamplingParams(temperature=0, max_tokens=40, stop=[stop], include_stop_str_in_output=include)
        for include in (False, True)
    ]
    without, included = (llm.chat(QUESTION, asked, use_tqdm=False)[0].outputs[0] for asked in params)
    assert (without.text, without.finish_reason, without.stop_reason) == (cut, "stop", stop)
    assert included.text == cut + stop
    assert len(without.token_ids) < 40


def test_stop_strings_wait_for_min_tokens(llm):
    plain = llm.chat(QUESTION, GREEDY, use_tqdm=False)[0].outputs[0].text
    asked = SamplingParams(temperature=0, max_tokens=40, stop=[plain[:3]], min_tokens=4)
    assert llm.chat(QUESTION, asked, use_tqdm=False)[0].outputs[0].text.startswith(plain[:3])


def test_a_stop_token_names_itself_and_is_no_text(llm):
    plain = llm.chat(QUESTION, GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    stop = plain[5]
    answer = llm.chat(QUESTION, SamplingParams(temperature=0, stop_token_ids=[stop]), use_tqdm=False)[0].outputs[0]
    assert answer.token_ids == plain[: plain.index(stop) + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert answer.text == llm.get_tokenizer().decode(plain[: plain.index(stop)])


def test_choices_stop_one_by_one(llm):
    params = SamplingParams(n=4, seed=5, temperature=1.0, max_tokens=30, stop=["a"])
    (output,) = llm.chat(QUESTION, params, use_tqdm=False)
    assert [choice.index for choice in output.outputs] == [0, 1, 2, 3]
    for choice in output.outputs:
        assert choice.finish_reason in ("stop", "length")
        assert "a" not in choice.text


def test_logprobs_are_dicts_by_token(llm):
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=3, prompt_logprobs=1)
    (output,) = llm.generate("A pod is a", params, use_tqdm=False)
    answer = output.outputs[0]
    assert len(answer.logprobs) == len(answer.token_ids) == 5
    for token, entries in zip(answer.token_ids, answer.logprobs, strict=True):
        assert next(iter(entries)) == token
        assert [entry.rank for entry in entries.values()] == [1, 2, 3]
        assert entries[token].decoded_token == llm.get_tokenizer().token_text(token)
    chosen = [entries[token].logprob for token, entries in zip(answer.token_ids, answer.logprobs, strict=True)]
    assert answer.cumulative_logprob == pytest.approx(sum(chosen))
    assert output.prompt_logprobs[0] is None
    assert all(
        token in entries for token, entries in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    )


def test_cached_prefixes_are_counted_and_can_be_forgotten(llm):
    prompt = list(range(3, 60))
    assert llm.reset_prefix_cache()
    seen = [llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens for _ in range(2)]
    assert llm.reset_prefix_cache()
    assert [*seen, llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens] == [0, 48, 0]


@pytest.mark.parametrize("method", ["embed", "encode", "score", "beam_search"])
def test_what_other_models_are_asked_is_refused_in_a_sentence(llm, method):
    with pytest.raises(UserError, match=f"LLM has no {method}: .* Use generate or chat"):
        getattr(llm, method)("text")
    assert not hasattr(llm, method)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = llm.nonsense


def test_bad_input_is_refused_and_nothing_runs(llm):
    with pytest.raises(UserError, match="512"):
        llm.generate(["fine", list(range(3, 600))], GREEDY, use_tqdm=False)
    with pytest.raises(UserError, match="2 prompts but 1"):
        llm.generate(["a", "b"], [GREEDY], use_tqdm=False)
    with pytest.raises(UserError, match="prompt_token_ids"):
        llm.generate({"text": "a"}, GREEDY, use_tqdm=False)
    with pytest.raises(UserError, match="temperature"):
        SamplingParams(temperature=float("nan"))
    for prompts in (None, [None], 7.5):
        with pytest.raises(UserError, match="A prompt is a text, a list of token ids or a dict; this one is"):
            llm.generate(prompts, GREEDY, use_tqdm=False)
    for messages in ("hi", ["hi"], [["hi"]]):
        with pytest.raises(UserError, match="list of messages"):
            llm.chat(messages, GREEDY, use_tqdm=False)


def test_without_a_tokenizer_ids_go_in_and_come_out():
    llm = LLM(model=MODEL, dtype="float32", device="cpu", skip_tokenizer_init=True, max_model_len=128, max_num_seqs=2)
    (output,) = llm.generate({"prompt_token_ids": [5, 6, 7]}, GREEDY, use_tqdm=False)
    assert output.outputs[0].text == ""
    assert output.outputs[0].token_ids
    with pytest.raises(UserError, match="skip_tokenizer_init"):
        llm.generate("text", GREEDY, use_tqdm=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "nowhere/at all"}, "nowhere"),
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"max_model_length": 5}, "no setting 'max_model_length'"),
        ({"dtype": "int3"}, "dtype = 'int3'"),
        ({"kv_cache_memory": "1Mi"}, "GiB"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(UserError, match=message):
        LLM(**{"model": MODEL, "device": "cpu", "max_model_len": 2048, **settings})


def test_a_progress_bar_shows(llm, capsys):
    llm.generate(["A pod is", "A node is"], GREEDY)
    assert "Generating" in capsys.readouterr().out


def test_a_list_may_be_longer_than_a_servers_queue(llm):
    prompts = [{"prompt_token_ids": [5]}] * (EngineConfig.model_fields["max_num_queued_reqs"].default + 1)
    answers = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    assert len(answers) == len(prompts)
