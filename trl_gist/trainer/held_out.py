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

import math

import torch
from accelerate.utils import gather_object

from ..evaluation import add_controls, summarize


class HeldOutEvaluation:
    """
    A trainer's evaluation on held-out windows, with the controls of [`trl_gist.evaluation`]: mixed into a
    [`~transformers.Trainer`] whose rollouts append their scored rows to `eval_rows`.

    Leaves `last_measures`, each with its standard error, and `last_gists`, a few to read.
    """

    eval_rows: list[dict]
    last_measures: dict[str, float]
    last_gists: list[dict[str, str]]

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        if self.is_deepspeed_enabled and self.generator_trainer.engine is None:
            raise ValueError(
                "Under DeepSpeed the generator's engine is made when training begins: evaluate with `eval_on_start=True`, "
                "or after training."
            )
        self.eval_rows = []
        # The loader takes its seed from torch's generator, from which the next gists are sampled; a run that is evaluated
        # on the way is the run that is not
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            output = super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        # Data-parallel samplers repeat some windows to fill their last batch; each counts once
        rows = list({_window(row): row for row in gather_object(self.eval_rows)}.values())
        # Under ZeRO-3 each rank must run as many forwards as the others: the last ones score the first rows once more
        share = math.ceil(len(rows) / self.accelerator.num_processes)
        start = share * self.accelerator.process_index
        mine = [(start + index) % len(rows) for index in range(share)]
        add_controls(self.generator_trainer.scorer, rows, mine)
        self.eval_rows = rows = gather_object([rows[index] for index in mine])[: len(rows)]
        self.last_measures = summarize(rows)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in self.last_measures.items()})
        self.last_gists = self._readable_gists(rows)
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        # Samples, scores and logs; the policy's loss says nothing on held-out data and is not computed
        self._prepare_inputs(inputs)
        return None, None, None

    def _readable_gists(self, rows):
        decode = self.processing_class.decode
        step = max(1, len(rows) // 3)
        return [
            {"context_end": decode(row["last_k_ids"]), "gist": decode(row["gist_ids"], skip_special_tokens=True)}
            for row in rows[::step][:3]
        ]


def _window(row):
    """What tells a held-out window from another."""
    return str(row["document_id"]), *(tuple(row[name]) for name in ("context_ids", "last_k_ids", "target_ids"))
