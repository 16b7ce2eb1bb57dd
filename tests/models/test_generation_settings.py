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


"""Which settings of generation reach which model: what `trl_gist.models.generation_settings` says."""

import copy
import json
import re
from contextlib import contextmanager

import pytest
import torch
from tiny import make_model, make_tokenizer
from tiny_pairs import in_eval, make_adapter_pair, make_pair
from transformers import GenerationConfig

from trl_gist import GistCompactor, GistConfig
from trl_gist.inference.certify import draw_continuations, full_context_reader
from trl_gist.inference.search import search_gist
from trl_gist.models.generation import generate
from trl_gist.models.generation_settings import PlainGenerationConfig
from trl_gist.models.roles import base_of
from trl_gist.pair import PAIR_CONFIG_NAME, PairConfig
from trl_gist.prompts import SUMMARIZER_PROMPT, GistPrompts
from trl_gist.trainer.run_log import RunLog


MANY = list(range(5, 200))
# A value of each field that a checkpoint may declare. Those that bend what plain `generate` writes, or stop it, are BENDING
BENDING = {
    "max_time": 0.0,
    "stop_strings": ["e", "a", "o", " "],
    "min_length": 500,
    "min_new_tokens": 12,
    "num_beams": 3,
    "temperature": 5.0,
    "top_k": 1,
    "top_p": 0.01,
    "min_p": 0.9,
    "top_h": 0.01,
    "typical_p": 0.01,
    "epsilon_cutoff": 0.9,
    "eta_cutoff": 0.9,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[token] for token in MANY],
    "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": (1, 9.0),
    "suppress_tokens": MANY,
    "begin_suppress_tokens": MANY,
    "sequence_bias": [[[9], 50.0]],
    "guidance_scale": 4.0,
    "watermarking_config": {"bias": 60.0},
    "use_mtp": True,
    "num_return_sequences": 2,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "constraints": [1],
    "force_words_ids": [[9]],
    "encoder_repetition_penalty": 9.0,
    "encoder_no_repeat_ngram_size": 1,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "cache_implementation": "nonesuch",
    "token_healing": True,
    "is_assistant": True,
    "compile_config": {},
    "do_sample": True,
    "return_dict_in_generate": True,
}
HARMLESS = {
    "forced_bos_token_id": 7,
    "num_beam_groups": 2,
    "output_attentions": True,
    "max_length": 3,
    "max_new_tokens": 2,
    "early_stopping": True,
    "use_cache": False,
    "cache_config": {"backend": "nonesuch"},
    "max_cache_len": 2,
    "length_penalty": 4.0,
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "pad_token_id": 9,
    "bos_token_id": 9,
    "decoder_start_token_id": 9,
    "num_assistant_tokens": 2,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.9,
    "max_matching_ngram_size": 2,
    "assistant_lookbehind": 2,
    "target_lookbehind": 2,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "nonesuch",
    "disable_compile": False,
    "continuous_batching_config": {},
    "low_memory": True,
    "diversity_penalty": 5.0,
    "prefill_chunk_size": 2,
    "_from_model_config": True,
    "transformers_version": "4.0.0",
}
NAMES = set(vars(GenerationConfig())) - {"eos_token_id"}  # which every checkpoint decides for itself
CONTEXT = list(range(40, 70))
ENDS = [2, *range(300, 350)]  # so many that a least length would show


def test_the_table_has_every_field_of_a_generation_config():
    assert BENDING.keys() | HARMLESS.keys() == NAMES and not BENDING.keys() & HARMLESS.keys()


@contextmanager
def declared(models, values):
    """The same models, of checkpoints whose `generation_config` sets these."""
    bases = [base_of(model) for model in models]
    kept = [base.generation_config for base in bases]
    for base in bases:
        base.generation_config = copy.deepcopy(base.generation_config)
        for name, value in values.items():
            setattr(base.generation_config, name, value)
    yield
    for base, config in zip(bases, kept, strict=True):
        base.generation_config = config


def written_whatever_is_declared(models, write):
    """Asserts that no field, and not all of the bending ones together, change what is written; returns it."""
    expected = write()
    for name, value in (BENDING | HARMLESS).items():
        with declared(models, {name: value}):
            assert write() == expected, name
    with declared(models, {**BENDING, "an_entry_of_its_own": 1}):
        assert write() == expected
    return expected


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
def test_plain_generate_is_bent_by_the_table(tokenizer):
    """So that the tests below would see it."""
    model = in_eval(make_model(tokenizer, tie_word_embeddings=False))
    ids = torch.tensor([CONTEXT])

    def write(do_sample, ends):
        torch.manual_seed(0)
        config = GenerationConfig(max_new_tokens=8, do_sample=do_sample, eos_token_id=ends)
        try:
            return str(model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config))
        except Exception as error:  # each setting has its own, as that of a repository that is out of reach
            return repr(error)

    def texts():
        return [write(do_sample, ends) for do_sample in (None, True) for ends in ([2], list(range(5, 400)))]

    plain = texts()
    for name, value in BENDING.items():
        with declared([model], {name: value}):
            assert texts() != plain, name


