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

"""The files that make two saved models a pair: `gist_config.json` and the model card."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from .prompts import ORIGINAL_GENERATOR_PROMPT


PAIR_CONFIG_NAME = "gist_config.json"
GENERATOR_DIR = "generator"


@dataclass
class PairConfig:
    """
    What the pair needs beside its weights to compress and to continue.

    Attributes:
        context_length, target_length, last_k, max_gist_length (`int`):
            The window the pair was trained on, in tokens.
        tail_length (`int`):
            Tokens that the summarizer's prompt shows where it has `{tail}`.
        summarizer_prompt, generator_prompt (`str`):
            See [`GistConfig`].
        chat_template_kwargs (`dict`):
            What the tokenizer's chat template is given beside the summarizer's prompt, and beside a chat's messages.
            Written only if there is any.
        rendered_prompt (`dict`):
            The summarizer's prompt in that template, as it was when training started: see [`GistPrompts.rendered`],
            and `of`, the prompt and the `chat_template_kwargs` that it is of. The prompt of a pair without it, or with
            another prompt, is rendered when it is loaded.
        base_models (`dict[str, str]`):
            Checkpoints that `summarizer`, `generator` and `teacher` started from.
        recipe (`dict`):
            The training arguments that shape the result.
        measures (`dict`):
            The last held-out measures, empty if there were none.
        gists (`list[dict]`):
            Some held-out contexts and their gists, as text.
        step (`int`):
            Optimizer steps taken.
        version (`str`):
            The trl_gist version that wrote the file.
        datasets (`list[str]`):
            Datasets on the Hub that it was trained on, as far as they are known. Written only if there are any.
    """

    context_length: int
    target_length: int
    last_k: int
    max_gist_length: int
    tail_length: int
    summarizer_prompt: str
    base_models: dict
    recipe: dict
    measures: dict
    gists: list
    step: int
    version: str
    generator_prompt: str = ORIGINAL_GENERATOR_PROMPT
    chat_template_kwargs: dict = dataclasses.field(default_factory=dict)
    rendered_prompt: dict = dataclasses.field(default_factory=dict)
    datasets: list = dataclasses.field(default_factory=list)

    @property
    def rendered(self) -> dict:
        """`rendered_prompt`, if it is of this prompt; else nothing."""
        of = [self.summarizer_prompt, self.chat_template_kwargs]
        return self.rendered_prompt if self.rendered_prompt.get("of") == of else {}

    def save(self, directory: str | os.PathLike):
        Path(directory, PAIR_CONFIG_NAME).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """What the file holds."""
        values = dataclasses.asdict(self)
        for name in ("chat_template_kwargs", "rendered_prompt", "datasets"):
            if not values[name]:
                del values[name]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "PairConfig":
        """Raises `ValueError` if the directory holds no pair, or one that this version cannot read."""
        path = Path(directory, PAIR_CONFIG_NAME)
        if not path.is_file():
            raise ValueError(f"{directory} holds no gist pair: {PAIR_CONFIG_NAME} is missing.")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged, or was edited with an error: it is no JSON in UTF-8. ({error})"
            ) from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} is damaged: it holds no JSON object.")
        values = {"chat_template_kwargs": {}, "rendered_prompt": {}, "datasets": [], **values}
        names = {field.name for field in dataclasses.fields(cls)}
        if values.keys() != names:
            raise ValueError(
                f"{path} was written by trl_gist {values.get('version', 'of unknown version')} and does not fit this "
                f"one: missing {sorted(names - values.keys())}, unknown {sorted(values.keys() - names)}."
            )
        for field in dataclasses.fields(cls):
            if not isinstance(values[field.name], field.type) or isinstance(values[field.name], bool):
                raise ValueError(
                    f"{path} has {values[field.name]!r:.200} for `{field.name}`, which must be of type "
                    f"{field.type.__name__}. Correct it there, or take the file as it was saved."
                )
        return cls(**values)
