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

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import assert_equal_models, moved, snapshot, trainable
from datasets import Dataset
from peft import get_peft_model
from tiny import make_documents, make_model, make_tokenizer
from transformers import LlamaConfig

from research.gist_tokens import gist_tokens as example
from research.gist_tokens.measures import (
    add_rouge_l,
    gist_tokens_tables,
    kv_bytes,
    plot_gist_tokens,
    read_gist_tokens,
    summarize_reader,
)
from research.gist_tokens.model import CONDITIONS, GistTokenModel, _leave_gradient, train_gist_tokens
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.evaluation import standard_error
from trl_gist.models.attention import use_matmul_attention
from trl_gist.models.generation import greedy_continuations
from trl_gist.models.roles import clone_with_shared_parameters
from trl_gist.prompts import GistPrompts
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer
from trl_gist.scoring.teacher_cache import TeacherCache


K = 3


@pytest.fixture
def prompts():
    """With a bos, which belongs to what is compressed."""
    return GistPrompts.from_tokenizer(make_tokenizer(bos=True), "{context}")


@pytest.fixture
def windows():
    """Of different lengths: rows are padded on both sides of the gist tokens."""
    rng = random.Random(0)

    def window(context, last_k, target):
        ids = [rng.randrange(5, 300) for _ in range(context + target)]
        context_ids, target_ids = ids[:context], ids[context:]
        return {
            "context_ids": context_ids,
            "last_k_ids": context_ids[context - last_k :],
            "target_ids": target_ids,
            "document_id": str(context),
        }

    return [window(9, 4, 6), window(14, 3, 6), window(7, 4, 5), window(11, 2, 6)]


@pytest.fixture
def scorer(tokenizer, prompts):
    teacher = TargetScorer(make_model(tokenizer, seed=1))
    return GistScorer(teacher, teacher, prompts, batch_size=2)


def gist_model(model, prompts, condition="gist", k=K):
    """Its embeddings all different: at the vocabulary's mean, exchanging two would not show."""
    built = GistTokenModel(model, prompts, k, condition)
    torch.manual_seed(5)
    built.gist_embeddings_KH.data += 0.5 * torch.randn_like(built.gist_embeddings_KH)
    return built


def what_each_sees(condition, prefix, k, after):
    """For each position of X' ⟨g⟩ L Y the positions it sees, from the definition and not from a mask."""
    gist, end = range(prefix, prefix + k), prefix + k + after
    sees = [range(position + 1) for position in range(prefix)]
    for position in range(prefix, end):
        before = list(range(prefix, position + 1))  # the gist tokens, and what came after them
        shows_context = condition == "positive" or (condition == "gist" and position in gist)
        sees.append([*range(prefix), *before] if shows_context else before)
    return sees


