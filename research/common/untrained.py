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

"""A pair that nobody has trained, to time what does not depend on what it has learned."""

from trl_gist import __version__
from trl_gist.pair import PairConfig
from trl_gist.prompts import SUMMARIZER_PROMPT


def untrained_config(**sizes) -> PairConfig:
    """Of the sizes of a window and a gist, in tokens, with the plain prompt; what training would fill in is empty."""
    nothing = {"base_models": {}, "recipe": {}, "measures": {}, "gists": [], "step": 0, "version": __version__}
    return PairConfig(summarizer_prompt=SUMMARIZER_PROMPT, **sizes, **nothing)
