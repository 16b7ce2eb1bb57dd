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

"""examples/custom_reward.py: the command of its docstring, on a tiny model."""

import re

from tiny import make_documents

from examples import custom_reward
from trl_gist.scripts.train import REWARD_FUNCS, make_parser, train


def test_the_example_of_ones_own_reward_trains_on_local_documents(checkpoint, tmp_path, monkeypatch):
    trainers = []
    monkeypatch.setattr(custom_reward, "train", lambda trainer: [trainers.append(trainer), train(trainer)])
    monkeypatch.setitem(REWARD_FUNCS, "names_kept", None)  # taken out again after the test
    (tmp_path / "documents").mkdir()
    for index, text in enumerate(make_documents(4)):
        (tmp_path / "documents" / f"{index}.txt").write_text(text)
    # The command of the docstring, on a tiny model and tiny windows
    command = re.search(r"python examples/custom_reward.py(.*?)\n\n", custom_reward.__doc__, re.DOTALL).group(1)
    argv = command.replace("\\\n", " ").split()
    argv[argv.index("--model_name_or_path") + 1] = checkpoint
    argv[argv.index("--dataset_path") + 1] = str(tmp_path / "documents")
    argv[argv.index("--output_dir") + 1] = str(tmp_path / "pair")
    argv += "--context_length 24 --target_length 8 --last_k 4 --max_completion_length 6 --max_steps 1".split()
    argv += "--logging_steps 1 --num_generations 4 --bf16 false --gradient_checkpointing false --use_cpu".split()
    custom_reward.main(*make_parser().parse_args_and_config(argv))
    (trainer,) = trainers
    assert "rewards/names_kept/mean" in trainer.state.log_history[0]
    assert trainer.initial_reward_weights == [1.0, 1e-4, 0.05]
    assert (tmp_path / "pair" / "generator" / "adapter_model.safetensors").is_file()


def test_the_example_counts_names_within_sentences():
    context = "The physician John Snow lived in Soho. Few believed Snow. Years later, Bazalgette built sewers."
    gists = ["Snow, Soho: cholera", "John Snow Soho Bazalgette", "The Few Years", "Snowing"]
    assert custom_reward.names_kept([context] * 4 + ["no names"], [*gists, "Snow"]) == [0.5, 1.0, 0.0, 0.0, 0.0]
