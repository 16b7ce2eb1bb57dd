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

"""Models that read beside the pair, its teacher and a generator trained alone; and all readings in one call."""

from transformers import PreTrainedModel

from ..inference.compactor import GistCompactor
from ..models.checks import check_same_tokenizer
from ..models.loading import HalfLoader, for_inference, local_directory
from ..models.roles import base_if_adapted, create_model_from_path
from ..pair import GENERATOR_DIR, PairConfig
from .held_out.measures import with_means
from .held_out.readings import PairReadings


def load_teacher(
    compactor: GistCompactor, checkpoint: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """
    The frozen teacher a pair is measured against.

    Args:
        compactor ([`GistCompactor`]):
            The pair.
        checkpoint (`str`, *optional*):
            Defaults to the pair's own teacher. If the generator is an adapter of it, the two share it in memory.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether the checkpoint may run its own code.

    Raises:
        ValueError: if the teacher's tokenizer is not the pair's.
    """
    checkpoint = checkpoint or compactor.pair.base_models["teacher"]
    generator = compactor.generator
    shared = base_if_adapted(generator, checkpoint)
    if shared is not None:
        return shared
    check_same_tokenizer(compactor.tokenizer, "teacher", checkpoint, trust_remote_code)
    teacher = create_model_from_path(
        checkpoint, dtype=generator.dtype, device_map=None, trust_remote_code=trust_remote_code
    )
    return for_inference(teacher.to(generator.device))


def load_generator_only(directory: str, compactor: GistCompactor, trust_remote_code: bool = False):
    """
    The generator of another pair, as one trained with `generator_only`, to be read beside the compactor's own.

    Raises:
        ValueError: if the folder holds no pair, or one whose tokenizer, last tokens or generator's prompt are not the
            compactor's.
    """
    directory = local_directory(directory, None)
    pair = PairConfig.load(directory)
    if pair.last_k != compactor.pair.last_k:
        raise ValueError(
            f"{directory} was trained on {pair.last_k} last tokens, the pair on {compactor.pair.last_k}: it is no "
            "control."
        )
    if pair.generator_prompt != compactor.pair.generator_prompt:
        raise ValueError(
            f"{directory} was trained on the prompt {pair.generator_prompt!r}, the pair on "
            f"{compactor.pair.generator_prompt!r}: it is no control. Train it with the pair's `generator_prompt`."
        )
    check_same_tokenizer(compactor.tokenizer, "generator_only", str(directory), trust_remote_code)
    loader = HalfLoader(compactor.generator.device, compactor.generator.dtype, trust_remote_code)
    return loader.load(directory / GENERATOR_DIR, "generator")


def evaluate_pair(
    compactor: GistCompactor, windows: list[dict], teacher: PreTrainedModel, batch_size: int = 8, **settings
) -> list[dict]:
    """
    Writes a gist of each window greedily and lets every reader of [`readings`] predict its target.

    Args:
        compactor ([`GistCompactor`]):
            The pair.
        windows (`list[dict]`):
            Rows of [`~data.windows.prepare_windows`].
        teacher ([`~transformers.PreTrainedModel`]):
            The frozen teacher; see [`load_teacher`].
        batch_size (`int`, *optional*, defaults to `8`):
            Windows in one forward.
        settings:
            `last_k`, `budgets` and `generator_only` of [`PairReadings`].

    Returns:
        `list[dict]`: The rows of [`PairReadings.read`] with the columns for [`quality`] and [`summarize`].
    """
    readings = PairReadings(compactor, teacher, batch_size, **settings)
    return [with_means(row) for rows in readings.read(windows) for row in rows]
