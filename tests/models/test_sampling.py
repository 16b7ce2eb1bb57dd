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

"""Gists sampled side by side against `generate` on the padded batch: the same tokens, the same law."""

from functools import partial

import pytest
import torch
from tiny import DEVICE, make_model
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from trl_gist.models.sampling import _decode, _draw, sample_gists


LONG, SHORT, MIDDLE = [7, 8, 9, 10, 11, 12], [20, 21, 22], [30, 31, 32, 33, 34]
PROMPTS = [LONG] * 3 + [SHORT] * 2 + [MIDDLE]  # groups of three, two and one
PAD = 0


def greedy(**values):
    return GenerationConfig(
        **{"max_new_tokens": 12, "do_sample": False, "eos_token_id": 2, "pad_token_id": PAD} | values
    )


def sampling(**values):
    """A tenth of the tokens end a gist, so that gists of one context end at different steps."""
    return greedy(**{"do_sample": True, "top_k": 0, "eos_token_id": list(range(2, 42))} | values)


def pad_left(prompts):
    """Ids and mask of shape `(rows, longest prompt)`."""
    rows = [torch.tensor(prompt, device=DEVICE) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=PAD, padding_side="left")
    return ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")


def padded_gists(model, prompts, config):
    ids, mask = pad_left(prompts)
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]


@pytest.fixture
def one_way_to_draw(monkeypatch):
    """`generate` draws as `sample_gists` does: a seed then gives both the same gists."""
    monkeypatch.setattr(torch, "multinomial", lambda probs, num_samples: _draw(probs.log()).unsqueeze(1))


def both_ways(model, prompts, config):
    """Gists of one seed: side by side, and from the padded batch."""
    torch.manual_seed(3)
    side_by_side = sample_gists(model, prompts, config, PAD)
    torch.manual_seed(3)
    return side_by_side, padded_gists(model, prompts, config)


# ---- The same tokens ----


def test_greedy_gists_equal_those_of_the_padded_batch(each_model):
    side_by_side, padded = both_ways(each_model, PROMPTS, greedy())
    assert padded.shape == (6, 12), "well past a window of 5"
    assert torch.equal(side_by_side, padded)


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_the_window_decides_gists(tokenizer, family):
    """Or the tests here would pass with windows ignored."""
    narrow, wide = (make_model(tokenizer, family=family, sliding_window=window) for window in (5, 100))
    assert (padded_gists(narrow, PROMPTS, greedy()) != padded_gists(wide, PROMPTS, greedy())).any(dim=1).all()


def test_sampled_gists_equal_those_of_the_padded_batch(each_model, one_way_to_draw):
    side_by_side, padded = both_ways(each_model, PROMPTS, sampling())
    assert len({tuple(gist) for gist in padded.tolist()}) == 6, "the gists of a context differ"
    ended = (padded == PAD).any(dim=1)
    assert ended.any() and not ended.all(), "some gists end early and some do not"
    assert torch.equal(side_by_side, padded)


def test_greedy_gists_that_end_early_are_padded_as_generate_does(each_model):
    unended = padded_gists(each_model, PROMPTS, greedy())
    config = greedy(eos_token_id=[unended[0, 2].item(), unended[3, 5].item()])
    side_by_side, padded = both_ways(each_model, PROMPTS, config)
    assert (padded[:3, 3:] == PAD).all() and (padded[3:5, 6:] == PAD).all()
    assert torch.equal(side_by_side, padded)


def test_sampling_stops_with_the_last_gist(tokenizer, one_way_to_draw):
    model = make_model(tokenizer, family="gemma3")
    side_by_side, padded = both_ways(model, PROMPTS, sampling(eos_token_id=list(range(2, 150))))
    assert 2 < padded.shape[1] < 12
    assert torch.equal(side_by_side, padded)


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param([LONG], id="one gist"),
        pytest.param([LONG] * 5, id="one context"),
        pytest.param([SHORT, LONG, MIDDLE], id="groups of one"),
        pytest.param([LONG] * 2 + [SHORT] * 2 + [LONG] * 2, id="a context that comes back"),
        pytest.param([LONG] * 2 + [LONG[::-1]] * 3, id="prompts of one length"),
        pytest.param([SHORT] * 2 + [[PAD, *SHORT]] * 2, id="a prompt that starts with the padding token"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_any_grouping_gives_the_gists_of_the_padded_batch(tokenizer, one_way_to_draw, family, prompts):
    assert torch.equal(*both_ways(make_model(tokenizer, family=family), prompts, sampling()))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.3},
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"repetition_penalty": 3.0},
        {"min_new_tokens": 8},
        {"suppress_tokens": list(range(50, 300))},
    ],
    ids=lambda values: next(iter(values)),
)
def test_each_setting_of_generate_acts_as_on_the_padded_batch(tokenizer, one_way_to_draw, values):
    model = make_model(tokenizer, family="gemma3")
    side_by_side, padded = both_ways(model, PROMPTS, sampling(**values))
    assert torch.equal(side_by_side, padded)
    without, _ = both_ways(model, PROMPTS, sampling())
    assert not torch.equal(side_by_side, without), "the setting changes nothing here"


def test_sampling_the_most_likely_token_is_greedy(each_model):
    assert torch.equal(
        sample_gists(each_model, PROMPTS, sampling(top_k=1, eos_token_id=2), PAD),
        sample_gists(each_model, PROMPTS, greedy(), PAD),
    )


