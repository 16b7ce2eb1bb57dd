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

"""The card of a saved pair."""

import os
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME

from ..common.run_files import PLOTS_DIR
from ..pair import GENERATOR_DIR, PairConfig


_CARD = """---
{{ card_data }}
---

# {{ model_name }}

A pair of language models that compact a context into a short gist of plain vocabulary tokens, trained with
[TRL](https://github.com/huggingface/trl) and trl_gist: this repository's root is the **summarizer**, which writes a
gist of at most {{ pair.max_gist_length }} tokens for {{ pair.context_length }} tokens of context; `generator/` is the
**generator**, which continues from the gist and the last {{ pair.last_k }} tokens.

```python
from trl_gist import GistCompactor

compactor = GistCompactor.from_pretrained("{{ model_name }}")
gist = compactor.compress(text)
print(gist.text, gist.gist_rate)
print(compactor.continue_text(text, max_new_tokens=64).text)
```

Each half is a model of its own. The generator alone:

```python
from transformers import AutoModelForCausalLM

generator = AutoModelForCausalLM.from_pretrained("{{ model_name }}", {{ subfolder }})
```

## Measures

{% if measures -%}
On {{ pair.measures.windows }} held-out windows of {{ pair.measures.documents }} documents, after {{ pair.step }} steps;
nats per target token ± standard error over documents.

| measure | value |
|---|---|
{% for name, value, error in measures -%}
| {{ name }} | {{ value }}{% if error %} ± {{ error }}{% endif %} |
{% endfor %}
{%- else -%}
None: the run had no `eval_dataset`.
{%- endif %}

{% if plot -%}
![Distance to the teacher and what the gist buys, over training]({{ plot }})

{% endif -%}
## Gists
{% for example in pair.gists %}
> …{{ example.context_end }}

**{{ example.gist or "(empty)" }}**
{% else %}
None: the run had no `eval_dataset`.
{% endfor %}
## Recipe

| argument | value |
|---|---|
{% for name, value in pair.recipe.items() -%}
| `{{ name }}` | `{{ value }}` |
{% endfor %}
Trained from {{ pair.base_models.summarizer }} (summarizer), {{ pair.base_models.generator }} (generator) and
{{ pair.base_models.teacher }} (teacher).
"""


def save_model_card(directory: str | os.PathLike, pair: PairConfig, model_name: str, tags: list[str]):
    """Writes `README.md`: how to use the pair in `directory`, its held-out measures, plot, three gists and recipe."""
    base = pair.base_models["summarizer"]
    card_data = ModelCardData(
        base_model=None if os.path.isdir(base) else base or None,
        library_name="transformers",
        tags=tags,
        model_name=model_name,
    )
    measures = [
        (name, _number(value), _number(pair.measures.get(f"{name}_se")))
        for name, value in pair.measures.items()
        if not name.endswith("_se") and name not in ("windows", "documents")
    ]
    plot = f"{PLOTS_DIR}/training.png"
    # transformers (5.23) takes a `subfolder` for one of the adapter's base as well
    is_adapter = Path(directory, GENERATOR_DIR, ADAPTER_CONFIG_NAME).is_file()
    subfolder = f'adapter_kwargs={{"subfolder": "{GENERATOR_DIR}"}}' if is_adapter else f'subfolder="{GENERATOR_DIR}"'
    card = ModelCard.from_template(
        card_data,
        template_str=_CARD,
        pair=pair,
        model_name=model_name,
        measures=measures,
        plot=plot if Path(directory, plot).is_file() else None,
        subfolder=subfolder,
    )
    card.save(Path(directory, "README.md"))


def _number(value):
    return "" if value is None else f"{value:.4f}"
