# Copyright 2026 The trl_gist authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import copy
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import make_documents
from transformers import AutoModelForCausalLM

from trl_gist import GistCompactor, GistConfig, GistTrainer
from trl_gist.common.tokens import characters_of, decode
from trl_gist.inference.compactor import Gist
from trl_gist.models.roles import base_of, storage_pointers
from trl_gist.prompts import SUMMARIZER_PROMPT


CONTEXT_LENGTH, LAST_K, MAX_GIST_LENGTH = 24, 4, 6
TEXT = make_documents(1)[0]


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, checkpoint, tmp_path_factory):
    """A pair after two steps, and the gists that the trainer's greedy evaluation wrote."""
    directory = tmp_path_factory.mktemp(f"pair-{request.param}")
    evaluated = []

    def watch(context_ids, gist_ids, trainer_state, **kwargs):
        if trainer_state.global_step == 2:
            evaluated.extend(zip(context_ids, gist_ids, strict=True))
        return [0.1 * ids[0] for ids in gist_ids]

    documents = Dataset.from_dict({"text": make_documents(12)})
    trainer = GistTrainer(
        checkpoint,
        GistConfig(
            output_dir=str(directory),
            context_length=CONTEXT_LENGTH,
            target_length=8,
            last_k=LAST_K,
            max_completion_length=MAX_GIST_LENGTH,
            summarizer_prompt=SUMMARIZER_PROMPT,
            cold_start_steps=0,
            num_generations=4,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=4,
            max_steps=2,
            learning_rate=1e-3,
            generator_learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=documents,
        eval_dataset=documents.select(range(4)),
        reward_funcs=watch,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if request.param == "lora" else None,
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return SimpleNamespace(directory=directory, evaluated=evaluated, kind=request.param)


@pytest.fixture(scope="module")
def compactor(trained):
    return GistCompactor.from_pretrained(trained.directory, device="cpu")


@pytest.fixture(scope="module")
def text_ids(compactor):
    return compactor.tokenizer(TEXT)["input_ids"]


@pytest.fixture
def pair_dir(trained, tmp_path):
    """A copy of the pair to damage."""
    return shutil.copytree(trained.directory, tmp_path / "pair")


def plain_log_prob(model, prompt, completion):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].double()
    steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return sum(step[token].item() for step, token in zip(steps, completion, strict=True))


def test_gists_equal_those_of_the_trainers_greedy_evaluation(trained, compactor):
    contexts, gists = zip(*trained.evaluated, strict=True)
    assert len(contexts) == 20
    whole = characters_of(compactor.tokenizer).whole
    assert [gist.token_ids for gist in compactor.compress_batch(list(contexts))] == [*map(whole, gists)]


def test_a_batch_equals_its_contexts_one_by_one(compactor, text_ids):
    contexts = [text_ids[start : start + length] for start, length in ((0, 24), (24, 3), (30, 11), (41, 24), (70, 1))]
    batch = compactor.compress_batch(contexts, batch_size=3)
    for context, gist in zip(contexts, batch, strict=True):
        single = compactor.compress(context)
        assert asdict(gist) == {**asdict(single), "log_prob": pytest.approx(single.log_prob, abs=1e-4)}
        assert gist.context_tokens == len(context)


@pytest.mark.parametrize("method", ["compress_batch", "compress_windows", "iter_windows"])
def test_a_batch_of_no_contexts_is_refused(compactor, method):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        getattr(compactor, method)([TEXT] if method == "compress_batch" else TEXT, batch_size=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_writes_the_same_and_waits_for_no_call_of_the_original(compactor, text_ids, copied):
    context = text_ids[:CONTEXT_LENGTH]
    expected = compactor.compress(context).token_ids
    with compactor.lock:
        other = copied(compactor)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(other.compress, context).result(60).token_ids == expected
    assert storage_pointers(other.summarizer).isdisjoint(storage_pointers(compactor.summarizer))


def test_a_shallow_copy_waits_for_a_call_of_the_original_whose_models_it_has(compactor, text_ids):
    other = copy.copy(compactor)
    assert other.summarizer is compactor.summarizer and other.generator is compactor.generator
    with ThreadPoolExecutor(1) as thread:
        with compactor.lock:
            waiting = thread.submit(other.compress, text_ids[:CONTEXT_LENGTH])
            with pytest.raises(TimeoutError):
                waiting.result(1)
        assert waiting.result(60).token_ids == compactor.compress(text_ids[:CONTEXT_LENGTH]).token_ids


@pytest.mark.parametrize("do_sample", [False, True])
def test_log_prob_is_that_of_a_plain_forward(compactor, text_ids, do_sample):
    context = text_ids[:CONTEXT_LENGTH]
    torch.manual_seed(3)
    gist = compactor.compress(context, do_sample=do_sample)
    expected = plain_log_prob(compactor.summarizer, compactor.prompts.summarizer(context), gist.token_ids)
    assert gist.log_prob == pytest.approx(expected, abs=1e-4)


def test_sampling_follows_the_seed(compactor, text_ids):
    def sample(seed):
        torch.manual_seed(seed)
        return compactor.compress(text_ids[:CONTEXT_LENGTH], do_sample=True).token_ids

    assert sample(0) == sample(0) != sample(1)


def test_a_gist_ends_before_any_end_of_sequence_token_the_model_declares(compactor, text_ids, monkeypatch):
    contexts = [text_ids[:24], text_ids[24:40]]
    whole = compactor.compress_batch(contexts)
    end = whole[0].token_ids[3]
    monkeypatch.setattr(
        compactor.summarizer.generation_config, "eos_token_id", [compactor.tokenizer.eos_token_id, end]
    )
    ended = compactor.compress_batch(contexts)
    for before, after in zip(whole, ended, strict=True):
        length = before.token_ids.index(end) if end in before.token_ids else MAX_GIST_LENGTH
        assert after.token_ids == before.token_ids[:length]
    assert len(ended[0].token_ids) <= 3
    prompt = compactor.prompts.summarizer(contexts[0])
    expected = plain_log_prob(compactor.summarizer, prompt, ended[0].token_ids)
    assert ended[0].log_prob == pytest.approx(expected, abs=1e-4)


def test_a_budget_cuts_the_greedy_gist_and_may_exceed_the_trained_one(compactor, text_ids):
    context = text_ids[:CONTEXT_LENGTH]
    default = compactor.compress(context).token_ids
    whole = characters_of(compactor.tokenizer).whole
    longer = compactor.generate("summarizer", [compactor.prompts.summarizer(context)], max_new_tokens=9)[0][0]
    assert compactor.compress(context, budget=2).token_ids == whole(longer[:2])
    assert default == whole(longer[:MAX_GIST_LENGTH])
    assert compactor.compress(context, budget=9).token_ids == whole(longer)
    with pytest.raises(ValueError, match="`budget` must be at least 1 or None, got 0"):
        compactor.compress(context, budget=0)


def test_rates_count_the_gist_and_all_that_the_generator_reads(compactor, text_ids):
    context = text_ids[:20]
    gist = compactor.compress(context)
    template = len(compactor.prompts.generator([], []))
    assert gist.gist_rate == len(gist.token_ids) / 20
    assert gist.total_rate == (len(gist.token_ids) + LAST_K + template) / 20


def test_compress_windows_gives_a_gist_for_each_context_and_goes_on_with_its_last_tokens(compactor, text_ids):
    gists = compactor.compress_windows(TEXT, batch_size=2)
    stride = CONTEXT_LENGTH - LAST_K
    starts = range(0, len(text_ids) - LAST_K, stride)
    contexts = [text_ids[start : start + CONTEXT_LENGTH] for start in starts]
    assert [gist.context_tokens for gist in gists] == [len(context) for context in contexts]
    assert gists[1].token_ids == compactor.compress(contexts[1]).token_ids
    assert gists[-1].token_ids == compactor.compress(contexts[-1], last_k="").token_ids
    assert compactor.compress_batch([]) == []


def test_continue_text_is_greedy_decoding_of_the_generator_from_the_gist_and_the_last_tokens(compactor, text_ids):
    continuation = compactor.continue_text(TEXT, max_new_tokens=10)
    context = text_ids[-CONTEXT_LENGTH:]
    gist = compactor.compress(context)
    ids = compactor.prompts.generator(gist.token_ids, context[-LAST_K:])
    written = []
    for _ in range(10):
        with torch.no_grad():
            token = compactor.generator(torch.tensor([ids + written])).logits[0, -1].argmax().item()
        if token == compactor.tokenizer.eos_token_id:
            break
        written.append(token)
    assert continuation.token_ids == written
    assert continuation.text == decode(compactor.tokenizer, written)
    assert continuation.gist.token_ids == gist.token_ids
    assert continuation.gist.context_tokens == CONTEXT_LENGTH


def test_continue_from_takes_a_gist_or_its_text(compactor, text_ids):
    whole = compactor.continue_text(text_ids, max_new_tokens=8)
    last_ids = text_ids[-LAST_K:]
    assert compactor.continue_from(whole.gist, last_ids, max_new_tokens=8) == whole
    stored = Gist(**json.loads(json.dumps(asdict(whole.gist))))
    assert compactor.continue_from(stored, last_ids, max_new_tokens=8).token_ids == whole.token_ids
    edited = compactor.continue_from("cholera, Snow 1854", "in the", max_new_tokens=8)
    prompt = compactor.prompts.generator(
        compactor.tokenizer("cholera, Snow 1854")["input_ids"], compactor.tokenizer("in the")["input_ids"]
    )
    assert plain_log_prob(compactor.generator, prompt, edited.token_ids[:1]) == pytest.approx(
        compactor.generator(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).max().item(), abs=1e-4
    )


def test_sampled_continuations_take_generation_settings(compactor):
    greedy = compactor.continue_text(TEXT, max_new_tokens=8)
    assert compactor.continue_text(TEXT, 8, do_sample=True, top_k=1).token_ids == greedy.token_ids
    torch.manual_seed(0)
    assert compactor.continue_text(TEXT, 8, do_sample=True).token_ids != greedy.token_ids


def test_a_context_longer_than_trained_names_compress_windows(compactor, text_ids):
    with pytest.raises(ValueError, match="The context has 25 tokens, .* contexts of 24. Use `compress_windows`"):
        compactor.compress(text_ids[:25])
    with pytest.raises(ValueError, match="Context 1 has 30 tokens"):
        compactor.compress_batch([text_ids[:5], text_ids[:30]])


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("", "The context is empty"),
        ([], "The context is empty"),
        (None, "must be text or a list of token ids, got NoneType"),
        (b"bytes", "must be text or a list of token ids, got bytes"),
        ("bad \ud800 surrogate", "is not valid text: .*surrogates not allowed"),
        ([1, 10**6], "holds 1000000, which is no id"),
        ([1, "a"], "holds 'a', which is no id"),
    ],
)
def test_what_is_not_text_is_refused(compactor, context, message):
    with pytest.raises(ValueError, match=message):
        compactor.compress(context)
    with pytest.raises(ValueError, match=message.replace("The context", "The text")):
        compactor.continue_text(context)


