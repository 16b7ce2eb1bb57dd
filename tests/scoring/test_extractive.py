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

"""The cold start: gists cut by a rule, and the loss under which S imitates them."""

import math
import re

import pytest
import torch
from checks import moved, snapshot
from datasets import Dataset
from tiny import make_model, make_tokenizer
from tokenizers import pre_tokenizers

from trl_gist.common.tokens import Spelled
from trl_gist.evaluation.compressors import SurprisingFacts
from trl_gist.scoring.extraction import (
    TokenRarity,
    answering_sentences,
    fact_list,
    kept_apart,
    keywords_and_tail,
    passage_and_tail,
    surprising_facts,
)
from trl_gist.trainer.advantages import best_of_group
from trl_gist.trainer.cold_start import ExtractiveSummarizer
from trl_gist.trainer.config_checks import EXTRACTIVE_RULES


CONTEXT = [10, 11, 12, 10, 13, 14, 15, 16]
WINDOW = {"context_ids": CONTEXT, "last_k_ids": [15, 16], "target_ids": [17]}


def test_the_tail_ends_where_the_last_k_tokens_begin():
    summarizer = ExtractiveSummarizer("tail")
    assert summarizer.gists(WINDOW, [3, 1]) == [[10, 13, 14], [14]]


def test_a_question_hides_nothing_of_its_passage():
    window = {**WINDOW, "last_k_ids": [20, 21]}
    assert ExtractiveSummarizer("tail").gists(window, [3]) == [[14, 15, 16]]


def test_keywords_are_the_rare_tokens_once_in_their_order(tokenizer):
    # 10 is in every context and 13, 14 in most; 11 and 12 only here
    scores = TokenRarity([[10, 13], [10, 14], [10, 13, 14]]).tf_idf(CONTEXT)
    assert keywords_and_tail(tokenizer, CONTEXT, scores, 2, share=1.0) == [1, 2]
    assert scores[1] == pytest.approx(math.log(4 / 1)) and scores[4] == pytest.approx(math.log(4 / 3))
    assert scores[0] == pytest.approx(2 * math.log(4 / 4))  # it comes twice, and everywhere


def test_a_group_ranges_from_all_tail_to_half_keywords(tokenizer):
    summarizer = ExtractiveSummarizer("mixed", [[10, 13], [10, 14], [10, 13, 14]], tokenizer=tokenizer)
    gists = summarizer.gists(WINDOW, [4, 4, 4])
    assert gists[0] == [12, 10, 13, 14]
    assert gists[2] == [11, 12, 13, 14]
    assert [len(gist) for gist in gists] == [4, 4, 4]


def test_passages_are_by_turns_keywords_the_beginning_and_what_is_nearest_to_l(tokenizer):
    """The middle of the context comes again in L; of the keywords, 40 is the rarest, as it comes twice."""
    context_ids, last_k_ids = [40, *range(41, 55), 40, *range(56, 60)], [50, 51, 35]
    summarizer = ExtractiveSummarizer("passages", [[40], [41], [42]], tokenizer=tokenizer)
    largest = {}
    for first in (100, 101, 102):  # the context says whose turn it is
        window = {"context_ids": [first, *context_ids, *last_k_ids], "last_k_ids": last_k_ids}
        gists = summarizer.gists(window, [8, 8, 8])
        assert gists[0] == context_ids[-8:]
        assert [len(gist) for gist in gists] == [8, 8, 8]
        assert gists[2][4:] == context_ids[-4:]
        largest[(2 + sum([first, *context_ids])) % 3] = (first, gists[2][:4])
    first, keywords = largest[0]
    assert keywords == [first, 40, 43, 44]
    first, beginning = largest[1]
    assert beginning == [first, 40, 41, 42]
    _, passage = largest[2]
    assert passage == [48, 49, 50, 51]