@pytest.fixture
def sampling_trainer(make_trainer, tokenizer, documents):
    model = make_model(tokenizer, tie_word_embeddings=False)
    model.generation_config.eos_token_id = ENDS
    return make_trainer(model, processing_class=tokenizer, eval_dataset=documents.take(4), args={"temperature": 0.9})


@pytest.mark.parametrize("training", [True, False], ids=["sampled", "greedy"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "padded"])
def test_gists_of_training_are_the_same_whatever_the_checkpoint_declares(sampling_trainer, shared, training):
    trainer = sampling_trainer
    trainer.shares_prefix = shared
    trainer.model.train(training)
    prompts = [prompt for prompt in (CONTEXT, CONTEXT[5:]) for _ in range(2)]

    def sample():
        torch.manual_seed(0)
        return trainer.sample(prompts)[0]

    gists = written_whatever_is_declared([trainer.model], sample)
    assert (gists[0] == gists[1]) != training


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "padded"])
def test_gists_of_the_log_are_the_same_whatever_the_checkpoint_declares(sampling_trainer, shared):
    sampling_trainer.shares_prefix = shared
    (log,) = (call for call in sampling_trainer.callback_handler.callbacks if isinstance(call, RunLog))
    windows = list(sampling_trainer.eval_dataset)[:2]
    expected = log._greedy_gists(windows)
    with declared([sampling_trainer.model], BENDING):
        assert log._greedy_gists(windows) == expected


@pytest.fixture
def pair(tokenizer):
    pair = make_adapter_pair(tokenizer)
    for model in (pair.summarizer, base_of(pair.generator)):
        model.generation_config.eos_token_id = ENDS
    return pair


@pytest.mark.parametrize("do_sample", [True, False], ids=["sampled", "greedy"])
def test_a_pair_writes_the_same_whatever_its_checkpoints_declare(pair, do_sample):
    def write():
        torch.manual_seed(0)
        gist = pair.compress(CONTEXT, budget=6, do_sample=do_sample)
        return gist.token_ids, pair.continue_from(gist, CONTEXT[:5], 6, do_sample).token_ids

    def write_session():
        session = pair.session(window=60)
        session.append(CONTEXT * 2)
        return session.gist_ids, session.generate(6, do_sample).token_ids

    models = [pair.summarizer, pair.generator]
    written_whatever_is_declared(models, write)
    torch.manual_seed(0)
    expected = write_session()
    with declared(models, BENDING):
        torch.manual_seed(0)
        assert write_session() == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("do_sample", [True, False], ids=["sampled", "greedy"])
def test_logits_that_are_not_numbers_are_an_error_and_no_text(pair, value, do_sample):
    def break_one(head, inputs, logits_NTV):
        logits_NTV[..., 7] = value

    for model, write in (
        (pair.summarizer, lambda: pair.compress(CONTEXT, budget=6, do_sample=do_sample)),
        (pair.generator, lambda: pair.continue_from("The pump", CONTEXT[:5], 6, do_sample)),
    ):
        hook = model.get_output_embeddings().register_forward_hook(break_one)
        with pytest.raises(FloatingPointError, match="logits are not numbers"):
            write()
        hook.remove()


def test_certificates_and_searches_are_the_same_whatever_the_teacher_declares(pair):
    reader = full_context_reader(pair)
    assert reader.name == "teacher"
    prompt = reader.prompt(CONTEXT, CONTEXT[-8:])

    def draws():
        return draw_continuations(reader.model, pair.tokenizer, prompt, 3, 6, seed=0)[0]

    drawn = written_whatever_is_declared([reader.model], draws)
    assert len({tuple(ids) for ids in drawn}) > 1
    plain = pair.compress(CONTEXT, 6, certify=True), search_gist(pair, CONTEXT, CONTEXT[-8:], CONTEXT[:6])
    with declared([reader.model, pair.summarizer, pair.generator], BENDING):
        assert (
            pair.compress(CONTEXT, 6, certify=True),
            search_gist(pair, CONTEXT, CONTEXT[-8:], CONTEXT[:6]),
        ) == plain


def test_every_end_of_sequence_token_of_a_checkpoint_ends_a_gist(make_trainer, tokenizer):
    model = make_model(tokenizer, tie_word_embeddings=False)
    model.generation_config.eos_token_id = list(range(100, 400))
    trainer = make_trainer(model, processing_class=tokenizer)
    for shared in (True, False):
        trainer.shares_prefix = shared
        for gist in trainer.sample([CONTEXT] * 8)[0]:
            assert len(gist) == 6 or gist[-1] >= 100
            assert all(token < 100 for token in gist[:-1])


