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

"""
Scores, rewards, advantages and both gradients against a reference written here, plainly, in float64.

The reference shares no code with trl_gist: it reads one unpadded row at a time through the whole model and its LM head,
assembles prompts from the tokenizer itself, and puts adapters on the base weights as W + scale · B A.
"""

from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import DEVICE, make_model, make_tokenizer
from torch.func import functional_call
from transformers import TrainerCallback

from trl_gist import length_penalty, log_prob_gain
from trl_gist.trainer.config_checks import DISTILLATION_LOSSES


TOLERANCE = 1e-6
TEMPERATURE, PENALTY = 0.8, 0.02
LORA_SCALE = 8 / 4  # lora_alpha / r
PAD, BOS, EOS, IM_START, IM_END = range(5)
CONTEXTS, GISTS_EACH = 3, 4

# Four gists of each of three contexts: uneven, empty, with special tokens inside, cut at the length limit
COMPLETIONS = [
    [40, 41, 42, EOS],
    [EOS],
    [50, IM_START, 51, BOS, 52, EOS],
    [60, 61, 62, 63, 64, 65, 66, 67],
    [EOS],
    [70, EOS],
    [PAD, 71, EOS],
    [72, 73, 74, 75, 76, EOS],
    [80, 81, 82, 83, 84, 85, 86, 87],
    [88, EOS],
    [IM_END, EOS],
    [90, 91, 92, EOS],
]


# ---- The reference ----


class ReferenceModel:
    """A causal language model over leaf tensors copied from a role."""

    def __init__(self, role):
        self.leaves = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in role.named_parameters()}
        self.skeleton = make_model(make_tokenizer(), dtype=torch.float64)

    def weights(self):
        merged = {}
        for name, leaf in self.leaves.items():
            plain = name.replace("base_model.model.", "").replace(".base_layer", "")
            if "lora_" in name:
                continue
            down, up = (name.replace("base_layer", f"lora_{half}.default") for half in "AB")
            adapted = ".base_layer" in name
            merged[plain] = leaf + LORA_SCALE * self.leaves[up] @ self.leaves[down] if adapted else leaf
        return merged

    def log_probs(self, prompt, target, temperature=1.0):
        """log p(· | prompt, target so far) at each target token, over the vocabulary."""
        ids = torch.tensor([prompt + target], device=DEVICE)
        logits = functional_call(self.skeleton, self.weights(), kwargs={"input_ids": ids})
        return (logits.logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)

    def gradients(self, loss):
        names = [name for name, leaf in self.leaves.items() if leaf.requires_grad]
        return dict(zip(names, torch.autograd.grad(loss, [self.leaves[name] for name in names]), strict=True))


def pick(log_probs, target):
    return log_probs[range(len(target)), target]


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def generator_prompt(tokenizer, gist, last_k):
    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False)

    words = [token for token in gist if token > IM_END]  # G never reads a special token
    return ids("GIST:") + words + ids("\nLAST K TOKENS:") + last_k


def teacher_prompt(context, last_k):
    """Last tokens that are not the context's own follow it, as a question its passage."""
    return context if context[-len(last_k) :] == last_k else context + last_k


def summarizer_prompt(tokenizer, context):
    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False)

    before = (
        "<|im_start|>user\nCompress the text below into a short gist that lets someone who sees only the gist predict "
        "how the text goes on. Keep names, numbers and key terms. Write no full sentences.\n\n"
    )
    return ids(before) + context + ids("\n\nGist:<|im_end|>\n<|im_start|>assistant\n")


def written(completion):
    """The gist: every token up to EOS."""
    return completion[: completion.index(EOS)] if EOS in completion else completion


# ---- The trainer ----


@dataclass
class Step:
    """One training step: the roles as they were before it, and what the trainer computed."""

    tokenizer: object
    summarizer: ReferenceModel
    generator: ReferenceModel
    teacher: ReferenceModel
    columns: dict
    advantages: torch.Tensor
    summarizer_grads: dict
    generator_grads: dict

    @property
    def rows(self):
        names = ("context_ids", "last_k_ids", "target_ids")
        return zip(*(self.columns[name] for name in names), COMPLETIONS, strict=True)

    def column(self, name):
        return torch.tensor(self.columns[name], dtype=torch.float64)