def test_a_passage_is_the_best_run_before_the_tail(tokenizer):
    def kept(scores, length):
        return passage_and_tail(tokenizer, CONTEXT[: len(scores)], scores, length, 0.5)

    # The tail is no part of the choice: [5, 9] would be the best run with it, [0, 9] ends in it
    assert kept([0, 1, 5, 5, 0, 5, 9, 9], 4) == [2, 3, 6, 7]
    assert kept([0, 1, 5, 5, 2, 9, 0, 9], 4) == [4, 5, 6, 7]
    assert kept([0.0] * 8, 4) == [0, 1, 6, 7]
    assert kept([1, 1, 1], 10) == [0, 1, 2]


def test_a_gist_is_no_longer_than_its_context(tokenizer):
    for rule in ("tail", "mixed", "passages"):
        summarizer = ExtractiveSummarizer(rule, [CONTEXT], tokenizer=tokenizer)
        assert all(len(gist) <= 6 for gist in summarizer.gists(WINDOW, [50, 50]))
        nothing_before_l = {"context_ids": [15, 16], "last_k_ids": [15, 16]}
        assert summarizer.gists(nothing_before_l, [5, 5]) == [[], []]


def test_facts_are_the_first_ones_or_some_in_their_order(tokenizer):
    ids = tokenizer("In 1854 the physician John Snow met Ada Lovelace in Soho, and in 1861 Joseph Bazalgette.")[
        "input_ids"
    ]
    special, listed = frozenset(tokenizer.all_special_ids), ["1854", "John Snow", "Ada Lovelace", "Soho", "1861"]
    summarizer = ExtractiveSummarizer("facts", unread_ids=special, tokenizer=tokenizer)
    window = {"context_ids": [*sorted(special), *ids], "last_k_ids": ids[-2:], "targets": [{"kind": "fact"}]}
    first, *others = summarizer.gists(window, [24] * 8)
    assert first == fact_list(tokenizer, ids, 24) and tokenizer.decode(first).startswith(" 1854, John Snow")
    assert len({tuple(gist) for gist in (first, *others)}) > 3 and others == summarizer.gists(window, [24] * 8)[1:]
    for gist in others:
        assert 0 < len(gist) <= 24 and not special & set(gist)
        facts = [fact.strip() for fact in tokenizer.decode(gist).split(",")][:-1]  # the last may be cut
        assert facts == [fact for fact in listed if fact in facts]


def test_surprising_facts_are_what_the_teacher_expects_least_of_facts_after_their_cue(tokenizer):
    """Against a forward a fact, in float64."""
    text = "In 1854 the physician John Snow met Ada Lovelace in Soho, and ada lovelace met John Snow in 1861, a cold year."
    ids, teacher = tokenizer(text)["input_ids"], make_model(tokenizer).double()
    surprise = {}
    for fact in (" 1854", " John Snow", " Ada Lovelace", " Soho", " 1861"):
        fact_ids = tokenizer(fact)["input_ids"]
        start = next(at for at in range(len(ids)) if ids[at : at + len(fact_ids)] == fact_ids)
        read = ids[max(0, start - 12) : start + len(fact_ids)]
        with torch.no_grad():
            logits = teacher(input_ids=torch.tensor([read])).logits[0].log_softmax(-1)
        for place in range(start, start + len(fact_ids)):
            at = place - start - len(fact_ids)
            surprise[place] = -logits[at - 1, ids[place]].item()
    most, special = sorted(sorted(surprise, key=surprise.get)[-6:]), frozenset(tokenizer.all_special_ids)
    others = [tokenizer("the physician met in, and in")["input_ids"]] * 3
    summarizer = ExtractiveSummarizer("surprising_facts", others, special, tokenizer, teacher)
    window = {"context_ids": [*sorted(special), *ids], "last_k_ids": ids[-2:], "targets": [{"kind": "fact"}]}
    compressor = SurprisingFacts(tokenizer, teacher, TokenRarity(others))
    assert summarizer.gists(window, [6] * 3) == [[ids[place] for place in most]] * 3
    assert compressor.compress([ids, ids], [6, 0]) == [[ids[place] for place in most], []]
    # With more room than facts, all of them and then what is rare elsewhere, each once and no punctuation
    room = len(surprise) + 2
    (gist,) = compressor.compress([ids], [room])
    beside = list(gist)
    for place in surprise:
        beside.remove(ids[place])
    assert len(gist) == room and len(set(beside)) == 2
    assert not set(tokenizer.decode(beside)) & set(",.") and not set(beside) & set(others[0])
    (every,) = compressor.compress([ids], [999])
    assert len(every) < len(ids) and [token for token in every if tokenizer.decode([token]).strip() == ","] == []
    (without,) = compressor.compress([tokenizer("he saw it there and then")["input_ids"]], [3])
    assert len(without) == 3