def test_more_tokens_than_positions_are_refused(compactor):
    with pytest.raises(ValueError, match="The generator would need .* positions for its prompt and 500 new tokens"):
        compactor.continue_text(TEXT, max_new_tokens=500)


def test_two_adapters_share_their_base_and_two_models_share_nothing(trained, compactor):
    shared = storage_pointers(compactor.summarizer) & storage_pointers(compactor.generator)
    if trained.kind == "full":
        assert not shared
        return
    assert shared == {
        parameter.untyped_storage().data_ptr()
        for name, parameter in base_of(compactor.summarizer).named_parameters()
        if "lora_" not in name
    }
    assert not any(parameter.requires_grad for parameter in compactor.generator.parameters())


def test_an_adapter_may_be_paired_with_a_whole_model(trained, compactor, pair_dir, checkpoint):
    shutil.rmtree(pair_dir / "generator")
    shutil.copytree(checkpoint, pair_dir / "generator")
    mixed = GistCompactor.from_pretrained(pair_dir, device="cpu", dtype="float32")
    assert mixed.compress(TEXT[:30]).token_ids == compactor.compress(TEXT[:30]).token_ids
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(mixed.generator(ids).logits, base(ids).logits)


def test_dtype_is_the_users_or_the_checkpoints(trained, compactor):
    assert compactor.generator.dtype == torch.float32
    half = GistCompactor.from_pretrained(trained.directory, device="cpu", dtype="bfloat16")
    assert half.generator.dtype == half.summarizer.dtype == torch.bfloat16
    assert len(half.compress(TEXT[:30]).token_ids) <= MAX_GIST_LENGTH