def ready_windows():
    """Contexts, last tokens and targets of different lengths; the last tokens of the second are its context's own."""
    random = torch.Generator().manual_seed(3)

    def ids(length):
        return torch.randint(5, 300, (length,), generator=random).tolist()

    columns = {"context": (30, 17, 23), "last_k": (4, 9, 1), "target": (7, 1, 50)}
    windows = {name: [ids(length) for length in lengths] for name, lengths in columns.items()}
    windows["last_k"][1] = windows["context"][1][-9:]
    return Dataset.from_dict(windows)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def train_one_step(make_trainer, tokenizer, monkeypatch):
    def train(lora: bool, **args) -> Step:
        seen = {}

        def record(**columns):
            seen["columns"] = columns
            return [0.0] * len(columns["gist_ids"])

        class RecordGradients(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
                seen["summarizer_grads"] = gradients(model)

        roles = [make_model(tokenizer, seed=seed, dtype=torch.float64) for seed in range(3)]
        trainer = make_trainer(
            model=roles[0],
            # With LoRA all three stand on one base; without, each has weights of its own
            generator=None if lora else roles[1],
            teacher=None if lora else roles[2],
            train_dataset=ready_windows(),
            processing_class=tokenizer,
            reward_funcs=[log_prob_gain, length_penalty, record],
            peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if lora else None,
            callbacks=[RecordGradients()],
            args={
                "per_device_train_batch_size": CONTEXTS * GISTS_EACH,
                "num_generations": GISTS_EACH,
                "max_completion_length": 8,
                "max_steps": 1,
                "max_grad_norm": 0.0,
                "score_batch_size": 5,
                "temperature": TEMPERATURE,
                "length_penalty": PENALTY,
                **args,
            },
        )
        for model in (trainer.model, trainer.generator):
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zero at first, so that A would have no gradient and S, G and T would be one
                    torch.nn.init.normal_(parameter, std=0.1)
        before = [ReferenceModel(model) for model in (trainer.model, trainer.generator, trainer.teacher)]

        def step_of_generator():
            seen["generator_grads"] = gradients(trainer.generator)
            return step()

        def calculate_loss(model, inputs):
            seen.setdefault("advantages", []).append(inputs["advantages"])
            return compute_loss(model, inputs)

        step, compute_loss = trainer.generator_trainer.step, trainer._compute_loss
        monkeypatch.setattr(trainer.generator_trainer, "step", step_of_generator)
        monkeypatch.setattr(trainer, "_compute_loss", calculate_loss)
        monkeypatch.setattr(trainer.rollout, "write", lambda *args: (COMPLETIONS, None))
        # TRL shuffles the rows of a rollout before the policy loss; the reference takes them as they come
        monkeypatch.setattr("trl.trainer.grpo_trainer.shuffle_sequence_dict", lambda batch: batch)
        trainer.train()
        return Step(tokenizer, *before, **{**seen, "advantages": torch.cat(seen["advantages"])})

    return train


def assert_close(actual, expected):
    torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=0, atol=TOLERANCE, check_dtype=False)


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert norm > 1e-3
    for name in expected:
        error = (actual[name] - expected[name]).norm() / norm
        assert error < TOLERANCE, f"{name}: {error}"


both_ways = pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])