def test_recurring_facts_are_those_that_the_context_says_most_often(tokenizer):
    """
    On from an earlier gist: what it has is counted once, however often the text before said it; its first name is one too,
    and one that the text never said is dropped. Other words that are said most often fill the room that is left, and make
    none.
    """
    special = frozenset(tokenizer.all_special_ids)
    first, second = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (
            "Soon in Soho the king met John Snow, and John Snow met Ada Lovelace in 1854.",
            "The king met Joseph Bazalgette. Then Ada Lovelace met Joseph Bazalgette and Ada Lovelace again.",
        )
    )
    summarizer = ExtractiveSummarizer("recurring_facts", (), special, tokenizer)

    def facts(context_ids, length, **seen):
        window = {"context_ids": [*sorted(special), *context_ids], "last_k_ids": first[-2:], "targets": [], **seen}
        gists = summarizer.gists(window, [length] * 3)
        assert gists == gists[:1] * 3 and len(gists[0]) <= length and not special & set(gists[0])
        return [fact.strip() for fact in tokenizer.decode(gists[0]).split(";")]

    def tokens(text):
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert facts(first, 99, seen_ids=first) == ["Soho", "king", "met", "John Snow", "Ada Lovelace", "1854"]
    everything = tokens(" Soho; John Snow; Ada Lovelace; 1854")
    assert facts(first, everything, seen_ids=first) == ["Soho", "John Snow", "Ada Lovelace", "1854"]
    length = tokens(" John Snow; Ada Lovelace")
    assert facts(first, length - 1, seen_ids=first) == ["Soho", "met", "John Snow", "1854"]  # what fits whole
    earlier = tokenizer("Soho; John Snow; Karl Marx\n", add_special_tokens=False)["input_ids"]
    seen = {"seen_ids": first + second}
    every = ["Soho", "John Snow", "king", "met", "Joseph Bazalgette", "Ada Lovelace", "again"]
    assert facts(earlier + second, 99, **seen) == every
    assert facts(earlier + second, tokens(" Joseph Bazalgette; Ada Lovelace"), **seen) == [
        "Joseph Bazalgette",
        "Ada Lovelace",
    ]
    assert facts(tokenizer("and so on; it was", add_special_tokens=False)["input_ids"], 9) == [""]
    words = tokenizer("the tea was cold, and cold tea is not a good tea", add_special_tokens=False)["input_ids"]
    assert facts(words, tokens(" tea; cold")) == ["tea", "cold"]
    assert facts(words, 99) == ["tea", "cold", "good"]