def test_a_repository_on_the_hub_is_fetched_once_it_is_known_to_be_a_pair(trained, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "trl_gist.models.loading.hf_hub_download", lambda *args, **kwargs: asked.append((args, kwargs))
    )
    monkeypatch.setattr("trl_gist.models.loading.snapshot_download", lambda *args, **kwargs: trained.directory)
    loaded = GistCompactor.from_pretrained("someone/some-pair", device="cpu", revision="v1")
    assert loaded.pair.context_length == CONTEXT_LENGTH
    assert asked == [(("someone/some-pair", "gist_config.json"), {"revision": "v1"})]


@pytest.mark.parametrize("name", ["someone/not-there", "./not/a/folder", "/not/there"])
def test_neither_a_folder_nor_a_repository(name):
    with pytest.raises(ValueError, match=f"{name} is neither a folder nor a repository on the Hub in reach"):
        GistCompactor.from_pretrained(name)


def test_a_folder_that_holds_no_pair(checkpoint):
    with pytest.raises(ValueError, match="holds no gist pair: gist_config.json is missing"):
        GistCompactor.from_pretrained(checkpoint)


def test_a_pair_without_its_generator(pair_dir):
    shutil.rmtree(pair_dir / "generator")
    with pytest.raises(ValueError, match="The pair lacks its generator: .*generator holds neither config.json nor"):
        GistCompactor.from_pretrained(pair_dir)


def test_an_adapter_whose_base_has_moved(trained, pair_dir):
    if trained.kind == "full":
        return
    path = pair_dir / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "/moved/base"}))
    with pytest.raises(ValueError, match="/moved/base, the base model of the adapter in .*, could not be loaded"):
        GistCompactor.from_pretrained(pair_dir)