@both_ways
def test_scores_and_rewards_equal_the_reference(train_one_step, lora):
    step = train_one_step(lora)
    expected = {name: [] for name in step.columns if "log_prob" in name or "kl" in name}
    with torch.no_grad():
        for context, last_k, target, completion in step.rows:
            log_p = step.teacher.log_probs(teacher_prompt(context, last_k), target)
            log_null = step.generator.log_probs(generator_prompt(step.tokenizer, [], last_k), target)
            prompt = generator_prompt(step.tokenizer, written(completion), last_k)
            log_gist = step.generator.log_probs(prompt, target)
            row = {
                "gist_log_prob": pick(log_gist, target).mean(),
                "null_log_prob": pick(log_null, target).mean(),
                "teacher_log_prob": pick(log_p, target).mean(),
                "log_prob_gain": (pick(log_gist, target) - pick(log_null, target)).mean(),
                "teacher_kl": kl(log_p, log_gist).mean(),
                "null_teacher_kl": kl(log_p, log_null).mean(),
                "kl_gain": (kl(log_p, log_null) - kl(log_p, log_gist)).mean(),
                "token_log_prob_gains": pick(log_gist, target) - pick(log_null, target),
                "token_kl_gains": kl(log_p, log_null) - kl(log_p, log_gist),
                **dict.fromkeys(("later_log_prob_gain", "later_kl_gain"), torch.zeros((), dtype=torch.float64)),
            }
            for name, value in row.items():
                expected[name].append(value)
    for name in ("token_log_prob_gains", "token_kl_gains"):
        for row, values in zip(step.columns[name], expected.pop(name), strict=True):
            assert_close(torch.tensor(row), values)
    for name, values in expected.items():
        assert_close(step.column(name), torch.stack(values))
    assert step.columns["gist_ids"] == [written(completion) for completion in COMPLETIONS]
    assert step.columns["gist_length"] == [3, 0, 5, 8, 0, 1, 2, 5, 8, 1, 1, 3]
    # An empty gist buys nothing, and neither does one of special tokens, which G never sees; they differ in length only
    for row in (1, 4, 10):
        assert abs(step.columns["log_prob_gain"][row]) < 1e-12
    spread = step.column("log_prob_gain").std()
    assert spread > 0.01, "gists must differ in value, or the comparison says nothing"


@both_ways
@pytest.mark.parametrize(
    ("advantage", "micro_batches"),
    [("group", 1), ("reward", 1), ("group", 2), ("group", 4)],  # of six and three rows: groups of four are cut apart
)
def test_advantages_and_policy_gradient_equal_the_reference(train_one_step, lora, advantage, micro_batches):
    step = train_one_step(
        lora,
        advantage=advantage,
        per_device_train_batch_size=CONTEXTS * GISTS_EACH // micro_batches,
        gradient_accumulation_steps=micro_batches,
    )
    rewards = step.column("log_prob_gain") - PENALTY * step.column("gist_length")
    if advantage == "group":
        groups = rewards.view(CONTEXTS, GISTS_EACH)
        groups = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        expected = groups.flatten()
    else:
        expected = rewards
    assert_close(step.advantages, expected)

    tokens = sum(map(len, COMPLETIONS))  # the end-of-sequence token is an action too
    loss = 0
    for (context, _, _, completion), weight in zip(step.rows, expected, strict=True):
        prompt = summarizer_prompt(step.tokenizer, context)
        loss -= weight * pick(step.summarizer.log_probs(prompt, completion, TEMPERATURE), completion).sum() / tokens
    assert_same_gradients(step.summarizer_grads, step.summarizer.gradients(loss))


@both_ways
@pytest.mark.parametrize("gist_dropout", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("distillation_loss", DISTILLATION_LOSSES)
def test_distillation_gradient_equals_the_reference(train_one_step, lora, distillation_loss, gist_dropout):
    step = train_one_step(lora, distillation_loss=distillation_loss, gist_dropout=gist_dropout)
    tokens = sum(map(len, step.columns["target_ids"]))
    loss = 0
    for context, last_k, target, completion in step.rows:
        for share, gist in ((1 - gist_dropout, written(completion)), (gist_dropout, [])):
            log_q = step.generator.log_probs(generator_prompt(step.tokenizer, gist, last_k), target)
            with torch.no_grad():
                log_p = step.teacher.log_probs(teacher_prompt(context, last_k), target)
            losses = {
                "forward_kl": kl(log_p, log_q),
                "cross_entropy": -pick(log_q, target),
            }
            loss += share * losses[distillation_loss].sum() / tokens
    assert_same_gradients(step.generator_grads, step.generator.gradients(loss))


@both_ways
def test_gradient_checkpointing_changes_no_gradient(train_one_step, lora):
    plain, recomputed = (train_one_step(lora, gradient_checkpointing=recompute) for recompute in (False, True))
    assert_same_gradients(recomputed.summarizer_grads, plain.summarizer_grads)
    assert_same_gradients(recomputed.generator_grads, plain.generator_grads)
