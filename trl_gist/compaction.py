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

import functools
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .generation import generate
from .pair import GENERATOR_DIR, PairConfig
from .pair_loading import HalfLoader, local_directory
from .prompts import GistPrompts
from .session_files import pair_fingerprint


if TYPE_CHECKING:
    from .session import Session


@dataclass(frozen=True)
class Gist:
    """
    A gist and what it cost.

    Attributes:
        text (`str`):
            The gist as text, without special tokens.
        token_ids (`list[int]`):
            Every token the summarizer wrote up to, not including, its end-of-sequence token.
        log_prob (`float`):
            Log-prob of these tokens under the summarizer at temperature 1, summed, in nats.
        context_tokens (`int`):
            Tokens of the context, |X|.
        gist_rate (`float`):
            |Z| / |X|.
        total_rate (`float`):
            (|Z| + |L| + template) / |X|: all that the generator reads against the context it stands for.
    """

    text: str
    token_ids: list[int]
    log_prob: float
    context_tokens: int
    gist_rate: float
    total_rate: float


@dataclass(frozen=True)
class Continuation:
    """
    What the generator wrote.

    Attributes:
        text (`str`):
            The continuation as text, without special tokens.
        token_ids (`list[int]`):
            Its tokens up to, not including, the end-of-sequence token.
        gist ([`Gist`] or `str`):
            The gist it was written from; its `context_tokens` says how much of the text it stands for.
    """

    text: str
    token_ids: list[int]
    gist: Gist | str


