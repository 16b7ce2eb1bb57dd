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

"""The frozen reader: a small Llama trained from scratch to answer queries about strings, and its losses on gists."""

import math

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from research.rate_distortion.task import ANSWERS, PALINDROME, QUERIES, answer_distribution, draw_string


def make_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, hidden_size: int = 64, layers: int = 4
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Asker:
    """
    Asks a model all seven queries after prefixes of strings, in one forward. Each query is a branch of its own: it
    sees the prefix and itself, at the position after the prefix. The answers are those to each query alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.query_ids_Q = torch.tensor(tokenizer.convert_tokens_to_ids([f"?{query}" for query in QUERIES]))
        self.answer_ids_A = torch.tensor(tokenizer.convert_tokens_to_ids([f"={n}" for n in range(ANSWERS)]))

    def log_probs(self, model: LlamaForCausalLM, strings: list[str], lengths_NP: torch.Tensor) -> torch.Tensor:
        """
        Log-probs of the token after each prefix and query, of shape `(strings, prefixes, 7, vocabulary)`; `lengths_NP`
        holds the lengths of each string's prefixes.
        """
        width, queries = max(map(len, strings)), len(self.query_ids_Q)
        bits_NB = torch.tensor([[int(bit) for bit in bits.ljust(width, "0")] for bits in strings]).view(-1, width)
        rows, prefixes = lengths_NP.shape
        length_NK = lengths_NP.repeat_interleave(queries, dim=1)  # of the prefix before each query
        ids_NS = torch.cat([bits_NB, self.query_ids_Q.repeat(rows, prefixes)], dim=1)
        position_B = torch.arange(width)
        position_NS = torch.cat([position_B.expand(rows, -1), length_NK], dim=1)
        sees_bits_NSB = position_B < torch.cat([position_B.expand(rows, -1) + 1, length_NK], dim=1).unsqueeze(-1)
        sees_itself_SS = torch.eye(ids_NS.shape[1], dtype=torch.bool)
        sees_NSS = sees_itself_SS.repeat(rows, 1, 1)
        sees_NSS[..., :width] |= sees_bits_NSB
        hidden_NSH = model.model(
            input_ids=ids_NS, position_ids=position_NS, attention_mask=sees_NSS.unsqueeze(1), use_cache=False
        ).last_hidden_state
        return model.lm_head(hidden_NSH[:, width:]).log_softmax(-1).unflatten(1, (prefixes, queries))


def train_reader(
    tokenizer: PreTrainedTokenizerFast,
    lengths: range,
    excluded: set[str],
    steps: int,
    batch_size: int,
    prefixes: int,
    learning_rate: float,
    seed: int,
) -> LlamaForCausalLM:
    """
    Trains with the cross-entropy of all answers, after random prefixes of strings of the chain, which are strings of
    it themselves, but not those `excluded`. Half of the weight of the palindrome query is on strings forced to be one.
    """
    model, asker = make_model(tokenizer, seed), Asker(tokenizer)
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=0.01)

    def schedule(step):
        return min(1, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    bar = tqdm(range(steps), desc="Training the reader", unit=" steps", mininterval=1)
    for step in bar:
        strings = [draw_string(lengths[-1], False, generator) for _ in range(batch_size)]
        lengths_NP = torch.tensor(generator.choice(lengths, size=(batch_size, prefixes)))
        mirrored = [draw_string(int(generator.choice(lengths)), True, generator) for _ in range(batch_size // 3)]
        mirrored = [bits for bits in mirrored if bits not in excluded] or ["00"]
        loss_NPQ = answer_losses(model, asker, strings, lengths_NP, generator, excluded)
        forced_N1Q = answer_losses(model, asker, mirrored, torch.tensor([[len(bits)] for bits in mirrored]), generator)
        loss_NPQ[..., PALINDROME] = (loss_NPQ[..., PALINDROME] + forced_N1Q[..., PALINDROME].mean()) / 2
        loss_NPQ.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss_NPQ.mean().item():.3f}")
    return model.eval()


def answer_losses(model, asker, strings, lengths_NP, generator, excluded=frozenset()):
    """Cross-entropy of a drawn answer to every query after each prefix, 0 after those excluded, in nats."""
    prefixes = [[bits[:length] for length in row] for bits, row in zip(strings, lengths_NP.tolist(), strict=True)]
    cumulative_NPQA = np.array([[answer_distribution(bits) for bits in row] for row in prefixes]).cumsum(-1)
    drawn_NPQ = (cumulative_NPQA <= generator.random((*cumulative_NPQA.shape[:-1], 1))).sum(-1)
    drawn_ids_NPQ = asker.answer_ids_A[torch.tensor(drawn_NPQ.clip(max=ANSWERS - 1))]
    logps_NPQ = asker.log_probs(model, strings, lengths_NP).gather(-1, drawn_ids_NPQ.unsqueeze(-1)).squeeze(-1)
    kept_NP1 = torch.tensor([[bits not in excluded for bits in row] for row in prefixes]).unsqueeze(-1)
    return -logps_NPQ * kept_NP1


def losses(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, strings: list[str]) -> dict[str, np.ndarray]:
    """
    What the reader loses after each string, by query and true answer: arrays of shape `(strings, 7, 33)` of the
    log-loss in nats and of the 0/1 loss of the likeliest token.
    """
    asker, log_loss, error = Asker(tokenizer), [], []
    with torch.no_grad():
        for start in range(0, len(strings), 512):
            chunk = strings[start : start + 512]
            logps_NQV = asker.log_probs(model, chunk, torch.tensor([[len(bits)] for bits in chunk]))[:, 0].double()
            log_loss.append(-logps_NQV[..., asker.answer_ids_A])
            error.append((logps_NQV.argmax(-1, keepdim=True) != asker.answer_ids_A).double())
    return {"log_loss": torch.cat(log_loss).numpy(), "error": torch.cat(error).numpy()}
