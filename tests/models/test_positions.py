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

"""LongRoPE, as of Phi-3: a text is read and written on in a batch as it is alone, on either side of the length."""

import copy
import dataclasses
from contextlib import nullcontext

import pytest
import torch
from tiny_mixtures import make_phi3
from tiny_sessions import make_compactor
from transformers import GenerationConfig

from trl_gist import GistCompactor
from trl_gist.common.geometry import Geometry, WindowedText
from trl_gist.common.tokens import characters_of
from trl_gist.data.windows import PositionLimits
from trl_gist.evaluation.distance.teacher import full_context_hidden
from trl_gist.evaluation.tasks.readings import continuations_of_one
from trl_gist.inference.certify import hidden_states
from trl_gist.models.generation import generate
from trl_gist.models.positions import turn_each_row_alone, written_together
from trl_gist.models.roles import load_roles
from trl_gist.models.sampling import sample_gists
from trl_gist.models.shared_prefix import shared_prefix_log_probs
from trl_gist.prompts import GistPrompts
from trl_gist.scoring.targets import TargetRows, TargetScorer


LENGTH, NEW = 20, 6
# Short ones; those that end at the length and one beyond; one that becomes long at its first token; and long ones
PROMPTS = [
    [5 + (7 * row + place) % 200 for place in range(size)] for row, size in enumerate((3, 9, 14, 15, 20, 27, 40))
]


@pytest.fixture(scope="module")
def pair():
    return make_compactor()


@pytest.fixture
def model(pair):
    return make_phi3(pair.tokenizer, length=LENGTH).double().eval()


def test_prompts_that_become_long_are_written_on_by_themselves(model):
    lengths = list(map(len, PROMPTS))
    assert written_together(model.config, lengths, NEW) == [[0, 1, 2, 5, 6], [3], [4]]
    assert written_together(model.config, [15, 15], NEW) == [[0, 1]]
    assert written_together(model.config, [20, 16], NEW) == [[0], [1]]


def test_a_batch_is_written_on_as_its_prompts_one_by_one(model, pair):
    together, logits_TNV = generate(model, pair.tokenizer, PROMPTS, NEW, output_logits=True)
    for row, prompt in enumerate(PROMPTS):
        (alone,), logits_T1V = generate(model, pair.tokenizer, [prompt], NEW, output_logits=True)
        assert together[row] == alone
        for step in range(len(alone)):
            torch.testing.assert_close(logits_TNV[step][row], logits_T1V[step][0], atol=1e-9, rtol=0)


def test_gists_of_a_batch_are_those_of_its_contexts_one_by_one(pair):
    length = LENGTH + pair.prompts.summarizer_overhead(6)
    models = (make_phi3(pair.tokenizer, seed, length).double().eval() for seed in (0, 1))
    compactor = GistCompactor(*models, pair.tokenizer, dataclasses.replace(pair.pair, context_length=64))
    contexts = [prompt + prompt for prompt in PROMPTS[:5]]
    for context, gist in zip(contexts, compactor.compress_batch(contexts, last_k=[[]] * 5), strict=True):
        alone = compactor.compress(context, last_k=[])
        assert gist.token_ids == alone.token_ids
        assert gist.log_prob == pytest.approx(alone.log_prob, abs=1e-9)


def test_targets_of_a_batch_are_scored_as_one_by_one(model):
    targets = [[[], [9, 8, 7]], [[6, 6], [50, 51]]]
    for several in (targets[:1], targets):

        def scores(prompts, several=several):
            rows = TargetRows.of_several(prompts, [several] * len(prompts), 1, "cpu")
            return TargetScorer(model)(rows)[0]

        for row, logps_T in enumerate(scores(PROMPTS)):
            torch.testing.assert_close(logps_T, scores(PROMPTS[row : row + 1])[0], atol=1e-9, rtol=0)


# ---- What is read in pieces, or is gone on with from a cache ----


def read_at_once(model, ids, last):
    """The last hidden states of a text, read by itself."""
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -last:]


def test_continuations_are_certified_as_texts_that_are_read_at_once(model):
    targets = [[9, 8, 7, 6, 5, 4], [50, 51]]
    for prompt in PROMPTS:
        for states_TH, target in zip(hidden_states(model, [prompt], targets), targets, strict=True):
            expected_TH = read_at_once(model, [*prompt, *target[:-1]], len(target))
            torch.testing.assert_close(states_TH[: len(target)], expected_TH, atol=1e-9, rtol=0)


