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

"""Closed-form gradients against autograd through the whole vocabulary, in float64."""

from functools import partial

import pytest
import torch
from tiny import DEVICE, make_model

from trl_gist.models import lm_head
from trl_gist.models.lm_head import output_logits, target_scores, token_log_probs
from trl_gist.trainer.config_checks import DISTILLATION_LOSSES


@pytest.fixture(params=["frozen head", "trained head"])
def base(request, tokenizer):
    model = make_model(tokenizer, dtype=torch.float64)
    model.get_output_embeddings().requires_grad_(request.param == "trained head")
    return model


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def tokens_from(first, count):
    return torch.arange(first, first + count, device=DEVICE)


def gradients(base, hidden, loss):
    trained = [p for p in base.get_output_embeddings().parameters() if p.requires_grad]
    return torch.autograd.grad(loss, [hidden, *trained], retain_graph=True)


def check_same(base, hidden, ours, expected, weights):
    assert torch.allclose(ours, expected, atol=1e-10)
    found, wanted = (gradients(base, hidden, (scores * weights).sum()) for scores in (ours, expected))
    for gradient, reference in zip(found, wanted, strict=True):
        assert torch.allclose(gradient, reference, atol=1e-10)


def kl_of(log_p, log_q):
    """KL over one vocabulary, by the textbook; log_p may be −inf where the model alone has a token."""
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(-1)


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 128])
@pytest.mark.parametrize("loss", DISTILLATION_LOSSES)
@pytest.mark.parametrize("teacher_vocabulary", [-3, 0, 3], ids=["narrower teacher", "same", "wider teacher"])
def test_target_scores(monkeypatch, base, rows_per_chunk, loss, teacher_vocabulary):
    monkeypatch.setattr(lm_head, "_ROWS_PER_CHUNK", rows_per_chunk)
    positions, gists, vocabulary = 5, 3, base.config.vocab_size
    hidden = draw(positions, gists, 32).requires_grad_()
    targets = tokens_from(11, positions)
    log_p = (3 * draw(positions, vocabulary + teacher_vocabulary, seed=1)).log_softmax(-1)
    arguments = (
        base,
        hidden,
        targets,
        lambda index: log_p[index[:, 0].long()],
        torch.arange(5.0, device=DEVICE)[:, None],
    )
    logps, kl, losses, greedy = target_scores(*arguments, loss, greedy=True)

    log_q = output_logits(base, hidden).log_softmax(-1)
    padding = torch.full((positions, max(0, -teacher_vocabulary)), -torch.inf, device=DEVICE)
    log_p_of_model = torch.cat([log_p[:, :vocabulary], padding], dim=-1)[:, None].expand_as(log_q)
    expected = {"forward_kl": kl_of(log_p_of_model, log_q)}
    expected_logps = log_q.gather(-1, targets.view(-1, 1, 1).expand(-1, gists, 1)).squeeze(-1)
    expected["cross_entropy"] = -expected_logps
    check_same(base, hidden, losses, expected[loss], draw(positions, gists, seed=2))
    assert torch.equal(greedy, (log_q.argmax(-1) == targets[:, None]).to(greedy)) and not greedy.requires_grad
    without = target_scores(*arguments, loss)
    assert len(without) == 3 and all(
        torch.equal(one, other) for one, other in zip(without, (logps, kl, losses), strict=True)
    )
    # The measures are the same under every loss, and never differentiated
    with torch.no_grad():
        undifferentiated = target_scores(*arguments)
    for measure, also, reference in zip(
        (logps, kl), undifferentiated, (expected_logps, expected["forward_kl"]), strict=False
    ):
        assert torch.allclose(measure, reference, atol=1e-10) and torch.allclose(also, reference, atol=1e-10)
        assert not measure.requires_grad


@pytest.mark.parametrize("padding", [0, 8], ids=["same vocabulary", "model's head padded"])
def test_the_divergence_falls_to_zero_at_the_teacher(padding):
    """From a model that puts some of its probability on tokens that the teacher does not have."""
    log_p = draw(1, 30, seed=1).log_softmax(-1)
    logits = draw(1, 1, 30 + padding, seed=2).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    score = partial(lm_head._distillation_scores, "forward_kl", False, lambda _: log_p)
    values = []
    for _ in range(200):
        _, _, value = lm_head._FromLogits.apply(score, logits, tokens_from(11, 1), logits.new_zeros(1, 1))
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.step()
        values.append(value.item())
    assert values[0] > 0.1 and min(values) > -1e-12 and values[-1] < 2e-3
    assert torch.allclose(logits.softmax(-1)[0, 0, :30], log_p[0].exp(), atol=5e-3)


@pytest.mark.parametrize("differentiable_entropies", [True, False])
def test_token_log_probs_and_entropies(monkeypatch, base, differentiable_entropies):
    monkeypatch.setattr(lm_head, "_ROWS_PER_CHUNK", 4)
    hidden, tokens = draw(6, 32).requires_grad_(), tokens_from(20, 6)
    logps, entropies = token_log_probs(base, hidden, tokens, 0.7, differentiable_entropies)
    log_p = (output_logits(base, hidden) / 0.7).log_softmax(-1)
    expected = log_p.gather(-1, tokens[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)
    check_same(base, hidden, logps, expected[0], draw(6, seed=1))
    assert torch.allclose(entropies, expected[1], atol=1e-10)
    assert entropies.requires_grad == differentiable_entropies
    if differentiable_entropies:
        both = (logps * draw(6, seed=1) + entropies * draw(6, seed=2)).sum()
        wanted = (expected[0] * draw(6, seed=1) + expected[1] * draw(6, seed=2)).sum()
        for gradient, reference in zip(gradients(base, hidden, both), gradients(base, hidden, wanted), strict=True):
            assert torch.allclose(gradient, reference, atol=1e-10)


@pytest.mark.parametrize(
    "name, value", [("final_logit_softcapping", 2.0), ("logit_scale", 0.5), ("logits_scaling", 3.0)]
)
def test_gradients_pass_through_scaled_and_capped_logits(base, name, value):
    setattr(base.config, name, value)
    hidden, tokens = draw(6, 32).requires_grad_(), tokens_from(20, 6)
    logps, _ = token_log_probs(base, hidden, tokens, 1.0)
    expected = output_logits(base, hidden).log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    check_same(base, hidden, logps, expected, draw(6, seed=1))
