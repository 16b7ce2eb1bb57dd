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

"""What a saved pair holds beside the summarizer, and what a checkpoint holds beside the pair and both optimizers."""

import json
import os
from pathlib import Path

import torch
from huggingface_hub.constants import REPOCARD_NAME
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...pair import GENERATOR_DIR, PairConfig
from ...prompts import GistPrompts
from ...version import __version__
from ..alarms import Alarms
from ..generator_trainer import GeneratorTrainer
from ..gist_config import GistConfig
from ..length_penalty import LengthPenalty
from ..model_card import save_model_card
from ..recipe import recipe_of


LENGTH_PENALTY_FILE = "length_penalty.json"
REFERENCE_FILE = "reference.pt"


def pair_config(
    args: GistConfig,
    base_models: dict[str, str],
    measures: dict[str, float],
    gists: list[dict[str, str]],
    step: int,
    recipe_changes: list[dict],
    rendered_prompt: dict,
    datasets: list[str],
) -> PairConfig:
    """What `gist_config.json` says: how the pair is prompted, and where it comes from."""
    recipe = recipe_of(args)
    if recipe_changes:
        recipe["changed_on_resume"] = recipe_changes
    return PairConfig(
        context_length=args.context_length,
        target_length=args.target_length,
        last_k=args.last_k,
        max_gist_length=args.max_completion_length,
        tail_length=args.tail_length,
        generator_prompt=args.generator_prompt,
        summarizer_prompt=args.summarizer_prompt,
        chat_template_kwargs=args.chat_template_kwargs or {},
        rendered_prompt=rendered_prompt | {"of": _prompt_of(args)},
        base_models=base_models,
        recipe=recipe,
        measures=measures,
        gists=gists,
        step=step,
        version=__version__,
        datasets=datasets,
    )


def prompts_of_run(prompts: GistPrompts, args: GistConfig, checkpoint: str | os.PathLike) -> GistPrompts:
    """The prompts that a run goes on with: rendered as when it began, if it is asked for the same ones."""
    rendered = PairConfig.load(checkpoint).rendered
    return prompts.as_rendered(rendered) if rendered.get("of") == _prompt_of(args) else prompts


def save_pair(
    directory: str,
    pair: PairConfig,
    generator_trainer: GeneratorTrainer,
    tokenizer: PreTrainedTokenizerBase,
    tags: list[str],
):
    """Makes a pair of a folder with a saved summarizer: the generator, `gist_config.json`, the card. All ranks call
    it."""
    generator_dir = Path(directory, GENERATOR_DIR)
    generator_trainer.save_model(generator_dir)
    if generator_trainer.args.should_save:
        # PEFT (0.21) writes a card without a word of the pair, but with the base's path
        Path(generator_dir, REPOCARD_NAME).unlink(missing_ok=True)
        tokenizer.save_pretrained(generator_dir)
        pair.save(directory)
        save_model_card(directory, pair, Path(directory).name, tags)


def save_state(
    directory: str, length_penalty: LengthPenalty, alarms: Alarms, followed_reference: PreTrainedModel | None
):
    """Writes λ, the alarms and, if it follows the summarizer, the reference."""
    state = json.dumps(length_penalty.state_dict(), indent=2)
    Path(directory, LENGTH_PENALTY_FILE).write_text(state + "\n", encoding="utf-8")
    alarms.save(directory)
    if followed_reference is not None:
        torch.save(followed_reference.state_dict(), Path(directory, REFERENCE_FILE))


def load_state(
    directory: str, length_penalty: LengthPenalty, alarms: Alarms, followed_reference: PreTrainedModel | None
):
    """Loads what [`save_state`] wrote; a fixed λ stays what it is."""
    if not length_penalty.is_fixed:
        state = Path(directory, LENGTH_PENALTY_FILE).read_text(encoding="utf-8")
        length_penalty.load_state_dict(json.loads(state))
    alarms.load(directory)
    if followed_reference is not None:
        state = torch.load(Path(directory, REFERENCE_FILE), map_location="cpu", weights_only=True)
        followed_reference.load_state_dict(state)


def _prompt_of(args):
    return [args.summarizer_prompt, args.chat_template_kwargs or {}]
