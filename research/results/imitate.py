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
A summarizer for gists of several lengths, which has imitated the best rule that is known, surprising facts, at a
sixteenth, an eighth and a quarter of its contexts' 128 tokens. No generator is trained.

python -m research.results.imitate summarizer --seed 0
"""

import argparse
from pathlib import Path

from examples.short_run import quiet_console
from research.targets.codes import hands_of, imitate, make_trainer, training_contexts


BUDGETS = (8, 16, 32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pair goes; its generator is untrained")
    parser.add_argument("--steps", type=int, default=120, help="of eight contexts (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="of the adapters and the contexts' order (default: 0)")
    args = parser.parse_args()
    quiet_console()
    lengths = {"max_completion_length": BUDGETS[-1], "gist_length_range": [BUDGETS[0], BUDGETS[-1]]}
    trainer = make_trainer(args.folder, args.seed, **lengths)
    rule, contexts = hands_of(trainer)["surprising facts"], training_contexts(trainer, args.seed)
    imitate(trainer, rule, contexts, args.steps, budgets=BUDGETS)
    trainer.save_model()


if __name__ == "__main__":
    main()