def llama_by_hand(model, embeds_SH, sees):
    """Last hidden states of a Llama, one position after the other, in float64, with explicit sets of keys."""
    config = model.config
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    groups = heads // config.num_key_value_heads
    weights = {name: weight.detach().double() for name, weight in model.named_parameters()}

    def norm(x_SH, weight):
        return x_SH / (x_SH.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    theta = config.rope_parameters["rope_theta"]
    frequencies = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(len(embeds_SH), dtype=torch.float64)[:, None] * frequencies

    def rotate(x_ShD):
        a, b = x_ShD.chunk(2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    x_SH = embeds_SH.double()
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}."
        h_SH = norm(x_SH, weights[name + "input_layernorm.weight"])
        q, k, v = (
            (h_SH @ weights[f"{name}self_attn.{part}_proj.weight"].T).unflatten(-1, (-1, size)) for part in "qkv"
        )
        q, k = rotate(q), rotate(k)
        attended = torch.zeros_like(q)
        for position, visible in enumerate(sees):
            for head in range(heads):
                keys, values = k[list(visible), head // groups], v[list(visible), head // groups]
                attended[position, head] = (keys @ q[position, head] / math.sqrt(size)).softmax(0) @ values
        x_SH = x_SH + attended.flatten(1) @ weights[name + "self_attn.o_proj.weight"].T
        h_SH = norm(x_SH, weights[name + "post_attention_layernorm.weight"])
        gate = h_SH @ weights[name + "mlp.gate_proj.weight"].T
        up = h_SH @ weights[name + "mlp.up_proj.weight"].T
        x_SH = x_SH + (gate * gate.sigmoid() * up) @ weights[name + "mlp.down_proj.weight"].T
    return norm(x_SH, weights["model.norm.weight"])


def embeds_by_hand(model, prompts, window):
    """A row's embeddings, and how many of them come before and after the gist tokens."""
    before = [*prompts.bos, *window["context_ids"][: len(window["context_ids"]) - len(window["last_k_ids"])]]
    after = [*window["last_k_ids"], *window["target_ids"]]
    table_VH = model.model.get_input_embeddings().weight
    return torch.cat([table_VH[before], model.gist_embeddings_KH, table_VH[after]]).detach(), len(before), len(after)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_log_probs_and_kl_are_those_of_a_llama_in_which_each_position_sees_what_the_paper_says(
    condition, tokenizer, prompts, windows, scorer
):
    model = gist_model(make_model(tokenizer), prompts, condition)
    hidden_D, _ = scorer.read_contexts(windows)
    logps_NT, kl_NT, loss_NT = model(model.rows(windows), torch.cat(hidden_D), scorer.teacher)
    assert torch.equal(kl_NT, loss_NT.detach())
    head_VH = model.model.lm_head.weight.detach().double()
    for row, window in enumerate(windows):
        embeds_SH, before, after = embeds_by_hand(model, prompts, window)
        hidden_SH = llama_by_hand(model.model, embeds_SH, what_each_sees(condition, before, K, after))
        target, length = window["target_ids"], len(window["target_ids"])
        log_q_TV = (hidden_SH[-length - 1 : -1] @ head_VH.T).log_softmax(-1)
        ids = torch.tensor([[*prompts.bos, *window["context_ids"], *target]])
        with torch.no_grad():
            logits_TV = scorer.teacher.model(input_ids=ids).logits[0, -length - 1 : -1]
        log_p_TV = logits_TV.double().log_softmax(-1)
        kl_T = (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1)
        torch.testing.assert_close(logps_NT[row, :length].double(), log_q_TV[range(length), target], atol=1e-4, rtol=0)
        torch.testing.assert_close(kl_NT[row, :length].double(), kl_T, atol=1e-4, rtol=0)
        assert not loss_NT[row, length:].any()


def test_the_three_conditions_differ(tokenizer, prompts, windows):
    model = make_model(tokenizer)
    gist, positive, negative = (
        (lambda m: m(m.rows(windows))[0])(gist_model(model, prompts, condition)) for condition in CONDITIONS
    )
    assert (gist - positive).abs().max() > 1e-2
    assert (gist - negative).abs().max() > 1e-2


def test_the_negative_control_knows_nothing_of_the_context_and_gist_tokens_do(tokenizer, prompts, windows):
    others = []
    for window in windows:
        seen = len(window["context_ids"]) - len(window["last_k_ids"])
        context_ids = [token + 7 for token in window["context_ids"][:seen]] + window["last_k_ids"]
        others.append(window | {"context_ids": context_ids})
    for condition, depends in (("negative", False), ("gist", True), ("positive", True)):
        model = gist_model(make_model(tokenizer), prompts, condition)
        one, other = model(model.rows(windows))[0], model(model.rows(others))[0]
        # Every target's every token: through no layer and no padding
        assert (one != other)[model.rows(windows).mask_NT].all() == depends
        assert depends or torch.equal(one, other)


def test_the_positive_control_is_an_ordinary_causal_forward(each_model, prompts, windows):
    model = gist_model(each_model, prompts, "positive")
    table = each_model.get_input_embeddings()
    for window in windows:
        rows = model.rows([window])
        embeds_1SH = torch.cat(
            [table(rows.prefix_ids_NP), model.gist_embeddings_KH[None], table(rows.input_ids_NS)], 1
        )
        log_probs_SV = each_model(inputs_embeds=embeds_1SH).logits[0].log_softmax(-1)
        target = window["target_ids"]
        expected_T = log_probs_SV[-len(target) - 1 : -1][range(len(target)), target]
        torch.testing.assert_close(model(rows)[0][0], expected_T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_after_the_context_is_evicted_the_hidden_states_are_those_of_the_masked_forward(
    condition, each_model, prompts, windows
):
    model = gist_model(each_model, prompts, condition)
    rows = model.rows(windows)
    contexts = model.compress(windows)
    if condition != "positive":
        assert contexts.real_NC.shape == (len(windows), K) and contexts.real_NC.all()
        assert contexts.nbytes == len(windows) * kv_bytes(each_model.config, K, each_model.dtype)
        # Nothing of X' is kept alive behind a view
        for layer in contexts.cache.layers:
            assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes
    hidden_NSH = model.extend(contexts, rows.input_ids_NS, torch.ones_like(rows.input_ids_NS, dtype=torch.bool))
    with torch.no_grad():
        masked_NTH = model.hidden_states(rows)
    for row in range(len(windows)):
        positions = rows.positions_NT[row][rows.mask_NT[row]]
        torch.testing.assert_close(
            hidden_NSH[row, positions], masked_NTH[row][rows.mask_NT[row]], atol=2e-5, rtol=1e-5
        )


@pytest.mark.parametrize("condition", CONDITIONS)
def test_bfloat16_on_a_cpu_is_float32_up_to_rounding(condition, tokenizer, prompts, windows):
    exact, rounded = make_model(tokenizer), make_model(tokenizer, dtype=torch.bfloat16)
    use_matmul_attention(rounded)
    exact, rounded = (gist_model(model, prompts, condition) for model in (exact, rounded))
    assert rounded.gist_embeddings_KH.dtype == torch.float32
    with torch.no_grad():
        expected_NT, logps_NT = (model(model.rows(windows))[0] for model in (exact, rounded))
    assert (expected_NT - logps_NT).abs().max() < 0.3 < expected_NT.std()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_greedy_continuations_from_the_cache_are_those_of_recomputing_all_for_each_token(
    condition, tokenizer, prompts, windows
):
    model = gist_model(make_model(tokenizer), prompts, condition)
    # Lengths of L differ: padded on the left of what is read
    written = model.continue_from(model.compress(windows), [row["last_k_ids"] for row in windows], 5)
    for window, ids in zip(windows, written, strict=True):
        expected = []
        while len(expected) < 5:
            rows = model.rows([window | {"target_ids": [*expected, 0]}])
            token = model.log_probs(model.hidden_states(rows)[0, -1:]).argmax().item()
            if token == tokenizer.eos_token_id:
                break
            expected.append(token)
        assert ids == expected
    assert any(written)


def test_training_moves_the_adapter_and_the_embeddings_and_nothing_else_and_lowers_the_loss(
    tokenizer, prompts, windows, scorer, lora
):
    base = make_model(tokenizer)
    model = GistTokenModel(get_peft_model(clone_with_shared_parameters(base), lora), prompts, K)
    before, before_teacher = snapshot(model), snapshot(scorer.teacher)
    before_base = snapshot(base)
    losses = train_gist_tokens(model, scorer, windows, steps=12, rows_per_step=4, learning_rate=1e-2)
    assert moved(before, model) == trainable(model)
    assert {name for name in trainable(model) if "lora" not in name} == {"gist_embeddings_KH"}
    assert not moved(before_teacher, scorer.teacher) and not moved(before_base, base)
    assert losses[-1] < 0.9 * losses[0]


def test_gist_tokens_learn_what_their_negative_control_cannot(tokenizer, prompts, scorer):
    """Contexts that differ before the same L and Y: the control can at best predict the mean of what the teacher says."""
    rng = random.Random(1)
    last_k_ids, target_ids = [7, 8], [9, 10, 11, 12]
    windows = [
        {"context_ids": [*(rng.randrange(5, 300) for _ in range(6)), *last_k_ids], "last_k_ids": last_k_ids,
         "target_ids": target_ids}
        for _ in range(4)
    ]  # fmt: skip
    hidden_D, _ = scorer.read_contexts(windows)
    log_p_DTV = torch.stack([scorer.teacher.log_probs(hidden_TH) for hidden_TH in hidden_D]).double()
    p_DTV = log_p_DTV.exp()
    floor = (p_DTV * (log_p_DTV - p_DTV.mean(0).log())).sum(-1).mean().item()
    losses = {}
    for condition in ("gist", "negative"):
        model = GistTokenModel(make_model(tokenizer), prompts, K, condition)
        losses[condition] = train_gist_tokens(model, scorer, windows, 150, rows_per_step=4, learning_rate=5e-3)[-1]
    assert losses["negative"] > 0.999 * floor
    assert losses["gist"] < 0.5 * floor


def test_without_an_adapter_the_whole_model_is_trained(tokenizer, prompts, windows, scorer):
    model = GistTokenModel(make_model(tokenizer), prompts, K)
    before = snapshot(model)
    train_gist_tokens(model, scorer, windows, steps=2, rows_per_step=4)
    assert moved(before, model) == set(before)


def test_every_gist_embedding_gets_a_gradient_and_in_chunks_it_is_the_same(tokenizer, prompts, windows, scorer):
    gradients = []
    for batch_size in (1, 4):
        scorer.batch_size = batch_size
        model = gist_model(make_model(tokenizer), prompts)
        _leave_gradient(model, scorer, windows)
        gradients.append(model.gist_embeddings_KH.grad)
    assert gradients[0].abs().amax(-1).min() > 1e-4
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_one_seed_is_one_result_and_gist_embeddings_start_at_the_mean_of_the_vocabulary(
    tokenizer, prompts, windows, scorer
):
    trained = []
    for seed in (0, 0, 1):
        model = GistTokenModel(make_model(tokenizer), prompts, K)
        mean_H = model.model.get_input_embeddings().weight.mean(0)
        torch.testing.assert_close(model.gist_embeddings_KH, mean_H.expand(K, -1))
        losses = train_gist_tokens(model, scorer, windows, steps=3, rows_per_step=2, seed=seed)
        trained.append((model, losses))
    assert_equal_models(trained[0][0], trained[1][0])
    assert trained[0][1] == trained[1][1] != trained[2][1]


def test_the_teacher_reads_each_window_once_for_all_arms(tokenizer, prompts, windows, scorer, tmp_path, monkeypatch):
    scorer.teacher_cache = TeacherCache(tmp_path, scorer.teacher.model, prompts)
    read = []
    hidden_states = scorer.teacher.hidden_states
    monkeypatch.setattr(
        scorer.teacher, "hidden_states", lambda rows: read.append(len(rows.input_ids_NS)) or hidden_states(rows)
    )
    for condition in CONDITIONS:
        train_gist_tokens(gist_model(make_model(tokenizer), prompts, condition), scorer, windows, 4, rows_per_step=2)
    assert sum(read) == len(windows)


def test_saved_weights_are_the_trained_ones_and_load_into_a_fresh_model(tokenizer, prompts, lora, tmp_path):
    def fresh(k=K):
        torch.manual_seed(0)
        return GistTokenModel(get_peft_model(make_model(tokenizer), lora), prompts, k)

    model = fresh()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    model.save(tmp_path)
    loaded = fresh()
    assert moved(snapshot(model), loaded)
    loaded.load(tmp_path)
    assert_equal_models(model, loaded)
    assert Path(tmp_path, "gist_tokens.safetensors").stat().st_size < 40_000  # not the base
    with pytest.raises(ValueError, match="1 tensors differ|2 tensors differ"):
        fresh(k=K + 1).load(tmp_path)


def test_bad_settings_are_named(tokenizer, prompts, windows, scorer):
    with pytest.raises(ValueError, match=r"`condition` \('none'\)"):
        GistTokenModel(make_model(tokenizer), prompts, 1, "none")
    with pytest.raises(ValueError, match=r"`num_gist_tokens` \(0\)"):
        GistTokenModel(make_model(tokenizer), prompts, 0)
    with pytest.raises(ValueError, match="takes no 4D mask"):
        model = make_model(tokenizer)
        model.config._attn_implementation = "flash_attention_2"
        GistTokenModel(model, prompts, 1)
    with pytest.raises(ValueError, match=r"`rows_per_step` \(5\)"):
        train_gist_tokens(GistTokenModel(make_model(tokenizer), prompts, 1), scorer, windows, 1, rows_per_step=5)


def test_rouge_l_on_strings_whose_value_is_known():
    pairs = {
        ("the cat sat on the mat", "the cat on a mat"): 2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6),  # the cat on mat
        ("he walks", "He walked!"): 1.0,  # stems, neither case nor marks
        ("one two three", "three two one"): 1 / 3,
        ("one", "other"): 0.0,
        ("one", ""): 0.0,
    }
    rows = [{"continuation": continuation} for _, continuation in pairs]
    add_rouge_l(rows, [reference for reference, _ in pairs])
    assert [row["rouge_l"] for row in rows] == pytest.approx(list(pairs.values()))


def test_the_bytes_of_keys_and_values_of_smollm2():
    config = LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=30)
    assert kv_bytes(config, 1, torch.bfloat16) == 30 * 2 * 3 * 64 * 2 == 23_040
    assert kv_bytes(config, 48, torch.float32) == 48 * 46_080


def test_rows_hold_the_scores_of_each_window_and_their_continuations(tokenizer, prompts, windows, scorer):
    model = gist_model(make_model(tokenizer), prompts)
    rows = read_gist_tokens(model, windows, scorer, tokenizer)
    hidden_D, _ = scorer.read_contexts(windows)
    for row, window, hidden_TH in zip(rows, windows, hidden_D, strict=True):
        logps_1T, kl_1T, *_ = model(model.rows([window]), hidden_TH, scorer.teacher)
        (ids,) = model.continue_from(model.compress([window]), [window["last_k_ids"]], len(window["target_ids"]))
        assert row["log_prob"] == pytest.approx(logps_1T.mean().item(), abs=1e-5)
        assert row["teacher_kl"] == pytest.approx(kl_1T.mean().item(), abs=1e-5)
        assert row["continuation"] == tokenizer.decode(ids)
        assert row["kept_tokens"] == K and row["kv_bytes"] == kv_bytes(model.model.config, K, torch.float32)


def test_the_teachers_continuations_do_not_depend_on_their_batch(tokenizer, windows):
    teacher = make_model(tokenizer, seed=1)
    prompts = [row["context_ids"] for row in windows]
    together = greedy_continuations(teacher, prompts, 5, tokenizer, batch_size=4)
    assert together == greedy_continuations(teacher, prompts, 5, tokenizer, batch_size=1)
    assert any(together)


def reader_rows(kl, log_prob):
    return [
        {"document_id": d, "teacher_kl": k, "log_prob": p, "rouge_l": 0.5, "kept_tokens": 2, "kv_bytes": 8, "text_bytes": None}
        for d, k, p in zip("aabbc", kl, log_prob, strict=True)
    ]  # fmt: skip


def test_gains_are_paired_with_the_negative_control_and_errors_are_over_documents(tmp_path):
    rng = np.random.default_rng(0)
    kl, negative_kl, log_prob, negative_log_prob = rng.random((4, 5))
    rows, negative = reader_rows(kl, log_prob), reader_rows(negative_kl, negative_log_prob)
    reader = summarize_reader("k = 2", "gist", rows, negative)
    assert reader["teacher_kl"] == pytest.approx(kl.mean()) and reader["nll"] == pytest.approx(-log_prob.mean())
    assert reader["kl_gain_over_negative"] == pytest.approx((negative_kl - kl).mean())
    gains = log_prob - negative_log_prob
    assert reader["gain_over_negative"] == pytest.approx(gains.mean())
    residuals = [sum(gains[i] - gains.mean() for i in of) for of in ((0, 1), (2, 3), (4,))]
    by_hand = math.sqrt(sum(residual**2 for residual in residuals) * 3 / 2) / 5
    assert reader["gain_over_negative_se"] == pytest.approx(by_hand) == standard_error(gains, list("aabbc"))
    assert not reader["readable"] and not reader["movable"]
    text = summarize_reader("text", "text", [row | {"text_bytes": 9} for row in rows])
    assert text["readable"] and text["movable"] and text["text_bytes"] == 9
    with pytest.raises(ValueError, match="not read on the same windows"):
        summarize_reader("k = 2", "gist", rows, negative[::-1])
    close, costs = gist_tokens_tables([reader, text])
    assert f"{gains.mean():.3f} ± {by_hand:.3f}" in close.columns[4]._cells
    assert costs.columns[-1]._cells == ["no", "yes"]
    plot_gist_tokens([reader, text], tmp_path / "plot")
    assert Path(tmp_path, "plot.png").stat().st_size > 10_000


@pytest.fixture
def run_example(tokenizer, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "SPEC", WindowSpec(24, 8, 4, None, None))
    windows = list(prepare_windows(Dataset.from_dict({"text": make_documents(4)}), tokenizer, example.SPEC)[0])

    def run(steps=2, pair=None, k=(1, 2)):
        return example.main(
            list(k), steps, 4, pair, str(tmp_path / "out"), checkpoint=checkpoint, windows=(windows[8:], windows[:8])
        )

    return run


def test_the_example_goes_on_where_it_was_stopped(run_example, tmp_path, monkeypatch):
    first = run_example()
    trained = []
    train = example.train_gist_tokens
    monkeypatch.setattr(
        example, "train_gist_tokens", lambda model, *args, **kwargs: trained.append(model) or train(model, *args, **kwargs)
    )  # fmt: skip
    assert run_example() == first and not trained
    # Stopped while it was evaluated: its weights are there. Stopped while it was trained: nothing is
    Path(tmp_path, "out", "gist-1", "rows.json").unlink()
    assert run_example() == first and not trained
    for path in Path(tmp_path, "out", "negative-2").iterdir():
        path.unlink()
    assert run_example() == first
    assert [(model.condition, model.num_gist_tokens) for model in trained] == [("negative", 2)]
    # More k join those that are there
    assert [reader for reader in run_example(k=(1, 2, 4)) if "4" not in reader["name"]] == first
    assert len(trained) == 3
    with pytest.raises(ValueError, match="another recipe"):
        run_example(steps=3)


def test_the_example_reads_a_pair_beside_the_gist_tokens(run_example, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.save_model(str(tmp_path / "pair"))
    readers = {reader["kind"]: reader for reader in run_example(pair=str(tmp_path / "pair"), k=(1,))}
    text, full, nothing = (readers[kind] for kind in ("text", "full", "last_k"))
    assert text["readable"] and text["movable"] and text["text_bytes"] > 0
    assert text["kv_bytes"] == pytest.approx(
        text["kept_tokens"] * kv_bytes(make_model(make_tokenizer()).config, 1, torch.float32)
    )
    assert full["teacher_kl"] == pytest.approx(0, abs=1e-5) and full["kept_tokens"] == 20
    assert nothing["kv_bytes"] == 0 and not nothing["readable"]
    assert readers["gist"]["kept_tokens"] == 1 and readers["positive"]["kept_tokens"] == 21
    saved = json.loads(Path(tmp_path, "out", "measures.json").read_text())
    assert saved["readers"] == list(json.loads(json.dumps(saved["readers"]))) and saved["steps"] == 2
