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
The whole method with no Trainer, to read and to change: sample gists, score them, train S by GRPO, G by distillation.

`GistTrainer` does the same, with groups sharing one forward, checkpoints, data parallelism and evaluation.
Rows are one at a time here, so that there is no padding, no mask and nothing to hide a mistake in.

python -m examples.minimal_loop --model FOLDER_OR_NAME --texts my/*.txt        not run yet
python -m examples.minimal_loop     the demo's model and articles, 80 seconds of a core a step; three steps have been run

    step 1: reward +0.016, KL(T‖G) 0.627, 23.4 tokens a gist
    step 2: reward +0.091, KL(T‖G) 0.397, 22.8 tokens a gist
    step 3: reward +0.042, KL(T‖G) 0.240, 19.8 tokens a gist
"""

import argparse
import copy

from trl_gist.cli.flags import text_file
from trl_gist.prompts import SUMMARIZER_PROMPT, GistPrompts, gist_from_completion

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


X, Y, K, MAX_GIST = 128, 32, 16, 24  # tokens of a context, of its target and its last k, and the most of a gist
GISTS, DOCUMENTS = 4, 4  # gists of a context, contexts of a step
LAMBDA, GIST_DROPOUT, TEMPERATURE = 1e-4, 0.1, 0.7


def target_log_probs_TV(model, prompt_ids, target_ids):
    """Log-probabilities over the vocabulary at each position of the target, given the prompt."""
    logits_SV = model(input_ids=torch.tensor([prompt_ids + target_ids])).logits[0]
    return logits_SV[len(prompt_ids) - 1 : -1].float().log_softmax(-1)


def kl_divergence(log_p_TV, log_q_TV):
    """KL(p ‖ q), full vocabulary, mean over the target's positions, in nats."""
    return (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1).mean()


def sample_gist(summarizer, prompt_ids, tokenizer):
    """A completion of the summarizer, through its end-of-sequence token."""
    with torch.no_grad():
        ids = torch.tensor([prompt_ids])
        out = summarizer.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_GIST, do_sample=True, top_k=0,
            temperature=TEMPERATURE, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    completion = out[0, len(prompt_ids) :].tolist()
    return completion[: len(gist_from_completion(completion, [tokenizer.eos_token_id])) + 1]


def score_and_distill(generator, teacher, prompts, window, gists, weight):
    """
    Rewards of a context's gists, KL(T‖G(·|L)) − KL(T‖G(·|Z,L)) − λ|Z|, and its KLs. The forwards that give the rewards
    also leave `weight` × the gradient of the distillation loss on the generator.
    """
    context, last_k, target = window["context_ids"], window["last_k_ids"], window["target_ids"]
    with torch.no_grad():
        teacher_TV = target_log_probs_TV(teacher, prompts.teacher(context, last_k), target)  # once per context
    null_TV = target_log_probs_TV(generator, prompts.generator([], last_k), target)  # once per context
    null_kl = kl_divergence(teacher_TV, null_TV)
    (weight * GIST_DROPOUT * null_kl).backward()
    rewards, kls = [], []
    for gist in gists:
        log_q_TV = target_log_probs_TV(generator, prompts.generator(gist, last_k), target)
        kl = kl_divergence(teacher_TV, log_q_TV)
        (weight * (1 - GIST_DROPOUT) / len(gists) * kl).backward()
        rewards.append((null_kl - kl).item() - LAMBDA * len(gist))
        kls.append(kl.item())
    return rewards, kls


def policy_loss(summarizer, prompt_ids, completion_ids, advantage, tokens_in_rollout):
    """On-policy, the clipped ratio is 1 and its gradient is that of log π: minus advantage × log π, per token."""
    logits_SV = summarizer(input_ids=torch.tensor([prompt_ids + completion_ids])).logits[0].float() / TEMPERATURE
    log_p_CV = logits_SV[len(prompt_ids) - 1 : -1].log_softmax(-1)
    log_p_C = log_p_CV.gather(-1, torch.tensor(completion_ids).unsqueeze(-1))
    return -advantage * log_p_C.sum() / tokens_in_rollout


def train_step(summarizer, generator, teacher, prompts, tokenizer, windows, optimizers):
    """One step of both models on some windows. Returns the mean reward, KL(T‖G) and gist length."""
    rollout = []
    for window in windows:
        prompt = prompts.summarizer(window["context_ids"])
        completions = [sample_gist(summarizer, prompt, tokenizer) for _ in range(GISTS)]
        gists = [gist_from_completion(ids, [tokenizer.eos_token_id]) for ids in completions]
        rewards, kls = score_and_distill(generator, teacher, prompts, window, gists, weight=1 / len(windows))
        rollout.append((prompt, completions, gists, torch.tensor(rewards), kls))
    tokens = sum(len(ids) for _, completions, *_ in rollout for ids in completions)
    for prompt, completions, _, rewards, _ in rollout:
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)  # against the other gists of the context
        for completion, advantage in zip(completions, advantages, strict=True):
            policy_loss(summarizer, prompt, completion, advantage, tokens).backward()
    for model, optimizer in zip((summarizer, generator), optimizers, strict=True):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    _, _, gists, rewards, kls = zip(*rollout, strict=True)
    lengths = torch.tensor([float(len(gist)) for group in gists for gist in group])
    return tuple(values.mean().item() for values in (torch.cat(rewards), torch.tensor(kls), lengths))


def main(checkpoint, texts, steps):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompts = GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT)
    teacher = AutoModelForCausalLM.from_pretrained(checkpoint).requires_grad_(False)
    # Two more module trees over the same parameters, each with its own adapter
    memo = {id(parameter): parameter for parameter in teacher.parameters()}
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    summarizer, generator = (get_peft_model(copy.deepcopy(teacher, dict(memo)), lora) for _ in range(2))
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
        for model, lr in ((summarizer, 1e-4), (generator, 5e-4))
    ]
    windows = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        for start in range(0, len(ids) - X - Y, X + Y):
            context, target = ids[start : start + X], ids[start + X : start + X + Y]
            windows.append({"context_ids": context, "last_k_ids": context[-K:], "target_ids": target})
    if not windows:
        raise SystemExit(
            f"No text has the {X + Y + 1} tokens of a window: give longer files in --texts, or lower X or Y."
        )
    for step in range(steps):
        batch = [windows[index] for index in torch.randint(len(windows), (DOCUMENTS,)).tolist()]
        reward, kl, length = train_step(summarizer, generator, teacher, prompts, tokenizer, batch, optimizers)
        print(f"step {step + 1}: reward {reward:+.3f}, KL(T‖G) {kl:.3f}, {length:.1f} tokens a gist", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, or name on the Hub (default: the demo's)")
    parser.add_argument("--texts", nargs="+", type=text_file, help="files of over 160 tokens (default: the demo's)")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    if not (args.model and args.texts):
        from examples.demo_assets import smollm2_checkpoint, split_articles
    main(args.model or smollm2_checkpoint(), args.texts or split_articles()[0]["text"], args.steps)