def test_a_checkpoint_on_disk_trains_and_keeps_its_file(make_trainer, tokenizer, tmp_path):
    """A run of a checkpoint that declares much is, to the last bit, the run of one that declares nothing."""
    names = (
        "min_p",
        "typical_p",
        "suppress_tokens",
        "bad_words_ids",
        "no_repeat_ngram_size",
        "min_new_tokens",
        "top_k",
    )
    weights = []
    for values in ({}, {"do_sample": True, **{name: BENDING[name] for name in names}}):
        path = tmp_path / f"checkpoint-{len(values)}"
        model = make_model(tokenizer, tie_word_embeddings=False)
        model.generation_config.update(**values)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        trainer = make_trainer(str(path), args={"max_steps": 1, "output_dir": str(tmp_path / f"run-{len(values)}")})
        trainer.train()
        trainer.save_model()
        weights.append(trainer.model.state_dict())
        saved = json.loads((tmp_path / f"run-{len(values)}" / "generation_config.json").read_text())
        assert {name: saved.get(name) for name in values} == values
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# ---- What the user asks of G ----


def test_what_the_caller_asks_of_the_generator_is_honoured(pair):
    plain = pair.continue_text(CONTEXT, 8)
    assert pair.continue_text(CONTEXT, 8, do_sample=True, top_k=1).token_ids == plain.token_ids
    first = plain.token_ids[0]
    assert first not in pair.continue_text(CONTEXT, 8, suppress_tokens=[first]).token_ids
    (letter,) = pair.tokenizer("e")["input_ids"]
    others = [token for token in range(len(pair.tokenizer)) if token != letter]
    assert pair.continue_text(CONTEXT, 4, suppress_tokens=others).token_ids == [letter] * 4
    assert pair.continue_text(CONTEXT, 4, suppress_tokens=others, stop_strings=["ee"]).token_ids == [letter] * 2


@pytest.mark.parametrize("name", ["temprature", "max_length", "num_return_sequences", "return_dict_in_generate"])
def test_what_no_continuation_can_honour_is_refused(pair, name):
    with pytest.raises(ValueError, match=f"`{name}` is no setting of how the generator writes"):
        pair.continue_text(CONTEXT, 4, **{name: 2})


def test_a_config_stays_plain_when_generate_copies_it(tokenizer):
    """`generate` fills in a copy."""
    seen = []
    model = in_eval(make_model(tokenizer))
    prepare = model._prepare_generation_config
    model._prepare_generation_config = lambda *args, **kwargs: seen.append(prepare(*args, **kwargs)) or seen[-1]
    generate(model, tokenizer, [CONTEXT], 2)
    assert type(seen[0][0]) is PlainGenerationConfig


# ---- What GistConfig refuses ----


@pytest.mark.parametrize("name", sorted({*NAMES, "eos_token_id", "n", "max_tokens", "logit_bias"}))
def test_generation_kwargs_cannot_bend_what_is_sampled(make_args, name):
    with pytest.raises(ValueError, match=f"`generation_kwargs` must not set `{name}`, got"):
        make_args(generation_kwargs={name: (BENDING | HARMLESS).get(name, 3)})


def test_generation_kwargs_say_which_field_to_set(make_args):
    for name, own in (("max_new_tokens", "max_completion_length"), ("n", "num_generations")):
        with pytest.raises(ValueError, match=f"Set `{own}` in its place"):
            make_args(generation_kwargs={name: 3})
    assert make_args(generation_kwargs={}).generation_kwargs == {}


def test_vllm_is_given_what_leaves_the_distribution_as_it_is(make_args):
    assert make_args(use_vllm=True, generation_kwargs={"seed": 3}).generation_kwargs == {"seed": 3}
    for name in ("temperature", "top_p", "stop", "min_tokens", "logit_bias", "structured_outputs", "bad_words"):
        with pytest.raises(ValueError, match=f"`generation_kwargs` must not set `{name}`"):
            make_args(use_vllm=True, generation_kwargs={name: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("top_p", 0.9), ("top_k", 50), ("top_k", -1), ("top_k", None), ("min_p", 0.1), ("repetition_penalty", 1.1)],
        *[("vllm_structured_outputs_regex", "a*"), ("cache_implementation", "quantized"), ("temperature", 0.0)],
    ],
)
def test_settings_that_training_does_not_account_for_are_refused(make_args, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must (not )?be .*{re.escape(str(value))}"):
        make_args(**{name: value})


def test_neutral_settings_are_not_refused(make_args):
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "temperature": 0.5}
    args = make_args(**neutral)
    assert {name: getattr(args, name) for name in neutral} == neutral


