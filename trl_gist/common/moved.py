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

"""Where modules went that once lay flat in the package. An import by the old name fails, and says so."""

import sys


# The old modules of each new one's folder, and after `=` those that have another name there
_FOLDERS = {
    "common": "walks=geometry common.markdown=tables",
    "data": "scripts.documents",
    "evaluation": "evaluation.evaluate=readers",
    "evaluation.comparison": "evaluation.compare evaluation.compare_report=tables evaluation.pool",
    "evaluation.distance": "evaluation.distance_costs=costs evaluation.distance_facts=facts "
    "evaluation.distance_labels=labels evaluation.distance_measures=measures evaluation.distance_page=page "
    "evaluation.distance_plots=plots evaluation.distance_teacher=teacher",
    "evaluation.gists": "evaluation.pattern_plots evaluation.patterns evaluation.transfer",
    "evaluation.held_out": "evaluation.page evaluation.quality=measures evaluation.quality_plots=plots "
    "evaluation.readings",
    "evaluation.pages": "evaluation.plots",
    "evaluation.run_report": "evaluation.report evaluation.report_patterns=patterns evaluation.report_plots=plots "
    "evaluation.run_folder",
    "inference": "certify chat compaction=compactor gist keep search",
    "inference.session": "recursion session session_cost=cost session_files=files session_state=state "
    "session_window=window",
    "models": "attention engines=deepspeed generation lm_head pair_loading=loading roles sampling shared_prefix",
    "scoring": "evaluation.measures=controls gist_log_probs teacher_cache",
    "trainer": "alarms callbacks config_checks data_loading=data_order extractive=cold_start generator_trainer "
    "gist_config gist_trainer held_out hub rate_control=length_penalty rollouts=rollout run_log signal=advantages "
    "trainer_utils=data_order vllm_sampling=vllm",
    "trainer.checkpoints": "checkpoints=pair_state durable=run_directory manifest resharding",
    "trainer.memory": "memory=estimate memory_trace=trace",
}
MOVED = {
    old: f"{folder}.{name or old.rpartition('.')[2]}"
    for folder, olds in _FOLDERS.items()
    for old, _, name in (entry.partition("=") for entry in olds.split())
}


def where(old: str) -> str | None:
    """What to say of an old name, without `trl_gist.`, or `None`."""
    return f"`trl_gist.{old}` has moved: import `trl_gist.{MOVED[old]}`" if old in MOVED else None


class _SaysWhere:
    """Asked last, for modules that nothing else finds."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        package, _, old = name.partition(".")
        if package == "trl_gist" and old in MOVED:
            raise ModuleNotFoundError(f"{where(old)}.")  # without its `name`, or `from trl_gist import` would go on


sys.meta_path.append(_SaysWhere)