def test_a_context_is_read_once_and_then_a_token_of_each_gist(tokenizer):
    model, shapes = make_model(tokenizer), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sample_gists(model, PROMPTS, greedy(max_new_tokens=3), PAD)
    assert shapes == [(3, len(LONG)), (3, 3), (3, 3)], "three contexts, the largest with three gists"


# ---- The law ----
# 20,000 gists of two tokens for each of two prompts, from 16 tokens, against the probabilities of the padded model.

CONTEXTS, GISTS, VOCABULARY, EOS, TEMPERATURE = 400, 50, 16, 2, 0.6


def assert_follows(counts, probabilities):
    """Each count is within 5 standard errors of its expectation, and so is chi-square, their sum of squares. Cells that
    expect fewer than 10 are pooled: a normal distribution says nothing of them."""
    draws = counts.sum()
    rare = probabilities * draws < 10
    counts = torch.cat([counts[~rare], counts[rare].sum().view(1)]).double()
    probabilities = torch.cat([probabilities[~rare], probabilities[rare].sum().view(1)])
    expected = probabilities * draws
    assert torch.all((counts - expected).abs() <= 5 * (expected * (1 - probabilities)).sqrt() + 1e-9)
    freedom = len(counts) - 1
    chi_square = ((counts - expected) ** 2 / expected.clamp(min=1e-9)).sum()
    assert abs(chi_square - freedom) <= 5 * (2 * freedom) ** 0.5


def table(first_N, second_N):
    """How often each pair of tokens came."""
    return torch.bincount(first_N * VOCABULARY + second_N, minlength=VOCABULARY**2).view(VOCABULARY, VOCABULARY)


@pytest.fixture(scope="module")
def law(tokenizer):
    """For each prompt, the tokens drawn, of shape `(contexts, gists, 2)`, and the exact probability of each pair."""
    model = make_model(tokenizer, family="gemma3", vocab_size=VOCABULARY).eval()
    prompts = [[7, 8, 9, 10, 11, 12], [3, 4, 5]]
    config = sampling(max_new_tokens=2, temperature=TEMPERATURE, eos_token_id=EOS)
    torch.manual_seed(5)
    drawn = sample_gists(model, [prompt for prompt in prompts * CONTEXTS for _ in range(GISTS)], config, PAD)
    drawn = drawn.view(CONTEXTS, len(prompts), GISTS, 2).unbind(1)
    exact = []
    for prompt in prompts:
        rows = torch.tensor([[*prompt, first] for first in range(VOCABULARY)], device=DEVICE)
        with torch.no_grad():
            p_first_VV, p_second_VV = (model(rows).logits[:, -2:].double() / TEMPERATURE).softmax(-1).unbind(1)
        p_second_VV[EOS] = 0
        p_second_VV[EOS, PAD] = 1
        exact.append(p_first_VV[0, :, None] * p_second_VV)
    return list(zip(drawn, exact, strict=True))


def test_gists_are_drawn_with_the_probabilities_of_the_padded_model(law):
    for drawn, exact in law:
        assert_follows(table(*drawn.flatten(0, 1).unbind(1)), exact)


def test_gists_of_a_context_are_independent(law):
    for drawn, exact in law:
        for position, marginal in enumerate((exact.sum(1), exact.sum(0))):
            tokens = drawn[:, :, position]
            assert_follows(
                table(tokens[:, 0::2].flatten(), tokens[:, 1::2].flatten()), torch.outer(marginal, marginal)
            )


@pytest.mark.parametrize("level, drawn", [(0.0, 1), (0.2, 1), (0.3, 4), (1 - 2**-53, 4)])
def test_a_token_of_probability_zero_is_never_drawn(monkeypatch, level, drawn):
    scores = torch.tensor([[0, 0.25, 0, 0, 0.75, 0]]).log()
    monkeypatch.setattr(torch, "rand", lambda *shape, **kwargs: torch.full(shape, level, **kwargs))
    assert _draw(scores).tolist() == [drawn]


# ---- Ranks that wait for each other ----


# Where a model is sharded, a forward needs every rank: one whose gists have ended must go on to the last position.


def count_forwards(model):
    forwards = []
    model.register_forward_hook(lambda *args: forwards.append(1))
    return forwards


def test_a_rank_that_goes_on_for_the_others_writes_the_same_gists(tokenizer):
    model = make_model(tokenizer)
    config = greedy(eos_token_id=list(range(2, 300)))
    alone = sample_gists(model, PROMPTS, config, PAD)
    assert alone.shape[1] < 12, "all end early"
    forwards = count_forwards(model)
    ids, mask = pad_left(PROMPTS)
    synced = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        custom_generate=partial(_decode, synced_gpus=True),  # `generate` of transformers 5.23 drops its own
        prompt_mask=mask,
    )[:, ids.shape[1] :]
    assert len(forwards) == 12
    assert torch.equal(synced[:, : alone.shape[1]], alone)
    assert (synced[:, alone.shape[1] :] == PAD).all()


def test_a_sharded_model_takes_part_in_every_forward(tokenizer, monkeypatch):
    model = make_model(tokenizer)
    model._is_fsdp_managed_module = True  # what makes transformers 5.23 wait for other ranks, where there are any
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *args: 2)
    forwards = count_forwards(model)
    sample_gists(model, PROMPTS, greedy(eos_token_id=list(range(2, 300))), PAD)
    assert len(forwards) == 12


def test_probabilities_that_are_not_finite_are_an_error():
    with pytest.raises(FloatingPointError, match="nothing was sampled"):
        _draw(torch.full((2, 5), float("nan")))
