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

"""Prompts are assembled from token ids; text is never re-tokenised across a seam."""

import dataclasses
import json
from itertools import permutations
from pathlib import Path

import pytest
from tiny import PARAGRAPH, make_tokenizer
from tiny_pairs import make_pair

from trl_gist import GistCompactor, GistTrainer
from trl_gist.pair import PAIR_CONFIG_NAME, PairConfig
from trl_gist.prompts import SUMMARIZER_PROMPT, GistPrompts, gist_from_completion


PAD, BOS, EOS, IM_START, IM_END = range(5)
TEMPLATE = "Shorten this: {context} Short:"


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(params=[(False, True), (False, False), (True, True), (True, False)], ids=str)
def any_tokenizer(request):
    bos, chat_template = request.param
    return make_tokenizer(bos=bos, chat_template=chat_template)


def test_context_reaches_summarizer_and_teacher_as_exactly_its_tokens(any_tokenizer):
    # Halves of words: their text alone, or beside the prompt's, would be tokenised otherwise
    ids = encode(any_tokenizer, PARAGRAPH)
    prompts = GistPrompts.from_tokenizer(any_tokenizer, SUMMARIZER_PROMPT)
    for start in range(20):
        context = ids[start : start + 10]
        prompt = prompts.summarizer(context)
        at = prompts.summarizer([10**6]).index(10**6)
        assert prompt[at : at + 10] == context
        assert len(prompt) == prompts.summarizer_overhead(48) + 10
        assert prompts.teacher(context, context[-4:])[-10:] == context


def test_a_gist_is_not_retokenised_even_where_its_text_has_a_shorter_spelling(tokenizer):
    prompts = GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT)
    letters = tokenizer.convert_tokens_to_ids(list("cholera"))
    prompt = prompts.generator(letters, [50])
    assert prompt[len(prompts.before_gist) :][:7] == letters
    assert len(encode(tokenizer, tokenizer.decode(prompt))) < len(prompt), "the text alone would have been shorter"


def test_generator_prompt_ends_with_the_last_tokens_and_lets_the_target_follow(any_tokenizer):
    prompts = GistPrompts.from_tokenizer(any_tokenizer, SUMMARIZER_PROMPT)
    bos = any_tokenizer("")["input_ids"]
    expected = [
        *bos,
        *encode(any_tokenizer, "GIST:"),
        *(40, 41),
        *encode(any_tokenizer, "\nLAST K TOKENS:"),
        *(50, 51, 52),
    ]
    assert prompts.generator([40, 41], [50, 51, 52]) == expected
    assert prompts.generator_overhead == len(expected) - 5


def test_empty_gist_gives_the_null_prompt_of_the_same_form(any_tokenizer):
    prompts = GistPrompts.from_tokenizer(any_tokenizer, SUMMARIZER_PROMPT)
    with_gist = prompts.generator([40], [50])
    null = prompts.generator([], [50])
    assert [token for token in with_gist if token != 40] == null


def test_special_tokens_in_a_gist_never_reach_the_generator(any_tokenizer):
    prompts = GistPrompts.from_tokenizer(any_tokenizer, SUMMARIZER_PROMPT)
    gist = [PAD, 40, BOS, 41, EOS, IM_START, 42, IM_END]
    assert prompts.generator(gist, [50]) == prompts.generator([40, 41, 42], [50])


def test_special_tokens_in_the_last_tokens_are_the_documents_own_and_stay(tokenizer):
    prompts = GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT)
    assert prompts.generator([], [50, EOS, 51])[-3 - len(prompts.before_target) :][:3] == [50, EOS, 51]


def test_bos_is_put_where_the_tokenizer_would_put_it_and_only_once():
    for chat_template in (True, False):
        tokenizer = make_tokenizer(bos=True, chat_template=chat_template)
        prompts = GistPrompts.from_tokenizer(tokenizer, TEMPLATE)
        assert prompts.plain([40])[0] == BOS and prompts.generator([40], [50])[0] == BOS
        for prompt in (prompts.plain([40]), prompts.generator([40], [50])):
            assert prompt.count(BOS) == 1
        # A chat template writes its own special tokens; this one starts with <|im_start|>
        assert prompts.summarizer([40])[0] == (IM_START if chat_template else BOS)
        assert prompts.summarizer([40]).count(BOS) == (0 if chat_template else 1)
    without = GistPrompts.from_tokenizer(make_tokenizer(), TEMPLATE)
    assert without.bos == () and without.plain([40]) == [40]


