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
LLMLingua-2 ([Pan et al., 2024](https://huggingface.co/papers/2403.12968)): a bidirectional encoder was trained to say
of every token whether GPT-4 would keep it; the words most worth keeping stay.

Its checkpoints are plain token classifiers, and are read as such. The authors' package `llmlingua` is not used: it
fetches another model's tokenizer to count with, holds to a budget only roughly, reads two checkpoints by their names
alone, and runs code from them unasked. tests/evaluation/test_compressors.py has it agree on which words stay.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ...models.roles import weights_whole
from .base import ExtractiveCompressor, Word, best_words, split_words


_CHECKPOINT = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"


@dataclass
class TokenClassifier(ExtractiveCompressor):
    """
    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The pair's; see [`ExtractiveCompressor`].
        classifier ([`~transformers.PreTrainedModel`]):
            A token classifier of two classes, the second of which is to keep.
        classifier_tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its own, a fast one: it says which characters a token covers.
        batch_size (`int`, *optional*, defaults to `8`):
            Pieces of contexts in one forward.
    """

    classifier: PreTrainedModel
    classifier_tokenizer: PreTrainedTokenizerBase
    batch_size: int = 8

    @classmethod
    def from_pretrained(
        cls, tokenizer: PreTrainedTokenizerBase, checkpoint: str, device: str | torch.device = "cpu"
    ) -> "TokenClassifier":
        """
        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                The pair's.
            checkpoint (`str`):
                A folder, or a repository on the Hub, as
                `microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank`.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
                Where the classifier goes.

        Raises:
            ValueError: if it is out of reach, or not a token classifier of two classes.
        """
        try:
            with weights_whole(checkpoint):
                classifier, loading = AutoModelForTokenClassification.from_pretrained(
                    checkpoint, output_loading_info=True
                )
            classifier_tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        except OSError as error:
            raise ValueError(
                f"{checkpoint}, the token classifier, is neither a folder nor a repository on the Hub in reach. "
                f"Download one of LLMLingua-2's, as with `hf download {_CHECKPOINT} --local-dir llmlingua-2`, and "
                "pass its folder."
            ) from error
        if loading["missing_keys"] or classifier.config.num_labels != 2:
            raise ValueError(
                f"{checkpoint} has no trained classifier of tokens into two classes, drop and keep "
                f"({classifier.config.num_labels} labels, missing weights: {sorted(loading['missing_keys'])}). Use "
                f"one of LLMLingua-2's, as {_CHECKPOINT}."
            )
        return cls(tokenizer, classifier.to(device).eval(), classifier_tokenizer)

    def keep(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        split = [split_words(self.tokenizer, context) for context in contexts]
        spans = self._spans_and_probabilities([text for text, _ in split])
        return [
            best_words(words, [_mean_over(word, spans_of_text) for word in words], budget)
            for (_, words), spans_of_text, budget in zip(split, spans, budgets, strict=True)
        ]

    def _spans_and_probabilities(self, texts):
        """For each text `(start, end, p(keep))` of the classifier's tokens, in characters of the text."""
        encoding = self.classifier_tokenizer(
            texts,
            truncation=True,
            split_special_tokens=True,
            max_length=self.classifier.config.max_position_embeddings - 2,  # RoBERTa's count from 2
            return_overflowing_tokens=True,  # what does not fit is the next row
            return_offsets_mapping=True,
        )
        spans = [[] for _ in texts]
        rows = range(len(encoding["input_ids"]))
        for start in rows[:: self.batch_size]:
            batch = rows[start : start + self.batch_size]
            padded = self.classifier_tokenizer.pad(
                {name: [encoding[name][row] for row in batch] for name in ("input_ids", "attention_mask")},
                return_tensors="pt",
            ).to(self.classifier.device)
            with torch.no_grad():
                probabilities_NT = self.classifier(**padded).logits.float().softmax(-1)[..., 1].tolist()
            for row, probabilities_T in zip(batch, probabilities_NT, strict=True):
                spans[encoding["overflow_to_sample_mapping"][row]] += [
                    (*span, probability)
                    for span, probability in zip(encoding["offset_mapping"][row], probabilities_T, strict=False)
                    if span[0] < span[1]  # not the special tokens
                ]
        return spans


def _mean_over(word: Word, spans):
    """Mean over the tokens that overlap the word; a word of spaces has none, and is worth nothing."""
    inside = [probability for start, end, probability in spans if start < word.end and end > word.start]
    return sum(inside) / len(inside) if word.text and inside else 0.0