@pytest.mark.parametrize("name", ["use_transformers_continuous_batching", "use_transformers_paged"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_continuous_batching_is_refused_on_a_cpu(make_args, name):
    with pytest.raises(ValueError, match="on an accelerator only, and this run is on the CPU. Leave it out"):
        make_args(**{name: True})


# ---- What the chat template is given ----

THINKING = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


@pytest.fixture
def thinker():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("{% endif %}", THINKING + "{% endif %}")
    return tokenizer


def test_chat_template_kwargs_reach_the_summarizers_prompt(thinker):
    plain = GistPrompts.from_tokenizer(thinker, SUMMARIZER_PROMPT)
    silent = GistPrompts.from_tokenizer(thinker, SUMMARIZER_PROMPT, chat_template_kwargs={"enable_thinking": False})
    ids = silent.summarizer(CONTEXT)
    assert thinker.decode(ids) == thinker.decode(plain.summarizer(CONTEXT)) + "<think></think>"
    assert silent.generator(CONTEXT, [5]) == plain.generator(CONTEXT, [5])


def test_a_pair_keeps_its_chat_template_kwargs(make_trainer, thinker, lora, tmp_path):
    thinker.save_pretrained(tmp_path / "checkpoint")
    make_model(thinker).save_pretrained(tmp_path / "checkpoint")
    trainer = make_trainer(
        str(tmp_path / "checkpoint"),
        peft_config=lora,
        args={"chat_template_kwargs": {"enable_thinking": False}, "max_steps": 1},
    )
    read = []
    tokenize = trainer.rollout.prompt_ids
    trainer.rollout.prompt_ids = lambda rows: read.append(tokenize(rows)) or read[-1]
    trainer.train()
    assert all(thinker.decode(ids).endswith("<think></think>") for ids in read[0])
    trainer.save_model()
    compactor = GistCompactor.from_pretrained(trainer.args.output_dir, device="cpu")
    assert compactor.pair.chat_template_kwargs == {"enable_thinking": False}
    assert compactor.prompts.summarizer(CONTEXT) == trainer.prompts.summarizer(CONTEXT)
    compactor.session(window=60).append(CONTEXT)


def test_a_pair_without_them_is_saved_as_before(tmp_path):
    pair = make_pair()
    pair.save(tmp_path)
    assert "chat_template_kwargs" not in json.loads((tmp_path / PAIR_CONFIG_NAME).read_text())
    assert PairConfig.load(tmp_path) == pair and pair.chat_template_kwargs == {}


def test_a_session_goes_on_only_with_the_same_prompt(thinker):
    models = in_eval(make_model(thinker, 0)), in_eval(make_model(thinker, 1))
    prints = {
        GistCompactor(*models, thinker, make_pair(**values)).fingerprint
        for values in ({}, {"chat_template_kwargs": {}}, {"chat_template_kwargs": {"enable_thinking": False}})
    }
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("template", "kwargs", "message"),
    [
        (True, {"enable_thinkng": False}, "`enable_thinkng`, which the tokenizer's chat template does not mention"),
        (True, {"thinking": False}, "`thinking`, which the tokenizer's chat template does not mention"),
        (True, {"content": "x"}, "`content`, which the tokenizer's chat template does not mention"),
        (False, {"enable_thinking": False}, "`enable_thinking`, which the tokenizer's chat template is not there"),
    ],
)
def test_what_the_template_does_not_take_is_refused(make_trainer, template, kwargs, message):
    tokenizer = make_tokenizer(chat_template=template)
    with pytest.raises(ValueError, match=message):
        make_trainer(make_model(tokenizer), processing_class=tokenizer, args={"chat_template_kwargs": kwargs})


@pytest.mark.parametrize("name", ["tokenize", "add_generation_prompt", "chat_template", "continue_final_message"])
def test_arguments_of_the_rendering_itself_are_refused(make_args, name):
    with pytest.raises(ValueError, match=f"`chat_template_kwargs` must not set `{name}`"):
        make_args(chat_template_kwargs={name: True})


@pytest.mark.parametrize("value", [object(), ("a",), {1: "a"}])
def test_what_a_pair_cannot_save_is_refused(make_args, value):
    with pytest.raises(ValueError, match="saved with the pair as JSON"):
        make_args(chat_template_kwargs={"enable_thinking": value})


def test_the_command_lines_json_is_read(tmp_path):
    args = GistConfig(str(tmp_path), chat_template_kwargs='{"enable_thinking": false}', bf16=False, use_cpu=True)
    assert args.chat_template_kwargs == {"enable_thinking": False}