class GistCompactor:
    """
    A trained pair at inference: the summarizer compresses contexts, the generator continues from the gists.

    Example:

    ```python
    from trl_gist import GistCompactor

    compactor = GistCompactor.from_pretrained("smollm2-gist")
    gist = compactor.compress(text)
    print(gist.text, gist.total_rate)
    print(compactor.continue_text(text, max_new_tokens=64).text)
    ```

    Args:
        summarizer, generator ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The two models, in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Their tokenizer.
        pair ([`~pair.PairConfig`]):
            The window they were trained on.
    """

    def __init__(
        self,
        summarizer: PreTrainedModel | PeftModel,
        generator: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        pair: PairConfig,
    ):
        self.summarizer = summarizer
        self.generator = generator
        self.tokenizer = tokenizer
        self.pair = pair
        self.prompts = GistPrompts.from_tokenizer(
            tokenizer, pair.summarizer_prompt, pair.tail_length, pair.generator_prompt
        )
        # One model call at a time. Reentrant, because a streamer may use another session from within one
        self.lock = threading.RLock()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_pair: str | os.PathLike,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> "GistCompactor":
        """
        Loads what [`GistTrainer.save_model`] wrote. Two adapters of one base share it in memory.

        Args:
            pretrained_pair (`str` or `os.PathLike`):
                A folder, or a repository on the Hub.
            device (`str` or `torch.device`, *optional*):
                Defaults to the machine's accelerator, or the CPU.
            dtype (`str` or `torch.dtype`, *optional*):
                Defaults to the one the checkpoint (under adapters: the base) is stored in.
            revision (`str`, *optional*):
                Of the repository on the Hub.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether checkpoints may run their own code.

        Raises:
            ValueError: if it is not a pair, lacks the generator, or its base model cannot be loaded.
        """
        directory = local_directory(pretrained_pair, revision)
        pair = PairConfig.load(directory)
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        loader = HalfLoader(device, dtype or "auto", trust_remote_code)
        summarizer = loader.load(directory, "summarizer")
        generator = loader.load(directory / GENERATOR_DIR, "generator")
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        return cls(summarizer, generator, tokenizer, pair)

    def compress(
        self,
        context: str | list[int],
        budget: int | None = None,
        do_sample: bool = False,
        last_k: str | list[int] | None = None,
    ) -> Gist:
        """
        Writes the gist of one context.

        Args:
            context (`str` or `list[int]`):
                Text or token ids, at most the `context_length` the pair was trained on.
            budget (`int`, *optional*):
                The most tokens the gist may have. Defaults to what the pair was trained on. A pair trained with
                `gist_length_range` is told, and writes what is worth most within it; any other is cut off there.
            do_sample (`bool`, *optional*, defaults to `False`):
                Whether to sample at temperature 1, as in training, instead of taking the likeliest tokens.
            last_k (`str` or `list[int]`, *optional*):
                What the generator will read beside the gist, as a question about the context. Defaults to the last
                `last_k` tokens of the context. The summarizer sees it if its prompt has `{last_k}`.

        Raises:
            ValueError: if the context is empty, not text, longer than the pair's contexts, or does not fit the
                summarizer's positions.
        """
        last_k = None if last_k is None else [last_k]
        return self.compress_batch([context], budget, do_sample, last_k=last_k)[0]

    def compress_batch(
        self,
        contexts: list[str | list[int]],
        budget: int | None = None,
        do_sample: bool = False,
        batch_size: int = 8,
        last_k: list[str | list[int]] | None = None,
    ) -> list[Gist]:
        """As [`~GistCompactor.compress`], for many contexts, `batch_size` of them in one forward."""
        contexts_ids = []
        for index, context in enumerate(contexts):
            what = "The context" if len(contexts) == 1 else f"Context {index}"
            ids = self._token_ids(context, what)
            if len(ids) > self.pair.context_length:
                raise ValueError(
                    f"{what} has {len(ids)} tokens, but the pair was trained on contexts of "
                    f"{self.pair.context_length}. Use `compress_windows`, which cuts a text into such contexts."
                )
            contexts_ids.append(ids)
        if last_k is None:
            last_k_ids = [ids[-self.pair.last_k :] for ids in contexts_ids]
        else:
            last_k_ids = [self._token_ids(text, "`last_k`", may_be_empty=True) for text in last_k]
        gists = []
        with tqdm(
            total=len(contexts), desc="Compressing", unit=" contexts", disable=len(contexts) <= batch_size
        ) as bar:
            for start in range(0, len(contexts), batch_size):
                batch = slice(start, start + batch_size)
                gists += self._write_gists(contexts_ids[batch], last_k_ids[batch], budget, do_sample)
                bar.update(len(gists) - start)
        return gists

    def compress_windows(
        self,
        text: str | list[int],
        budget: int | None = None,
        do_sample: bool = False,
        batch_size: int = 8,
        last_k: str | list[int] | None = None,
    ) -> list[Gist]:
        """
        One gist for each `context_length` tokens of a text of any length; the last context may be shorter. A `last_k`,
        as in [`~GistCompactor.compress`], is the same for all of them.
        """
        ids = self._token_ids(text, "The text")
        length = self.pair.context_length
        windows = [ids[start : start + length] for start in range(0, len(ids), length)]
        last_k = None if last_k is None else [last_k] * len(windows)
        return self.compress_batch(windows, budget, do_sample, batch_size, last_k)

    def continue_text(
        self,
        text: str | list[int],
        max_new_tokens: int = 64,
        do_sample: bool = False,
        last_k: str | list[int] | None = None,
        **generation_kwargs,
    ) -> Continuation:
        """
        Continues a text of any length: its last `context_length` tokens are compressed greedily, and the generator
        goes on from the gist and the last `last_k` tokens; or from the gist and what is given in their place, as a
        question about the text.

        Args:
            text (`str` or `list[int]`):
                Text or token ids.
            max_new_tokens (`int`, *optional*, defaults to `64`):
                Longest continuation.
            do_sample (`bool`, *optional*, defaults to `False`):
                Whether to sample, at temperature 1 unless `generation_kwargs` say otherwise.
            last_k (`str` or `list[int]`, *optional*):
                As in [`~GistCompactor.compress`].
            generation_kwargs:
                For [`~transformers.GenerationConfig`], as `temperature` or `top_p`.
        """
        context_ids = self._token_ids(text, "The text")[-self.pair.context_length :]
        last_k = context_ids[-self.pair.last_k :] if last_k is None else last_k
        gist = self.compress(context_ids, last_k=last_k)
        return self.continue_from(gist, last_k, max_new_tokens, do_sample, **generation_kwargs)

    def continue_from(
        self,
        gist: Gist | str,
        last_text: str | list[int],
        max_new_tokens: int = 64,
        do_sample: bool = False,
        **generation_kwargs,
    ) -> Continuation:
        """
        As [`~GistCompactor.continue_text`], from a gist that is there already, or from any text in its place.

        The generator reads all of `last_text`; it was trained on `last_k` tokens of it, or on what stood in their place.
        """
        gist_ids = gist.token_ids if isinstance(gist, Gist) else self._token_ids(gist, "The gist", may_be_empty=True)
        last_ids = self._token_ids(last_text, "The last text", may_be_empty=True)
        prompt = self.prompts.generator(gist_ids, last_ids)
        (token_ids,), _ = self._generate(
            "generator", [prompt], max_new_tokens=max_new_tokens, do_sample=do_sample, **generation_kwargs
        )
        return Continuation(self._decode(token_ids), token_ids, gist)

    def session(self, **settings) -> "Session":
        """A stream of any length that the pair goes on reading and writing in one window; see [`~session.Session`]."""
        from .session import Session  # which needs this class

        return Session(self, **settings)

    def load_session(self, path: str | os.PathLike, **settings) -> "Session":
        """The session that [`~session.Session.save`] wrote; see [`~session.Session.load`]."""
        from .session import Session

        return Session.load(path, self, **settings)

    @functools.cached_property
    def fingerprint(self) -> str:
        """By which a saved session knows its pair."""
        return pair_fingerprint(self)

    def _write_gists(self, contexts_ids, last_k_ids, budget, do_sample):
        shown = self.pair.tail_length if budget is None else budget
        prompts = [self.prompts.summarizer(*ids, shown) for ids in zip(contexts_ids, last_k_ids, strict=True)]
        budget = self.pair.max_gist_length if budget is None else budget
        gists, logits = self._generate(
            "summarizer", prompts, max_new_tokens=budget, do_sample=do_sample, output_logits=True
        )
        log_probs = _summed_log_probs(logits, gists)
        return [
            Gist(
                text=self._decode(gist),
                token_ids=gist,
                log_prob=log_prob,
                context_tokens=len(ids),
                gist_rate=len(gist) / len(ids),
                total_rate=len(self.prompts.generator(gist, last_ids)) / len(ids),
            )
            for ids, last_ids, gist, log_prob in zip(contexts_ids, last_k_ids, gists, log_probs, strict=True)
        ]

    def _generate(self, role, prompts, **generation_kwargs):
        with self.lock:
            return generate(getattr(self, role), self.tokenizer, prompts, name=role, **generation_kwargs)

    def _token_ids(self, text, what, may_be_empty=False):
        if isinstance(text, str):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(f"{what} is not valid text: {error}.") from error
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        elif isinstance(text, (list, tuple)):
            ids = list(text)
            for token in ids:
                if not isinstance(token, int) or not 0 <= token < len(self.tokenizer):
                    raise ValueError(f"{what} holds {token!r}, which is no id of the tokenizer's vocabulary.")
        else:
            raise ValueError(f"{what} must be text or a list of token ids, got {type(text).__name__}.")
        if not ids and not may_be_empty:
            raise ValueError(f"{what} is empty.")
        return ids

    def _decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def _summed_log_probs(logits_TNV, gists):
    """Summed log-prob of each gist, step by step: all steps' logits at once would double their memory."""
    log_probs_N = torch.zeros(len(gists), dtype=torch.float64)
    for position, logits_NV in enumerate(logits_TNV):
        rows = [row for row, gist in enumerate(gists) if position < len(gist)]
        tokens_N = torch.tensor([gists[row][position] for row in rows], device=logits_NV.device, dtype=torch.long)
        steps_N = logits_NV[rows].float().log_softmax(-1).gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)
        log_probs_N[rows] += steps_N.double().cpu()
    return log_probs_N.tolist()
