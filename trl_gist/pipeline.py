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
A pair as a transformers pipeline.

```python
from transformers import pipeline

import trl_gist.pipeline  # registers the task

compact = pipeline("context-compaction", model="my-pair")  # a folder, or a pair on the Hub: "user/pair"
compact(text, budget=24, keep="numbers")  # the gists of its windows
compact(messages, max_tokens=2048)  # a chat, by turns
```

Registering needs `transformers.pipelines`, which imports torch, so that `import trl_gist` alone, which is light, does not.
"""

import dataclasses
from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline, PipelineException
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils.chat_template_utils import Chat

from .inference.compactor import GistCompactor


TASK = "context-compaction"
_EARLIER_TASK = "gist-compaction"  # the same by the name that it had first


class GistPair(torch.nn.Module):
    """
    Both halves as the one model that a pipeline loads, moves and holds.

    Args:
        compactor ([`GistCompactor`]):
            The pair.
    """

    def __init__(self, compactor: GistCompactor):
        super().__init__()
        self.summarizer, self.generator = compactor.summarizer, compactor.generator
        self.compactor = compactor

    @classmethod
    def from_pretrained(
        cls,
        pretrained_pair: str,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        trust_remote_code: bool | None = False,
        **kwargs,
    ) -> "GistPair":
        """
        [`GistCompactor.from_pretrained`] as `transformers.pipeline` calls it. Both halves are loaded on one device, to
        which the pipeline then moves them, so there is nothing to do for its other arguments. A `revision` of a pair of
        adapters is looked for in the base's repository as well: load such a pair with [`GistCompactor.from_pretrained`].

        Raises:
            PipelineException: if it is not a pair, lacks the generator, or its base model cannot be loaded.
        """
        # For adapters the pipeline (transformers 5.23) has resolved it to a commit of the base's repository. As a plain
        # string it is what was asked for (huggingface_hub 2.4)
        revision = None if revision is None else str(revision)
        try:
            return cls(
                GistCompactor.from_pretrained(
                    pretrained_pair, dtype=dtype, revision=revision, trust_remote_code=bool(trust_remote_code)
                )
            )
        except ValueError as error:
            # At a ValueError the pipeline (transformers 5.23) would go on and load the summarizer alone
            raise PipelineException(TASK, pretrained_pair, str(error)) from error

    @property
    def config(self) -> PreTrainedConfig:
        """The summarizer's."""
        return self.summarizer.config

    @property
    def device(self) -> torch.device:
        return self.summarizer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.summarizer.dtype

    def can_generate(self) -> bool:
        """Whether `generate` may be called on it: on its halves only."""
        return False

    @property
    def input_modalities(self) -> tuple[str, ...]:
        return ("text",)


class GistCompactionPipeline(Pipeline):
    """
    Compacts texts of any length and chats.

    A text becomes a `list[dict]`, the fields of a [`Gist`] for each window; a chat, a list of messages,
    becomes a `dict`, the fields of a [`~inference.chat.CompactedChat`]. Of several inputs, as a list, a generator or a dataset,
    each becomes one of these.

    Args:
        model ([`GistPair`]):
            The pair; `transformers.pipeline` loads it where it is given a folder or a repository on the Hub.
        batch_size (`int`, *optional*, defaults to `8`):
            Contexts of a text in one forward.
        kwargs:
            `device` and what else a [`~transformers.Pipeline`] takes; and, as defaults of the calls, `budget`, `last_k`,
            `do_sample`, `keep`, `certify` and `search` of [`GistCompactor.compress_windows`], or `max_tokens`, `keep`,
            `tools` and `certify` of [`GistCompactor.compact_messages`].
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False  # the pair brings its own

    def __init__(self, model: GistPair, batch_size: int = 8, **kwargs):
        self.contexts_in_one_forward = batch_size
        super().__init__(model, **kwargs)

    def __call__(self, inputs, batch_size: int | None = None, **kwargs):
        """
        Args:
            inputs (`str`, `list[str]`, chat, list of chats, generator, dataset or a column of one):
                What is to be compacted.
            batch_size (`int`, *optional*):
                Contexts of a text in one forward; defaults to that of the pipeline.
            kwargs:
                See [`GistCompactionPipeline`].
        """
        if isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes | list):
            inputs = list(inputs)  # as a column of a dataset (datasets 5.2) is none
        if isinstance(inputs, list | KeyDataset) and len(inputs) == 0:
            return []  # of which transformers (5.23) would look at the first
        # The pipeline's own batches are of padded tensors; here a text is the batch of its contexts
        batch_size = self.contexts_in_one_forward if batch_size is None else batch_size
        return super().__call__(inputs, batch_size=1, contexts_in_one_forward=batch_size, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        return {}, kwargs, {}

    def preprocess(self, inputs):
        return {"inputs": inputs}

    def _forward(self, model_inputs, contexts_in_one_forward, **kwargs):
        inputs, compactor = model_inputs["inputs"], self.model.compactor
        if isinstance(inputs, Chat):
            return compactor.compact_messages(inputs.messages, **kwargs)
        return compactor.compress_windows(inputs, batch_size=contexts_in_one_forward, **kwargs)

    def postprocess(self, model_outputs):
        if isinstance(model_outputs, list):
            return [dataclasses.asdict(gist) for gist in model_outputs]
        return dataclasses.asdict(model_outputs)


for task in (TASK, _EARLIER_TASK):
    PIPELINE_REGISTRY.register_pipeline(task, GistCompactionPipeline, pt_model=GistPair, type="text")
