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
A trained pair in memory: two models, their tokenizer, and the window they were trained on.

What is done with it lies above: one subject a file, and [`~inference.compactor.GistCompactor`] as the front of all.
"""

import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol, Self

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..common.arguments import token_ids as checked_ids
from ..common.arguments import truth
from ..common.backends import BACKENDS
from ..common.pieces import PIECE, Piece
from ..common.tokens import decode, literal_ids, literal_pieces
from ..models.fingerprints import pair_fingerprint
from ..models.generation import generate
from ..models.loading import HalfLoader, check_device, check_dtype_name, local_directory
from ..models.machine import dtype_to_load, machine_device
from ..models.vllm import EngineModel, NoModels, load_engine_models
from ..pair import GENERATOR_DIR, PairConfig
from ..prompts import GistPrompts
from ..scoring.gist_log_probs import given_log_probs, written_log_probs
from .gist import Gist


class LoadedPair:
    """
    The two models of a pair and what they need to read and write text.

    Args:
        summarizer, generator ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`] or [`~models.vllm.EngineModel`]):
            The two models, in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Their tokenizer.
        pair ([`~pair.PairConfig`]):
            The window they were trained on.
    """

    def __init__(
        self,
        summarizer: PreTrainedModel | PeftModel | EngineModel,
        generator: PreTrainedModel | PeftModel | EngineModel,
        tokenizer: PreTrainedTokenizerBase,
        pair: PairConfig,
    ):
        self.summarizer = summarizer
        self.generator = generator
        self.tokenizer = tokenizer
        self.pair = pair
        self._make_prompts_and_lock()

    def _make_prompts_and_lock(self):
        pair = self.pair
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "The pair's tokenizer has no end-of-sequence token, with which a gist ends. Set `eos_token`; in a folder that "
                "was copied, see whether tokenizer_config.json is there."
            )
        self.prompts = GistPrompts.from_tokenizer(
            self.tokenizer,
            pair.summarizer_prompt,
            pair.tail_length,
            pair.generator_prompt,
            pair.chat_template_kwargs,
            pair.rendered,
        )
        # One model call at a time. Reentrant, because a streamer may use another session from within one
        self.lock = threading.RLock()

    def __repr__(self):
        pair = self.pair
        return (
            f"{type(self).__name__}(context_length={pair.context_length}, last_k={pair.last_k}, "
            f"max_gist_length={pair.max_gist_length}, base_models={pair.base_models}, step={pair.step})"
        )

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in ("prompts", "lock")}

    def __setstate__(self, state):
        vars(self).update(state)
        self._make_prompts_and_lock()

    def __copy__(self):
        other = type(self).__new__(type(self))
        vars(other).update(vars(self))  # the lock too: they are the same models
        return other

    @classmethod
    def from_pretrained(
        cls,
        pretrained_pair: str | os.PathLike,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        backend: str = "transformers",
    ) -> Self:
        """
        Loads what [`GistTrainer.save_model`] wrote. Two adapters of one base share it in memory.

        Args:
            pretrained_pair (`str` or `os.PathLike`):
                A folder, or a repository on the Hub.
            device (`str` or `torch.device`, *optional*):
                Defaults to the machine's accelerator, or the CPU.
            dtype (`str` or `torch.dtype`, *optional*):
                Defaults to the one the checkpoint (under adapters: the base) is stored in; on a CPU without instructions
                for bfloat16 to float32, in which it is eight or nine times as fast.
            revision (`str`, *optional*):
                Of the repository on the Hub.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether checkpoints may run their own code.
            backend (`str`, *optional*, defaults to `"transformers"`):
                `"vllm"` has two adapters of one base write in one engine of vLLM, also when several threads ask at once.
                What reads the models' own logits is refused then: `certify`, `search`, `measure`, recall, comparing, and
                saving sessions.

        Raises:
            ModuleNotFoundError: without vLLM, if it is the backend.
            ValueError: if it is not a pair, lacks the generator, or its base model cannot be loaded; if this machine has
                no such device, or there is no such dtype; if vLLM cannot take the pair.
        """
        if backend not in BACKENDS:
            raise ValueError(f"`backend` must be {' or '.join(map(repr, BACKENDS))}, got {backend!r}.")
        check_dtype_name(dtype)
        trust_remote_code = truth("trust_remote_code", trust_remote_code)
        if backend == "transformers":
            device = machine_device() if device is None else device
            check_device(device)
        directory = local_directory(pretrained_pair, revision)
        pair = PairConfig.load(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        if backend == "vllm":
            summarizer, generator = load_engine_models(directory, tokenizer, device, dtype, trust_remote_code)
        else:
            loader = HalfLoader(device, dtype_to_load(dtype, device), trust_remote_code)
            summarizer = loader.load(directory, "summarizer")
            generator = loader.load(directory / GENERATOR_DIR, "generator")
        return cls(summarizer, generator, tokenizer, pair)

    @functools.cached_property
    def fingerprint(self) -> str:
        """By which a saved session knows its pair."""
        self.check_models("Saving a session, which is known by its pair's weights,")
        return pair_fingerprint(self)

    def generate(
        self, role: str, prompts: list[list[int]], **generation_kwargs
    ) -> tuple[list[list[int]], tuple[torch.Tensor, ...] | None]:
        """
        As [`~models.generation.generate`], by the `"summarizer"` or the `"generator"`, one call at a time. Raises
        `ValueError` too if a prompt holds what is no id.
        """
        prompts, model = [checked_ids("A prompt", prompt) for prompt in prompts], getattr(self, role)
        if isinstance(model, EngineModel):
            return model.generate(self.tokenizer, prompts, name=role, **generation_kwargs)[0], None
        with self.lock:
            return generate(model, self.tokenizer, prompts, name=role, **generation_kwargs)

    def rows_together(self, tokens: int) -> int:
        """Most prompts that share a forward, where each has so many tokens with what follows it."""
        return sys.maxsize

    def write(
        self, prompts: list[list[int]], max_new_tokens: int, do_sample: bool = False
    ) -> tuple[list[list[int]], list[list[float]]]:
        """What the summarizer writes after each prompt, and each token's log-prob at temperature 1, in nats."""
        settings = {"max_new_tokens": max_new_tokens, "do_sample": do_sample}
        if isinstance(self.summarizer, EngineModel):
            return self.summarizer.generate(self.tokenizer, prompts, name="summarizer", **settings)
        written, logits = self.generate("summarizer", prompts, **settings, output_logits=True)
        return written, written_log_probs(logits, written)

    def log_probs(self, prompts: list[list[int]], gists: list[list[int]]) -> list[float]:
        """Of gists that the summarizer did not write, or not so, summed over their tokens, in nats."""
        if isinstance(self.summarizer, EngineModel):
            return self.summarizer.log_probs(prompts, gists)
        with self.lock:
            return given_log_probs(self.summarizer, prompts, gists)

    def check_models(self, what: str):
        """Raises [`~models.vllm.NoModels`], a `ValueError`, if `what` reads models that are in an engine."""
        if isinstance(self.generator, EngineModel):
            raise NoModels(what)

    def token_ids(self, text: str | list[int], what: str, may_be_empty: bool = False) -> list[int]:
        """
        Token ids of a text, without special tokens: one that the text spells is text; ids that are given are checked.

        Args:
            text (`str` or `list[int]`):
                Text or token ids, as of [`~common.arguments.token_ids`].
            what (`str`):
                What errors call it.
            may_be_empty (`bool`, *optional*, defaults to `False`):
                Whether no token is no error.

        Raises:
            ValueError: if it is neither, not valid text, holds an id outside the vocabulary, or is empty.
        """
        if isinstance(text, str):
            _check_text(text, what)
            ids = literal_ids(self.tokenizer, text)
        else:
            ids = checked_ids(what, text, len(self.tokenizer), "text or a list of token ids")
        if not ids and not may_be_empty:
            raise ValueError(f"{what} is empty.")
        return ids

    def count_tokens(self, text: str) -> int:
        """How many [`~LoadedPair.token_ids`] a text has; none is no error."""
        return len(self.token_ids(text, "The text", may_be_empty=True))

    def token_pieces(self, text: str | list[int], what: str) -> Iterator[Piece]:
        """
        As [`~LoadedPair.token_ids`], piece by piece, with the character where each token begins; of token ids one piece,
        without them. A text is known to be empty when there is no token.
        """
        if not isinstance(text, str):
            return iter([(self.token_ids(text, what), None)])
        _check_text(text, what)
        return literal_pieces(self.tokenizer, text)

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, without special tokens and what makes no whole character."""
        return decode(self.tokenizer, checked_ids("What is decoded", token_ids))


def _check_text(text, what):
    """But whether it is empty, of which tokens decide."""
    for start in range(0, len(text), PIECE):
        try:
            text[start : start + PIECE].encode("utf-8")
        except UnicodeEncodeError as error:
            at = start + error.start
            raise ValueError(
                f"{what} is not valid text: {error.reason}, as {text[at]!r} at character {at}."
            ) from error


class GistWriter(Protocol):
    """A [`LoadedPair`] that writes gists, remembered or new: all that chats and sessions ask of a compactor."""

    summarizer: PreTrainedModel | PeftModel
    generator: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    pair: PairConfig
    prompts: GistPrompts
    lock: AbstractContextManager
    fingerprint: str

    def generate(self, role: str, prompts: list[list[int]], **generation_kwargs) -> tuple: ...

    def rows_together(self, tokens: int) -> int: ...

    def token_ids(self, text: str | list[int], what: str, may_be_empty: bool = False) -> list[int]: ...

    def count_tokens(self, text: str) -> int: ...

    def token_pieces(self, text: str | list[int], what: str) -> Iterator[Piece]: ...

    def decode(self, token_ids: list[int]) -> str: ...

    def compress_batch(self, contexts: list[str | list[int]], budget: int | None = None, **settings) -> list[Gist]: ...

    def compress_windows(self, text: str | list[int], budget: int | None = None, **settings) -> list[Gist]: ...