def test_answers_are_the_sentences_that_hold_what_is_asked(tokenizer):
    """The last of those with most words of the cue; a word within a word is no answer, and what nobody asks is left out."""
    text = (
        "and the king met John Snow. The price of tea is 45. The price of salt is 45. Few met John Snowdon. "
        "The price of tea is 450.\n\nThe price of tea is 45 today. Tea is cheap, he said"
    )
    ids, special = tokenizer(text, add_special_tokens=False)["input_ids"], frozenset(tokenizer.all_special_ids)

    def target(cue, answer):
        cue_ids, target_ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (cue, answer))
        return {"kind": "question", "cue_ids": cue_ids, "target_ids": target_ids}

    def sentences(*targets, length=99, **seen):
        summarizer = ExtractiveSummarizer("answers", (), special, tokenizer)
        window = {"context_ids": [*special, *ids], "last_k_ids": ids[-2:], "targets": list(targets), **seen}
        gists = summarizer.gists(window, [length] * 3)
        assert gists == gists[:1] * 3
        return tokenizer.decode(gists[0]).strip()

    tea, snow = target("What is the price of tea? It is", " 45"), target("The king met", " John Snow")
    assert sentences(tea) == "The price of tea is 45 today."
    assert sentences(target("The price of salt is", " 45")) == "The price of salt is 45."
    both = sentences(tea, snow, tea)
    assert both == "and the king met John Snow.\nThe price of tea is 45 today."
    assert sentences(target("Who said that? ", "he said")) == "Tea is cheap, he said"
    assert sentences(target("The price of coal is", " 46")) == sentences() == ""
    cut = sentences(tea, snow, length=4)
    assert cut and "and the king met John Snow.".startswith(cut)
    ids = tokenizer(f"{both}\nThe price of tea is 46.", add_special_tokens=False)["input_ids"]
    tea = target("What is the price of tea? It is", " 46")
    assert sentences(tea, snow) == "and the king met John Snow.\nThe price of tea is 46.", "an old answer is dropped"
    coal = target("The price of coal is", " 46")
    assert sentences(coal) == "The price of tea is 46."
    seen = tokenizer(f"The price of coal is 46. {both}", add_special_tokens=False)["input_ids"]
    assert sentences(coal, seen_ids=seen) == "", "that of coal was lost, and another price is no answer"
    ids = tokenizer("当时没有人相信他。水泵在街上。", add_special_tokens=False)["input_ids"]
    found = sentences(target("谁", "人"), target("何", "水泵"))
    assert found == "当时没有人相信他。水泵在街上。", "side by side as they stood"


# ---- Numbers side by side ----

# Each of one digit, so that a number of two digits is none of the text
NUMBERS = "In 1,111 days 22 men sold 3.33 pumps (444–555) to cities 6.\n77 men bought 888"


@pytest.fixture(scope="module")
def of_digits():
    """A tokenizer to which each digit is a token, and so is the space before a number, as SmolLM2's."""
    tokenizer = make_tokenizer()
    steps = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps])
    return tokenizer


def signs_of(tokenizer, ids):
    spelled = Spelled(tokenizer, ids)
    return [spelled.text[start:end] for start, end in zip(spelled.starts, spelled.ends, strict=True)]


def mixed(text):
    """Its numbers that are made of several."""
    return [number for number in re.findall(r"\d[\d.,]*", text) if len({*number} - {*".,"}) > 1]


def test_digits_of_two_numbers_do_not_meet_and_no_gist_is_longer_for_it(of_digits):
    ids = of_digits(NUMBERS)["input_ids"]
    signs = signs_of(of_digits, ids)
    ranked = [place for place, sign in enumerate(signs) if re.fullmatch(r"[\d.,]", sign)]
    assert "".join(signs[place] for place in ranked) == "1,111223.334445556.77888"
    gists = [[ids[place] for place in kept_apart(of_digits, ids, ranked, n)] for n in range(40)]
    assert all(len(gist) <= n for n, gist in enumerate(gists))
    said = [of_digits.decode(gist) for gist in gists]
    assert said[39] == "1,111 22 3.33(444–555 6.\n77 888" and not any(map(mixed, said))
    # What has no room beside the space before it gives way to what needs none
    assert said[5:9] == ["1,111", "1,111.", "1,111 2", "1,111 22"]