def test_a_bos_written_by_the_chat_template_is_not_doubled():
    tokenizer = make_tokenizer(bos=True)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    prompt = GistPrompts.from_tokenizer(tokenizer, TEMPLATE).summarizer([40])
    assert prompt[:2] == [BOS, IM_START] and prompt.count(BOS) == 1


def test_chat_template_wraps_the_prompt_as_one_user_message(tokenizer):
    prompts = GistPrompts.from_tokenizer(tokenizer, TEMPLATE)
    assert prompts.summarizer([40, 41]) == [
        *encode(tokenizer, "<|im_start|>user\nShorten this: "),
        *(40, 41),
        *encode(tokenizer, " Short:<|im_end|>\n<|im_start|>assistant\n"),
    ]


def test_without_a_chat_template_the_prompt_is_plain_text():
    tokenizer = make_tokenizer(chat_template=False)
    prompts = GistPrompts.from_tokenizer(tokenizer, TEMPLATE)
    expected = [*encode(tokenizer, "Shorten this: "), 40, 41, *encode(tokenizer, " Short:")]
    assert prompts.summarizer([40, 41]) == expected


@pytest.mark.parametrize("chat_template", [True, False])
def test_braces_beside_the_placeholder_are_text(chat_template):
    tokenizer = make_tokenizer(chat_template=chat_template)
    prompts = GistPrompts.from_tokenizer(tokenizer, "As {json}: {context} and {{more}}")
    text = tokenizer.decode(prompts.summarizer([]))
    assert "As {json}: " in text and " and {{more}}" in text


# ---- The optional placeholders: L and the budget ----

CONTEXT, LAST_K = [40, 41, 42], [50, 51]


@pytest.mark.parametrize("order", permutations(["{context}", "{last_k}", "{budget}"]), ids=" ".join)
def test_placeholders_may_stand_in_any_order(any_tokenizer, order):
    prompt = f"First {order[0]} then {order[1]} and {order[2]} end"
    prompts = GistPrompts.from_tokenizer(any_tokenizer, prompt)
    # The text between two runs of ids is tokenised in one piece, the number within it
    if any_tokenizer.chat_template:
        expected, text = [], f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    else:
        expected, text = any_tokenizer("")["input_ids"], prompt
    text = text.replace("{budget}", "17")
    for _ in range(2):
        name = min(("{context}", "{last_k}"), key=lambda name: text.find(name) if name in text else len(text))
        before, text = text.split(name)
        expected += [*encode(any_tokenizer, before), *(CONTEXT if name == "{context}" else LAST_K)]
    assert prompts.summarizer(CONTEXT, LAST_K, budget=17) == expected + encode(any_tokenizer, text)


def test_a_budget_is_a_word_of_its_sentence_not_a_piece_beside_it(tokenizer):
    prompts = GistPrompts.from_tokenizer(tokenizer, "{context} {budget} miles")
    ids = encode(tokenizer, " 82 miles<|im_end|>\n<|im_start|>assistant\n")
    pieces = encode(tokenizer, " ") + encode(tokenizer, "82") + encode(tokenizer, " miles")
    assert ids[: len(pieces)] != pieces, "a tokenizer that makes the same of both would prove nothing"
    assert prompts.summarizer(CONTEXT, budget=82)[-len(ids) :] == ids


def test_each_budget_is_tokenised_once():
    calls, tokenizer = [], make_tokenizer(chat_template=False)

    class Counting:
        chat_template, all_special_ids, is_fast = None, tokenizer.all_special_ids, True

        def __call__(self, text, **kwargs):
            calls.append(text)
            return tokenizer(text, **kwargs)

    prompts = GistPrompts.from_tokenizer(Counting(), "{context} in {budget} words")
    calls.clear()
    for budget in (12, 24, 12, 24, 12):
        prompts.summarizer(CONTEXT, budget=budget)
    assert [text for text in calls if text] == [" in 12 words", " in 24 words"]