def test_the_full_context_of_a_walk_is_as_read_at_once(model, pair):
    geometry, ids = Geometry(32, 6, 3, 4), [*PROMPTS[6], *PROMPTS[5]]
    document = WindowedText(ids, geometry, characters_of(pair.tokenizer))
    windows = geometry.windows(len(ids))
    hidden = full_context_hidden(TargetScorer(model), pair.prompts, document, windows)
    assert len(hidden) == windows > 8
    for window, states_TH in enumerate(hidden):
        text = pair.prompts.plain(ids)[: len(pair.prompts.bos) + document.end(window) - 1]
        torch.testing.assert_close(states_TH, read_at_once(model, text, len(states_TH)), atol=1e-9, rtol=0)


def test_answers_after_one_reading_are_those_of_a_reading_each(model, pair, monkeypatch):
    monkeypatch.setattr("trl_gist.evaluation.tasks.readings._PIECE", 8)
    for start in PROMPTS:
        prompts = [[*start, *cue] for cue in ([7], [9, 8], [7, 6, 5, 4, 3, 2, 9, 8])]
        alone = [generate(model, pair.tokenizer, [prompt], NEW)[0][0] for prompt in prompts]
        assert continuations_of_one(model, pair.tokenizer, start, prompts, NEW) == alone


def test_gists_are_sampled_side_by_side_as_alone(model):
    turn_each_row_alone(model)
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=2, pad_token_id=0)
    together = sample_gists(model, PROMPTS, config, 0)
    for prompt, gist in zip(PROMPTS, together, strict=True):
        alone = sample_gists(model, [prompt], config, 0)[0]
        assert gist[: len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize("size", [9, 14, 15, 20, 21, 27])
def test_a_context_is_refused_where_its_gists_are_not_sampled_as_they_are_trained(model, pair, size):
    tokenizer = copy.deepcopy(pair.tokenizer)
    tokenizer.chat_template = None
    prompts = GistPrompts.from_tokenizer(tokenizer, "{context}")
    assert prompts.summarizer_overhead(NEW) == 0
    context, steps = [5 + (7 * size + place) % 200 for place in range(size)], []
    turn_each_row_alone(model)
    hook = model.lm_head.register_forward_hook(lambda *args: steps.append(args[-1][0, -1]))
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=2, pad_token_id=0)
    gist_1C = sample_gists(model, [context], config, 0)
    hook.remove()
    sampled_1C = torch.stack(steps).log_softmax(-1).gather(1, gist_1C.T).T
    ids = torch.tensor([context]), torch.ones(1, size, dtype=torch.long), gist_1C, torch.ones_like(gist_1C)
    trained_1C, _ = shared_prefix_log_probs(model, model, *ids, temperature=1.0)
    alike = gist_1C.shape == (1, NEW) and torch.allclose(sampled_1C, trained_1C, atol=1e-9, rtol=0)
    limits = PositionLimits.from_positions(None, None, None, prompts, NEW, sampled_alike=LENGTH)
    message = r"Row 0 gives the summarizer \d+ tokens, .* \(20\) while it writes.* at most 14 .* or at least 21"
    with nullcontext() if alike else pytest.raises(ValueError, match=message):
        limits.check({"context_ids": context, "last_k_ids": [], "target_ids": [5]}, "Row 0")


def test_rows_that_only_a_mask_pads_are_read_as_alone(model):
    """As TRL (1.16) scores rows of gists that cannot share their context's."""
    turn_each_row_alone(model)
    width = len(PROMPTS[-1])
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    together = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for prompt, logits in zip(PROMPTS, together, strict=True):
        alone = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
        torch.testing.assert_close(logits[-len(prompt) :], alone, atol=1e-9, rtol=0)


def test_the_roles_of_a_run_are_copies_that_do_the_same(model):
    roles = load_roles(model, None, None, share_base=True)
    ids = torch.tensor([PROMPTS[1] + [0] * 18, PROMPTS[5]])
    positions = torch.stack([torch.arange(27).clamp(max=8), torch.arange(27)])
    for role in vars(roles).values():
        logits = role(input_ids=ids, position_ids=positions, use_cache=False).logits
        alone = role(input_ids=ids[:1, :9], use_cache=False).logits
        torch.testing.assert_close(logits[:1, :9], alone, atol=1e-9, rtol=0)


def test_other_models_are_left_as_they_are(pair):
    turn_each_row_alone(pair.summarizer)
    assert not any(hasattr(module, "turns_each_row_alone") for module in pair.summarizer.modules())