def test_points_and_commas_of_other_numbers_part_none(of_digits):
    ids = of_digits("He paid 500631 for 1,000 pumps, and 2,000 or 2347.")["input_ids"]
    signs = signs_of(of_digits, ids)
    last = len(signs) - 1 - signs[::-1].index("2")
    commas = [place for place, sign in enumerate(signs) if sign == "," and signs[place + 1] == "0"]
    ranked = [*range(signs.index("5"), signs.index("5") + 6), *commas, *range(last, last + 4)]
    assert "".join(signs[place] for place in ranked) == "500631,,2347"
    assert of_digits.decode([ids[place] for place in kept_apart(of_digits, ids, ranked, 13)]) == "500631,, 2347"


def test_where_no_numbers_meet_a_gist_is_of_the_best_ranked(of_digits):
    ids = of_digits(NUMBERS)["input_ids"]
    words = [place for place, sign in enumerate(signs_of(of_digits, ids)) if not sign.isdecimal()]
    for ranked in (words, words[::-1], range(len(ids))):
        for n in range(len(ids)):
            assert kept_apart(of_digits, ids, ranked, n) == sorted(ranked[:n])


@pytest.fixture(scope="module")
def writers(of_digits):
    """Each rule's gist of so many tokens of the text."""
    ids = of_digits(NUMBERS)["input_ids"]
    of_numbers = [float(sign.isdecimal()) for sign in signs_of(of_digits, ids)]
    model, rarity = make_model(of_digits), TokenRarity([[40], [41]])
    asked = [{"cue_ids": [], "target_ids": of_digits(text)["input_ids"]} for text in (" 6", " 888")]

    def at(places):
        return [ids[place] for place in places]

    return {
        "surprising facts": lambda n: surprising_facts(model, of_digits, [ids], [n], rarity)[0],
        "facts": lambda n: fact_list(of_digits, ids, n),
        "answers": lambda n: answering_sentences(of_digits, ids, asked, n, ids),
        "keywords": lambda n: at(keywords_and_tail(of_digits, ids, of_numbers, n, 1.0)),
        "keywords and tail": lambda n: at(keywords_and_tail(of_digits, ids, of_numbers, n, 0.5)),
        "passage and tail": lambda n: at(passage_and_tail(of_digits, ids, of_numbers, n, 0.5)),
    }


@pytest.mark.parametrize(
    "rule", ["surprising facts", "facts", "answers", "keywords", "keywords and tail", "passage and tail"]
)
def test_no_rule_makes_one_number_of_two(of_digits, writers, rule):
    for n in range(30 if "tail" in rule else 70):
        gist = writers[rule](n)
        assert not mixed(of_digits.decode(gist))
        assert len(gist) == n if "tail" in rule else len(gist) <= n


@pytest.mark.parametrize("rule", [rule for rule in EXTRACTIVE_RULES if "facts" not in rule and rule != "answers"])
def test_no_rule_takes_a_special_token(tokenizer, rule):
    """Nor does it take fewer tokens for it; what is left is what it takes of a context without them."""
    special = frozenset(tokenizer.all_special_ids)
    plain, last_k_ids = list(range(30, 60)), [60, 61]
    marked = [token for index, token in enumerate(plain) for token in (sorted(special)[index % len(special)], token)]
    summarizer = ExtractiveSummarizer(rule, [[40], [50]], special, tokenizer)
    for first in (70, 71, 72):  # with "passages" the context says whose turn it is
        window = {"context_ids": [*marked, first, *last_k_ids], "last_k_ids": last_k_ids}
        for gist in summarizer.gists(window, [10, 10, 10]):
            assert len(gist) == 10 and not special & set(gist)
            assert gist == sorted(gist)  # in the context's order
    only = {"context_ids": [*special, *last_k_ids], "last_k_ids": last_k_ids}
    assert summarizer.gists(only, [4]) == [[]]


def test_imitating_the_best_of_a_group_is_its_cross_entropy():
    weights = best_of_group(torch.tensor([0.1, 0.5, 0.3, -1.0, -3.0, -2.0]), 3)
    assert weights.tolist() == [0, 3, 0, 3, 0, 0]
    assert weights.mean() == 1