def test_what_the_prompt_has_no_place_for_is_left_out(tokenizer):
    prompts = GistPrompts.from_tokenizer(tokenizer, TEMPLATE)
    assert prompts.summarizer(CONTEXT, LAST_K, budget=9) == prompts.summarizer(CONTEXT)
    assert (prompts.sees_last_k, prompts.states_budget) == (False, False)


@pytest.mark.parametrize(("given", "missing"), [({"budget": 3}, "last_k"), ({"last_k_ids": LAST_K}, "budget")])
def test_what_the_prompt_has_a_place_for_must_be_given(tokenizer, given, missing):
    prompts = GistPrompts.from_tokenizer(tokenizer, "{last_k} {context} {budget}")
    assert (prompts.sees_last_k, prompts.states_budget) == (True, True)
    with pytest.raises(ValueError, match=f"needs `{missing}"):
        prompts.summarizer(CONTEXT, **given)


def test_the_overhead_covers_the_budget_that_takes_most_tokens(any_tokenizer):
    prompts = GistPrompts.from_tokenizer(any_tokenizer, "In {budget}: {context} {last_k}")
    lengths = [len(prompts.summarizer(CONTEXT, LAST_K, budget)) - 5 for budget in range(1, 121)]
    assert [prompts.summarizer_overhead(most) for most in (1, 9, 120)] == [max(lengths[:most]) for most in (1, 9, 120)]
    assert lengths[0] < prompts.summarizer_overhead(120)


def test_the_teacher_reads_what_comes_before_the_target_once(any_tokenizer):
    prompts = GistPrompts.from_tokenizer(any_tokenizer, TEMPLATE)
    bos = any_tokenizer("")["input_ids"]
    for last_k, expected in (
        ([42], CONTEXT),
        ([41, 42], CONTEXT),
        (CONTEXT, CONTEXT),
        ([50, 51], [*CONTEXT, 50, 51]),
        ([41], [*CONTEXT, 41]),
        ([39, *CONTEXT], [*CONTEXT, 39, *CONTEXT]),
        ([], CONTEXT),
    ):
        assert prompts.teacher(CONTEXT, last_k) == [*bos, *expected]


def test_gist_ends_before_the_first_end_of_sequence_token():
    assert gist_from_completion([40, 41, EOS], [EOS]) == [40, 41]
    assert gist_from_completion([40, IM_END, 41, EOS], [EOS, IM_END]) == [40]
    assert gist_from_completion([EOS], [EOS]) == []
    assert gist_from_completion([40, 41], [EOS]) == [40, 41]
    assert gist_from_completion([PAD, 40], [EOS]) == [PAD, 40]


def test_what_the_generator_sees_anyway_can_be_left_out_of_the_context(tokenizer):
    prompts = GistPrompts.from_tokenizer(tokenizer, "Shorten {before_last_k} now")
    whole = GistPrompts.from_tokenizer(tokenizer, "Shorten {context} now")
    assert prompts.summarizer([5, 6, 7, 8], [7, 8]) == whole.summarizer([5, 6])
    assert prompts.summarizer([5, 6, 7, 8], [9]) == whole.summarizer([5, 6, 7, 8])  # a question hides nothing
    assert prompts.needs_last_k and not prompts.sees_last_k and not whole.needs_last_k
    with pytest.raises(ValueError, match="needs `last_k_ids`"):
        prompts.summarizer([5, 6, 7, 8])


def test_the_context_without_its_end_and_the_end_can_stand_apart(tokenizer):
    prompts = GistPrompts.from_tokenizer(tokenizer, "{before_last_k} then {last_k}")
    ids = prompts.summarizer([5, 6, 7, 8], [7, 8])
    apart = ids.index(7)
    assert ids[apart : apart + 2] == [7, 8] and ids[ids.index(5) : ids.index(5) + 2] == [5, 6]
    assert tokenizer.decode(ids[ids.index(5) + 2 : apart]) == " then "


