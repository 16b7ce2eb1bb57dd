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

"""What a trained pair is worth: readings of held-out windows and what they come to."""

from ..common.statistics import ratio_and_error, standard_error
from ..scoring.controls import add_controls, summarize
from .held_out.measures import quality
from .held_out.readings import PairReadings
from .readers import evaluate_pair, load_generator_only, load_teacher


__all__ = [
    "PairReadings",
    "add_controls",
    "evaluate_pair",
    "load_generator_only",
    "load_teacher",
    "quality",
    "ratio_and_error",
    "standard_error",
    "summarize",
]