def test_the_cold_start_teaches_the_summarizer_the_rule(make_trainer, tokenizer):
    """After it the likeliest gist is nearer to the rule's than before; the generator has learned too."""
    args = {
        "cold_start_steps": 12,
        "cold_start_gists": "tail",
        "max_steps": 12,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
    }
    trainer = make_trainer(args=args)
    before = snapshot(trainer.generator)
    row = trainer.train_dataset[0]
    (gist,) = trainer.rollout.extractive_summarizer.gists(row, [6])

    def log_prob():
        prompt = trainer.prompts.summarizer(row["context_ids"], row["last_k_ids"])
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([prompt + gist])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(gist).unsqueeze(1)).sum().item()

    untrained = log_prob()
    trainer.train()
    assert log_prob() > untrained + 1
    assert moved(before, trainer.generator)
    logs = [log for log in trainer.state.log_history if "cold_start" in log]
    assert all(log["cold_start"] == 1 for log in logs)


def test_sampling_begins_when_the_cold_start_ends(make_trainer, monkeypatch):
    trainer = make_trainer(args={"cold_start_steps": 2, "max_steps": 4})
    sampled = []
    sample = trainer.sample
    monkeypatch.setattr(trainer, "sample", lambda prompt_ids: sampled.append(1) or sample(prompt_ids))
    trainer.train()
    assert len(sampled) == 2
    assert [log["cold_start"] for log in trainer.state.log_history if "cold_start" in log] == [1, 1, 0, 0]


def test_the_cold_start_has_a_learning_rate_of_its_own(make_trainer):
    args = {
        "cold_start_steps": 2,
        "cold_start_learning_rate": 4e-3,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "lr_scheduler_type": "linear",
    }
    trainer = make_trainer(args=args)
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert rates == pytest.approx([4e-3, 3e-3, 0.5e-3, 0.25e-3])


def test_a_schedule_that_watches_a_metric_cannot_have_one(make_trainer, tokenizer):
    args = {"cold_start_steps": 1, "cold_start_learning_rate": 1e-3, "max_steps": 1}
    model = make_model(tokenizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    trainer = make_trainer(model, args=args, processing_class=tokenizer, optimizers=(optimizer, scheduler))
    with pytest.raises(ValueError, match="needs a schedule that is a function of the step, got ReduceLROnPlateau"):
        trainer.train()


class Parrot:
    """A compressor that gives back the first tokens of a context, whatever they are."""

    def compress(self, contexts, budgets):
        return [context[:budget] for context, budget in zip(contexts, budgets, strict=True)]


@pytest.mark.parametrize("maker", ["cold start", "compressor"])
def test_gists_made_of_contexts_have_no_special_token_and_end_as_the_tokenizer_ends_a_text(
    make_trainer, tokenizer, tmp_path, maker
):
    """The model stops at two others as well, of which one is a plain word's, and names them first."""
    word = 77
    model = make_model(tokenizer)
    model.generation_config.eos_token_id = [
        word,
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
        tokenizer.eos_token_id,
    ]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"context": [n, 60 + n, word, 3, 90, 4, 91, 2, 50, 51], "target": [30, 31]} for n in range(5)]
    args = {"cold_start_steps": 1} if maker == "cold start" else {"generator_only": True}
    args |= {"max_completion_length": 20, "max_steps": 1}
    seen = []

    def reward(completion_ids, gist_ids, **columns):
        seen.extend(zip(completion_ids, gist_ids, strict=True))
        return [0.0] * len(gist_ids)

    trainer = make_trainer(
        str(tmp_path / "model"),
        train_dataset=Dataset.from_list(rows),
        reward_funcs=reward,
        compressor=None if maker == "cold start" else Parrot(),
        args=args,
    )
    trainer.train()
    assert seen
    for completion_ids, gist_ids in seen:
        assert completion_ids == [*gist_ids, tokenizer.eos_token_id]
        assert gist_ids and not set(gist_ids) & {word, *tokenizer.all_special_ids}
