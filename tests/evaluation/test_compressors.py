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

"""Compressors against plain references, and what readers make of their gists."""

import json
import re

import numpy as np
import pytest
import torch
from tiny import PARAGRAPH, make_documents, make_model, make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForTokenClassification, BertModel, PreTrainedTokenizerFast

from trl_gist import GistCompactor
from trl_gist.common.tokens import characters_of
from trl_gist.evaluation import add_controls, evaluate_pair, standard_error
from trl_gist.evaluation.comparison.compare import (
    GENERATOR,
    NO_GIST,
    OWN_GENERATOR,
    TEACHER,
    TRAINED,
    compare_compressors,
    summarize_comparison,
)
from trl_gist.evaluation.comparison.tables import comparison_tables, plot_comparison
from trl_gist.evaluation.compressors import (
    FromFile,
    Head,
    Keywords,
    PerplexityPruning,
    RandomDrop,
    SelfInformation,
    StopWordDrop,
    Tail,
    TokenClassifier,
    TrainedSummarizer,
    ZeroShot,
    write_contexts,
)
from trl_gist.evaluation.compressors.base import split_words
from trl_gist.evaluation.compressors.registry import COMPRESSORS, extractive_compressors, standard_compressors
from trl_gist.evaluation.compressors.zero_shot import PROMPT
from trl_gist.prompts import SUMMARIZER_PROMPT_WITH_TAIL, GistPrompts
from trl_gist.scoring.extraction import TokenRarity
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer
from trl_gist.trainer.cold_start import ExtractiveSummarizer


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return make_model(tokenizer).double()


@pytest.fixture(scope="module")
def contexts(tokenizer):
    """From none to 70 tokens, one of them with special tokens inside."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in make_documents(6)]
    cut = [[], ids[0][:1], ids[1][:9], ids[2][3:43], ids[3][10:80], ids[4][:30]]
    return [*cut[:-1], [*cut[-1][:7], *tokenizer.all_special_ids, *cut[-1][7:]]]


@pytest.fixture(scope="module")
def classifier_checkpoint(tmp_path_factory):
    """A tiny BERT that tells tokens to keep from others, of no training; `llmlingua` reads the folder's name."""
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=False)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    wordpiece.train_from_iterator([PARAGRAPH], trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials))
    wordpiece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in specials}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece, **names)
    torch.manual_seed(0)
    config = BertConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "initializer_range": 0.3, "max_position_embeddings": 512, "pad_token_id": 0},
    )
    path = tmp_path_factory.mktemp("checkpoints") / "bert-base-multilingual-cased-tiny"
    BertForTokenClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def compactor(make_trainer, lora, tmp_path):
    """A pair whose halves differ from their base, saved and loaded again."""
    trainer = make_trainer(peft_config=lora, args={"summarizer_prompt": SUMMARIZER_PROMPT_WITH_TAIL})
    torch.manual_seed(1)
    with torch.no_grad():
        for model in (trainer.model, trainer.generator):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1)
    trainer.save_model(str(tmp_path / "pair"))
    return GistCompactor.from_pretrained(tmp_path / "pair", device="cpu", dtype=torch.float64)