def test_the_tail_is_what_a_gist_could_copy(tokenizer):
    prompts = GistPrompts.from_tokenizer(tokenizer, "{before_last_k} tail {tail}", tail_length=2)
    plain = GistPrompts.from_tokenizer(tokenizer, "{context} tail {last_k}")
    assert prompts.summarizer([5, 6, 7, 8, 9], [9]) == plain.summarizer([5, 6, 7, 8], [7, 8])
    assert prompts.summarizer([5, 6, 7, 8, 9], [9], budget=3) == plain.summarizer([5, 6, 7, 8], [6, 7, 8])
    assert prompts.summarizer([5, 9], [9]) == plain.summarizer([5], [5])
    longest = len(prompts.summarizer([5, 6, 7, 8, 9], [9])) - 4
    assert prompts.summarizer_overhead(2) == longest


def test_the_generators_prompt_is_the_users(any_tokenizer):
    prompts = GistPrompts.from_tokenizer(any_tokenizer, TEMPLATE, generator_prompt="Notes:{gist}\n{last_k}")
    notes, line_end = (any_tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Notes:", "\n"))
    assert prompts.generator([40, 41], [50]) == [*prompts.bos, *notes, 40, 41, *line_end, 50]


def test_a_pair_keeps_the_prompt_its_generator_was_trained_with(make_trainer, lora):
    trainer = make_trainer(peft_config=lora, args={"generator_prompt": "Notes:{gist}\n{last_k}", "max_steps": 1})
    trainer.train()
    trainer.save_model()
    compactor = GistCompactor.from_pretrained(trainer.args.output_dir, device="cpu")
    assert compactor.prompts.generator([40], [50]) == trainer.prompts.generator([40], [50])
    assert compactor.prompts.generator([40], [50])[-1] == 50


DATED = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{{ strftime_now('%H:%M:%S.%f') }}<think>\n"


def test_a_run_and_its_pair_keep_the_prompt_that_was_rendered_when_training_started(
    make_args, checkpoint, documents, lora, caplog
):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = DATED  # a template that names the moment

    def trainer():
        args = make_args(max_steps=2, save_strategy="steps", save_steps=1)
        return GistTrainer(checkpoint, args, train_dataset=documents, processing_class=tokenizer, peft_config=lora)

    first = trainer()
    assert "summarizer's prompt ends with <think>" in caplog.text and "set `chat_template_kwargs`" in caplog.text
    asked = first.prompts.summarizer([40, 41, 42])
    first.train()
    first.save_model()
    pair = GistCompactor.from_pretrained(first.args.output_dir, device="cpu")
    assert pair.prompts.summarizer([40, 41, 42]) == asked
    pair.tokenizer.chat_template = "{{ messages[0].content }}"
    copy = GistCompactor(pair.summarizer, pair.generator, pair.tokenizer, pair.pair)
    assert copy.prompts.summarizer([40, 41, 42]) == asked
    again = trainer()
    assert again.prompts.summarizer([40, 41, 42]) != asked
    again.train(resume_from_checkpoint=str(Path(first.args.output_dir, "checkpoint-1")))
    assert again.prompts.summarizer([40, 41, 42]) == asked


def test_a_pair_of_before_prompts_were_kept_is_rendered_when_it_is_loaded(tokenizer, tmp_path):
    make_pair(summarizer_prompt=TEMPLATE).save(tmp_path)
    saved = json.loads((tmp_path / PAIR_CONFIG_NAME).read_text())
    assert "rendered_prompt" not in saved
    pair = PairConfig.load(tmp_path)
    assert pair.rendered_prompt == {}
    expected = GistPrompts.from_tokenizer(tokenizer, TEMPLATE).summarizer([40])
    assert GistPrompts.from_tokenizer(tokenizer, TEMPLATE, rendered=pair.rendered).summarizer([40]) == expected
    rendered = GistPrompts.from_tokenizer(tokenizer, "Other: {context}").rendered
    pair = make_pair(summarizer_prompt=TEMPLATE, rendered_prompt=rendered | {"of": [TEMPLATE, {}]})
    assert pair.rendered["parts"][1] == "context"
    # Of a prompt that is no longer the pair's, as where somebody has written another one into the file
    assert dataclasses.replace(pair, summarizer_prompt="{context} Gist:").rendered == {}
