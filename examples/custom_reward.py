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

# /// script
# dependencies = [
#     "trl-gist",
# ]
# ///

"""
Trains with a reward function of one's own: here, for the names that a gist keeps.

# On documents of your own: .txt, .md, .jsonl, .csv or .parquet files, or a folder of them. The weights say what a
# reward is worth in nats per target token: a gist that keeps every name earns as much as one that gains 0.05
python examples/custom_reward.py \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
    --dataset_path my_documents/ \
    --reward_funcs kl_gain length_penalty names_kept \
    --reward_weights 1 1e-4 0.05 \
    --use_peft --lora_r 32 --lora_target_modules all-linear \
    --learning_rate 1e-4 --generator_learning_rate 2e-4 \
    --output_dir my-pair

`trl_gist.scripts.train`, which it rests on, is public: it is what `trl-gist train` runs.

The log then has `rewards/names_kept/mean` and `rewards/names_kept/std`, beside those of the others. Not run yet at
this size; tests/examples/test_custom_reward.py runs the command on a tiny model.
"""

import re

from trl_gist import GistConfig
from trl_gist.scripts.train import REWARD_FUNCS, GistModelConfig, GistScriptArguments, make_parser, make_trainer, train


def names_kept(prompts: list[str], completions: list[str], **kwargs) -> list[float]:
    """
    Share of the context's names that the gist keeps, 0 where there is none. A name is a word with a capital within a
    sentence. Any column of `trl_gist/rewards.py`, or of your dataset, can be an argument here, by its name.
    """
    shares = []
    for context, gist in zip(prompts, completions, strict=True):
        names = set(re.findall(r"(?<=[a-z,;] )[A-Z]\w+", context))
        shares.append(len(names & set(re.findall(r"\w+", gist))) / len(names) if names else 0.0)
    return shares


def main(script_args: GistScriptArguments, training_args: GistConfig, model_args: GistModelConfig):
    REWARD_FUNCS["names_kept"] = names_kept  # what `--reward_funcs` may name
    train(make_trainer(script_args, training_args, model_args))


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