@pytest.fixture
def windows(tokenizer):
    """Three documents, two windows of each."""
    rows = []
    for document, text in enumerate(make_documents(3, seed=5)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in (0, 40):
            context_ids = ids[start : start + 24]
            row = {"context_ids": context_ids, "last_k_ids": context_ids[-4:], "document_id": document}
            rows.append(row | {"target_ids": ids[start + 24 : start + 32]})
    return rows


def unpruned(tokenizer, context):
    return [token for token in context if token not in tokenizer.all_special_ids]


def reference_surprisals(model, prefix, ids):
    """−log p of each id after the prefix, from all of the model's logits; 0 where nothing comes before."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prefix + ids])).logits[0].double().numpy()
    surprisals = []
    for position, token in enumerate(ids, len(prefix)):
        if position == 0:
            surprisals.append(0.0)
        else:
            before = logits[position - 1]
            surprisals.append(np.log(np.exp(before - before.max()).sum()) + before.max() - before[token])
    return surprisals


def reference_best_words(words, scores, budget):
    """The best words that fit, one after the other, in the order of the text."""
    kept = []
    for index in np.argsort(-np.array(scores), kind="stable"):
        if sum(len(words[other]) for other in kept) + len(words[index]) <= budget:
            kept.append(index)
    return [position for index in sorted(kept) for position in words[index]]


# ---- What all of them promise ----


def everything(tokenizer, teacher, classifier_checkpoint, contexts):
    rarity = TokenRarity(contexts)
    return {
        "head": Head(tokenizer),
        "tail": Tail(tokenizer),
        "random": RandomDrop(tokenizer),
        "stop words": StopWordDrop(tokenizer),
        "tf-idf": Keywords(tokenizer, rarity),
        "mixed": Keywords(tokenizer, rarity, share=0.5),
        "self-information": SelfInformation(tokenizer, teacher, batch_size=2),
        "perplexity": PerplexityPruning(tokenizer, teacher, segment_length=7, batch_size=2),
        "classifier": TokenClassifier.from_pretrained(tokenizer, str(classifier_checkpoint)),
    }


NAMES = ["head", "tail", "random", "stop words", "tf-idf", "mixed", "self-information", "perplexity", "classifier"]


@pytest.mark.parametrize("name", NAMES)
def test_an_extractive_gist_is_part_of_its_context_in_order_and_within_budget(
    tokenizer, teacher, classifier_checkpoint, contexts, name
):
    compressor = everything(tokenizer, teacher, classifier_checkpoint, contexts)[name]
    for budget in (0, 1, 2, 5, 8, 29, 500):
        budgets = [budget] * len(contexts)
        gists = compressor.compress(contexts, budgets)
        for context, gist in zip(contexts, gists, strict=True):
            assert len(gist) <= budget
            assert not set(gist) & set(tokenizer.all_special_ids)
            remaining = iter(context)
            assert all(token in remaining for token in gist), "not a subsequence"
            if name in ("head", "tail", "random", "perplexity") or budget == 500:
                assert len(gist) == min(budget, len(unpruned(tokenizer, context)))


@pytest.mark.parametrize("name", NAMES)
def test_a_gist_depends_on_its_context_and_budget_alone(tokenizer, teacher, classifier_checkpoint, contexts, name):
    compressor = everything(tokenizer, teacher, classifier_checkpoint, contexts)[name]
    budgets = [3, 0, 5, 11, 24, 8]
    gists = compressor.compress(contexts, budgets)
    assert compressor.compress(contexts, budgets) == gists
    assert compressor.compress(contexts[::-1], budgets[::-1]) == gists[::-1]
    alone = [compressor.compress([context], [budget])[0] for context, budget in zip(contexts, budgets, strict=True)]
    assert alone == gists


@pytest.mark.parametrize("name", ["stop words", "self-information", "classifier"])
def test_words_stay_whole_and_none_that_would_still_fit_is_left_out(
    tokenizer, teacher, classifier_checkpoint, contexts, name
):
    compressor = everything(tokenizer, teacher, classifier_checkpoint, contexts)[name]
    context = contexts[4]
    words = [word.positions for word in split_words(tokenizer, context)[1]]
    for budget in (4, 9, 17):
        (kept,) = compressor.keep([context], [budget])
        whole = [word for word in words if set(word) <= set(kept)]
        assert sum(map(len, whole)) == len(kept)
        assert all(len(word) > budget - len(kept) for word in words if word not in whole)


# ---- Words ----


@pytest.mark.parametrize("text", ["Don't pay 1,854 pounds (or 3.5).\n\nHé, naïve ☃ ok?", PARAGRAPH, " a  b", "…"])
def test_words_are_those_of_the_text_and_hold_every_token_once(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded, words = split_words(tokenizer, ids)
    assert decoded == text
    assert [position for word in words for position in word.positions] == list(range(len(ids)))
    named = [word.text for word in words if word.text]
    assert named == re.findall(r"\w+(?:['’]\w+|[.,]\d+)*|[^\w\s]+", text)
    for word in words:
        assert tokenizer.decode([ids[position] for position in word.positions]).strip() == word.text


def test_a_context_cut_inside_a_character_still_has_words(tokenizer):
    ids = tokenizer("☃ ok", add_special_tokens=False)["input_ids"][1:]
    _, words = split_words(tokenizer, ids)
    assert [position for word in words for position in word.positions] == list(range(len(ids)))
    assert words[-1].text == "ok"


# ---- Each against its reference ----


def test_head_and_tail_are_slices(tokenizer, contexts):
    context = contexts[3]
    assert Head(tokenizer).compress([context], [7]) == [context[:7]]
    assert Tail(tokenizer).compress([context], [7]) == [context[-7:]]


def test_the_cold_start_and_the_compressors_have_one_rule(tokenizer, contexts):
    context = contexts[4]
    window = {"context_ids": [*context, 9, 9], "last_k_ids": [9, 9]}
    rarity = TokenRarity(contexts)
    for rule, compressor in {
        "tail": Tail(tokenizer),
        "mixed": Keywords(tokenizer, rarity, share=0.5),
    }.items():
        # Of a group, the last gist of "mixed" is the one that is half keywords
        gist = ExtractiveSummarizer(rule, contexts, tokenizer=tokenizer).gists(window, [10, 10])[-1]
        assert compressor.compress([context], [10]) == [gist], rule


def test_random_drop_keeps_every_token_as_often_as_any_other(tokenizer):
    context = list(range(10, 30))
    counts = dict.fromkeys(context, 0)
    for seed in range(400):
        for token in RandomDrop(tokenizer, seed).compress([context], [5])[0]:
            counts[token] += 1
    # 400 draws of probability 1/4: a standard deviation of 8.7
    assert all(abs(count - 100) < 40 for count in counts.values())


def test_stop_words_go_first_and_then_what_is_far_from_the_end(tokenizer):
    text = "He had its handle taken off, and the outbreak came to an end."

    def words_kept(budget):
        (gist,) = StopWordDrop(tokenizer).compress([tokenizer(text, add_special_tokens=False)["input_ids"]], [budget])
        return tokenizer.decode(gist).split()

    cost = {word: len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) for word in text.split()}
    cost["end"] = len(tokenizer(" end", add_special_tokens=False)["input_ids"])
    content = ["handle", "taken", "outbreak", "came", "end"]
    for count in range(1, len(content) + 1):
        assert words_kept(sum(cost[word] for word in content[-count:])) == content[-count:]
    # With all of them in, the stop words (and the full stop, at the very end) come back from the end
    assert words_kept(sum(cost[word] for word in content) + 1) == [*content[:-1], "end."]


def test_self_information_keeps_the_words_that_surprise(tokenizer, teacher, contexts):
    for context, budget in ((contexts[3], 9), (contexts[4], 21)):
        words = [word.positions for word in split_words(tokenizer, context)[1]]
        surprisals = reference_surprisals(teacher, [], context)
        scores = [np.mean([surprisals[position] for position in word]) for word in words]
        expected = [context[position] for position in reference_best_words(words, scores, budget)]
        assert SelfInformation(tokenizer, teacher).compress([context], [budget]) == [expected]


def test_surprisal_is_measured_after_the_beginning_of_sequence_token():
    tokenizer = make_tokenizer(bos=True)
    model = make_model(tokenizer).double()
    context = tokenizer(PARAGRAPH, add_special_tokens=False)["input_ids"][:20]
    surprisals = reference_surprisals(model, [tokenizer.bos_token_id], context)
    best = sorted(np.argsort(-np.array(surprisals))[:6])
    pruning = PerplexityPruning(tokenizer, model, segment_length=20)
    assert pruning.compress([context], [6]) == [[context[position] for position in best]]


def test_perplexity_pruning_reads_each_segment_after_what_was_kept(tokenizer, teacher, contexts):
    context, budget, length = contexts[4], 20, 16
    kept = []
    for start in range(0, len(context), length):
        segment = context[start : start + length]
        surprisals = np.array(reference_surprisals(teacher, kept, segment))
        count = int(budget * (start + len(segment)) / len(context) + 1e-9) - len(kept)
        best = sorted(np.argsort(-surprisals, kind="stable")[:count])
        kept += [segment[place] for place in best]
    pruning = PerplexityPruning(tokenizer, teacher, segment_length=length)
    assert pruning.compress([context], [budget]) == [kept]
    assert PerplexityPruning(tokenizer, teacher, segment_length=70).compress([context], [budget]) != [kept]


def classifier_reference(compressor, text):
    """`(start, end, p(keep))` of the tokens of one text, read alone."""
    encoding = compressor.classifier_tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    spans = encoding.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        logits = compressor.classifier(**encoding).logits[0].double().numpy()
    keep = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    return [(start, end, p) for (start, end), p in zip(spans, keep, strict=True) if end > start]


def test_a_token_classifier_keeps_the_words_it_would_keep(tokenizer, classifier_checkpoint, contexts):
    compressor = TokenClassifier.from_pretrained(tokenizer, str(classifier_checkpoint))
    for context, budget in ((contexts[3], 9), (contexts[4], 21)):
        text, words = split_words(tokenizer, context)
        tokens = classifier_reference(compressor, text)
        scores = [
            np.mean([p for start, end, p in tokens if start < word.end and end > word.start]) if word.text else 0.0
            for word in words
        ]
        positions = reference_best_words([word.positions for word in words], scores, budget)
        assert compressor.compress([context], [budget]) == [[context[position] for position in positions]]


def test_a_token_classifier_reads_a_long_context_in_pieces(tokenizer, classifier_checkpoint):
    compressor = TokenClassifier.from_pretrained(tokenizer, str(classifier_checkpoint))
    text = " ".join(make_documents(8))
    (spans,) = compressor._spans_and_probabilities([text])
    pieces = len(spans) / 508
    assert pieces > 2, "the text should not fit"
    covered = {place for start, end, _ in spans for place in range(start, end)}
    assert covered == {place for place, character in enumerate(text) if not character.isspace()}


def test_llmlingua_itself_keeps_the_same_words(tokenizer, classifier_checkpoint, contexts, monkeypatch):
    """
    The authors' code (`pip install llmlingua`), with a stand-in for the tokenizer that it fetches to count with: a
    token a word.
    """
    tiktoken = pytest.importorskip("tiktoken")
    llmlingua = pytest.importorskip("llmlingua")

    class Words:
        def encode(self, text):
            return text.split()

    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: Words())
    theirs = llmlingua.PromptCompressor(str(classifier_checkpoint), device_map="cpu", use_llmlingua2=True)
    ours = TokenClassifier.from_pretrained(tokenizer, str(classifier_checkpoint))
    for context in contexts[2:5]:
        text, words = split_words(tokenizer, context)
        result = theirs.compress_prompt([text], rate=0.5, return_word_label=True, word_sep="\x00", label_sep="\x01")
        labelled = [pair.split("\x01") for pair in result["fn_labeled_original_prompt"].split("\x00")]
        kept = {word for word, label in labelled if label == "1"}
        dropped = {word for word, label in labelled if label == "0"}
        (spans,) = ours._spans_and_probabilities([text])
        score = {}
        for word in words:
            inside = [p for start, end, p in spans if start < word.end and end > word.start]
            score.setdefault(word.text, []).append(np.mean(inside) if inside else 0.0)
        # Words that come once in the text, and so have one label and one score
        kept, dropped = (
            [score[word][0] for word in group if len(score.get(word, ())) == 1] for group in (kept, dropped)
        )
        assert kept and dropped and min(kept) >= max(dropped)


def test_a_missing_checkpoint_says_what_to_fetch(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a repository .*llmlingua-2-bert-base-multilingual"):
        TokenClassifier.from_pretrained(tokenizer, str(tmp_path / "nowhere"))


def test_a_model_without_a_trained_classifier_is_refused(tokenizer, classifier_checkpoint, tmp_path):
    """transformers would give it a random one."""
    BertModel.from_pretrained(classifier_checkpoint).save_pretrained(tmp_path)
    PreTrainedTokenizerFast.from_pretrained(classifier_checkpoint).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no trained classifier .* missing weights: .*classifier"):
        TokenClassifier.from_pretrained(tokenizer, str(tmp_path))


# ---- Those that write ----


def test_a_zero_shot_summary_is_what_the_base_writes_when_asked(compactor, checkpoint, tokenizer, windows):
    base = make_model(tokenizer).double().eval()  # what the checkpoint was saved from
    assert base.get_input_embeddings().weight.equal(compactor.summarizer.get_input_embeddings().weight)
    contexts, budgets = [row["context_ids"][:20] for row in windows], [6, 3, 0, 6, 1, 4]
    expected = []
    for context, budget in zip(contexts, budgets, strict=True):
        before, after = PROMPT.replace("{budget}", str(budget)).split("{context}")
        header, footer = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        ids = [*tokenizer(header + before)["input_ids"], *context, *tokenizer(after + footer)["input_ids"]]
        gist = []
        while len(gist) < budget:
            with torch.no_grad():
                token = base(input_ids=torch.tensor([ids + gist])).logits[0, -1].argmax().item()
            if token == tokenizer.eos_token_id:
                break
            gist.append(token)
        expected.append(compactor.prompts.without_special(characters_of(tokenizer).whole(gist)))
    assert ZeroShot(compactor).compress(contexts, budgets) == expected
    assert TrainedSummarizer(compactor).compress(contexts, budgets) != expected


def test_the_trained_summarizer_writes_what_the_pair_writes(compactor, windows):
    contexts = [row["context_ids"][:-4] for row in windows]
    gists = [gist.token_ids for gist in compactor.compress_batch([row["context_ids"] for row in windows])]
    special = set(compactor.tokenizer.all_special_ids)
    for budget in (0, 2, 6):
        expected = [[token for token in gist if token not in special][:budget] for gist in gists]
        assert TrainedSummarizer(compactor).compress(contexts, [budget] * len(contexts)) == expected


def test_a_summarizer_that_needs_the_last_tokens_is_refused(compactor):
    compactor.prompts = GistPrompts.from_tokenizer(compactor.tokenizer, "{context} Then: {last_k}")
    with pytest.raises(ValueError, match="evaluate_pair"):
        TrainedSummarizer(compactor)


def test_an_outside_system_reads_the_contexts_and_answers_in_a_file(tokenizer, windows, tmp_path):
    write_contexts(windows, [5] * len(windows), tokenizer, tmp_path / "contexts.jsonl")
    asked = [json.loads(line) for line in (tmp_path / "contexts.jsonl").read_text().splitlines()]
    assert [line["context_ids"] for line in asked] == [row["context_ids"][:-4] for row in windows]
    assert [line["context"] for line in asked] == [tokenizer.decode(row["context_ids"][:-4]) for row in windows]
    answers = [{"context_hash": line["context_hash"], "gist": "cholera of the city came"} for line in asked]
    answers[1] = {"context_hash": asked[1]["context_hash"], "gist_ids": [40, tokenizer.eos_token_id, 41]}
    answers[2]["gist"] = ""
    path = tmp_path / "gists.jsonl"
    path.write_text("\ufeff" + "\r\n".join(map(json.dumps, answers[::-1])), newline="")  # as Windows writes it
    contexts = [row["context_ids"][:-4] for row in windows]
    gists = FromFile(tokenizer, path).compress(contexts, [3] * len(contexts))
    ids = tokenizer("cholera of the city came", add_special_tokens=False)["input_ids"]
    assert gists == [ids[:3], [40, 41], [], ids[:3], ids[:3], ids[:3]]

    path.write_text("\n".join(map(json.dumps, answers[:4])))
    with pytest.raises(ValueError, match=r"no gist for 2 of 6 contexts, .*`write_contexts`"):
        FromFile(tokenizer, path).compress(contexts, [3] * len(contexts))


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"gist": "a"}', "line 2, is not a JSON object .* 'context_hash'"),
        ('{"context_hash": "a"}', "line 2, is not .* 'gist'"),
        ("a gist", "line 2, is not a JSON object"),
        ('{"context_hash": "a", "gist_ids": [1000000]}', "line 2, holds 1000000, which is no id"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tokenizer, tmp_path, line, message):
    path = tmp_path / "gists.jsonl"
    path.write_text('{"context_hash": "b", "gist": "a"}\n' + line)
    with pytest.raises(ValueError, match=message):
        FromFile(tokenizer, path)


def test_a_file_of_gists_that_is_no_utf8_is_named(tokenizer, tmp_path):
    (tmp_path / "gists.jsonl").write_bytes('{"context_hash": "b", "gist": "насос"}'.encode("cp1251"))
    with pytest.raises(ValueError, match=r"gists.jsonl is no UTF-8 \(.*0xed .*Write it in UTF-8"):
        FromFile(tokenizer, tmp_path / "gists.jsonl")


# ---- The comparison ----


@pytest.fixture
def scorer(compactor, teacher):
    scorer = GistScorer(TargetScorer(compactor.generator), TargetScorer(teacher), compactor.prompts, batch_size=4)
    return scorer


@pytest.fixture
def rows(compactor, teacher, windows):
    return evaluate_pair(compactor, windows, teacher)


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def reference_reading(model, teacher, prompt, row):
    """Mean log-prob of the target after the prompt, and mean KL from the teacher on the whole context."""

    def log_probs(reader, ids):
        with torch.no_grad():
            logits = reader(input_ids=torch.tensor([ids + row["target_ids"]])).logits[0]
        return log_softmax(logits[len(ids) - 1 : -1].double().numpy())

    q, p = log_probs(model, prompt), log_probs(teacher, row["context_ids"])
    kl = (np.exp(p) * (p - q)).sum(-1).mean()
    return q[np.arange(len(q)), row["target_ids"]].mean(), kl


def test_every_reader_reads_every_gist(scorer, rows, teacher, tokenizer):
    own = make_model(tokenizer, seed=9).double()
    compressors = {"head": Head(tokenizer), "nothing to see": "its package is missing"}
    results = compare_compressors(scorer, iter(rows), compressors, tokenizer, {"head": own}, batch_size=4)
    assert results[0] == {"compressor": "nothing to see", "unavailable": "its package is missing"}
    assert len(results) == 1 + 6 * (3 * 2 + 1)
    special = set(tokenizer.all_special_ids)
    for index, row in enumerate(rows):
        written = [token for token in row["gist_ids"] if token not in special]
        gists = {NO_GIST: [], TRAINED: written, "head": row["context_ids"][:-4][: len(written)]}
        for result in (result for result in results[1:] if result["window"] == index):
            gist = gists[result["compressor"]]
            prompted = [*tokenizer("GIST:")["input_ids"], *gist, *tokenizer("\nLAST K TOKENS:")["input_ids"]]
            prompted += row["last_k_ids"]
            model, prompt = {
                TEACHER: (teacher, gist + row["last_k_ids"]),
                GENERATOR: (scorer.generator.model, prompted),
                OWN_GENERATOR: (own, prompted),
            }[result["reader"]]
            log_prob, kl = reference_reading(model, teacher, prompt, row)
            assert result["log_prob"] == pytest.approx(log_prob, abs=1e-9)
            assert result["kl"] == pytest.approx(kl, abs=1e-9)
            assert result["tokens"] == len(gist) and result["gist_rate"] == len(gist) / 24
            assert result["bytes"] == len(tokenizer.decode(gist).encode())
            assert result["document_id"] == row["document_id"]


def test_the_comparison_agrees_with_the_controls_of_evaluation(scorer, windows, tokenizer):
    scores = scorer.score(windows, [[40, 41, 42]] * len(windows))
    rows = [row | score for row, score in zip(windows, scores, strict=True)]
    results = compare_compressors(scorer, rows, {"tail": Tail(tokenizer)}, tokenizer)
    add_controls(scorer, rows)
    for compressor, reader, control in (
        ("tail", TEACHER, "tail"),
        (NO_GIST, TEACHER, "last_k"),
        (NO_GIST, GENERATOR, "null"),
        (TRAINED, GENERATOR, "gist"),
    ):
        read = [row["log_prob"] for row in results if (row["compressor"], row["reader"]) == (compressor, reader)]
        assert read == pytest.approx([row[f"{control}_log_prob"] for row in rows]), control


def test_batches_change_nothing(scorer, rows, tokenizer):
    compressors = {"random": RandomDrop(tokenizer)}
    one = compare_compressors(scorer, rows, compressors, tokenizer, batch_size=1)
    five = compare_compressors(scorer, rows, compressors, tokenizer, batch_size=5)

    def ordered(results):
        return sorted(results, key=lambda row: (row["window"], row["compressor"], row["reader"]))

    for left, right in zip(ordered(one), ordered(five), strict=True):
        assert left == pytest.approx(right)


def test_a_compressor_that_breaks_its_budget_is_named(scorer, rows, tokenizer):
    class Greedy:
        def compress(self, contexts, budgets):
            return [context[: budget + 1] for context, budget in zip(contexts, budgets, strict=True)]

    with pytest.raises(ValueError, match="'greedy' wrote a gist of 7 tokens, 0 of them special, on a budget of 6"):
        compare_compressors(scorer, [row | {"gist_ids": [40] * 6} for row in rows], {"greedy": Greedy()}, tokenizer)


def test_rules_are_given_by_any_spelling_of_their_names(tokenizer, teacher):
    found = extractive_compressors(tokenizer, teacher, [], names=["stop_word_drop", "random-drop", "head"])
    assert list(found) == ["stop-word drop", "random drop", "head"]
    with pytest.raises(ValueError, match=r"`names` must be some of .*'head'.*, got \['neck'\]"):
        extractive_compressors(tokenizer, teacher, [], names=["neck", "head"])


def test_a_generator_of_no_compressor_is_refused(scorer, rows, tokenizer, teacher):
    with pytest.raises(ValueError, match=r"`own_generators` has \['tial'\]"):
        compare_compressors(scorer, rows, {"tail": Tail(tokenizer)}, tokenizer, {"tial": teacher})


def test_the_summary_pairs_windows_and_clusters_documents():
    def result(compressor, reader, window, log_prob):
        values = {"compressor": compressor, "reader": reader, "window": window, "document_id": window // 2}
        values |= {"log_prob": log_prob, "teacher_log_prob": -1.0, "kl": 0.5, "tokens": 4, "bytes": 20}
        return values | {"budget": 4, "gist_rate": 0.25, "gist": ""}

    trained, tail, own = [-1.2, -1.4, -1.1, -1.3], [-1.5, -1.6, -1.2, -1.2], [-1.3, -1.3, -1.3, -1.2]
    rows = [result(TRAINED, GENERATOR, window, value) for window, value in enumerate(trained)]
    rows += [result("tail", GENERATOR, window, value) for window, value in list(enumerate(tail))[::-1]]
    rows += [result("tail", OWN_GENERATOR, window, value) for window, value in enumerate(own)]
    rows += [{"compressor": "absent", "unavailable": "why"}]
    *summary, absent = summarize_comparison(rows)
    assert absent == {"compressor": "absent", "unavailable": "why"}
    of_tail, of_own = summary[1:]
    assert of_tail["nll"] == pytest.approx(1.375) and of_tail["lost"] == pytest.approx(0.375)
    behind = np.subtract(trained, tail)
    assert of_tail["behind_trained"] == pytest.approx(behind.mean())
    means = behind.reshape(2, 2).mean(-1)  # two documents of two windows: the error of the mean of two means
    assert of_tail["behind_trained_se"] == pytest.approx(means.std(ddof=1) / np.sqrt(2))
    assert of_tail["behind_trained_se"] == pytest.approx(standard_error(behind, [0, 0, 1, 1]))
    assert of_own["reader"] == OWN_GENERATOR
    assert of_own["behind_trained"] == pytest.approx(np.subtract(trained, own).mean())
    assert summary[0]["behind_trained"] == 0 and summary[0]["behind_trained_se"] == 0
    assert (of_tail["windows"], of_tail["documents"], of_tail["tokens"]) == (4, 2, 4)


def test_all_of_them_are_compared_shown_and_drawn(scorer, rows, compactor, teacher, tmp_path):
    compressors = standard_compressors(compactor, teacher, [row["context_ids"] for row in rows])
    assert set(compressors) == set(COMPRESSORS)
    own = {"tail": make_model(compactor.tokenizer, seed=3).double()}
    results = compare_compressors(scorer, rows, compressors, compactor.tokenizer, own)
    summary = summarize_comparison(results)
    of_teacher, of_generator, of_own = comparison_tables(summary)
    assert [table.row_count for table in (of_teacher, of_generator, of_own)] == [14, 14, 1]
    names = list(of_generator.columns[0].cells)
    assert set(names) == {NO_GIST, TRAINED, *compressors} and names[-1] == "token classifier"
    assert "not run: token classifier, no checkpoint given" in of_generator.caption
    lost = [float(cell.split(" ")[0]) for cell in list(of_generator.columns[4].cells)[:-1]]
    assert lost == sorted(lost)
    plot_comparison(summary, tmp_path / "plots" / "compressors")
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"compressors.png", "compressors.svg"}
    assert (tmp_path / "plots" / "compressors.png").stat().st_size > 20_000
