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

"""The card of a saved pair: what its readers see, and what the Hub reads of it."""

import math
import os
from pathlib import Path, PureWindowsPath

import jinja2
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME

from ..common.run_files import PLOTS_DIR
from ..common.tables import cell
from ..evaluation.pages.labels import count_label
from ..models.loading import code_references
from ..pair import GENERATOR_DIR, PairConfig


# What a card has of each kind of target
_OF_KIND = ("teacher_kl", "nll_gist", "gain_over_null", "gap_closed_last_k", "exact")

_CARD = jinja2.Template("""---
{{ card_data }}
---

# {{ model_name }}

A pair of language models that compact a context into a short gist of plain vocabulary tokens, trained with
[TRL](https://github.com/huggingface/trl) and trl_gist: this repository's root is the **summarizer**, which writes a
gist of at most {{ pair.max_gist_length }} tokens for {{ pair.context_length }} tokens of context; `generator/` is the
**generator**, which continues from the gist and the last {{ pair.last_k }} tokens.

```python
from trl_gist import GistCompactor

compactor = GistCompactor.from_pretrained("{{ model_name }}"{{ trust }})
gist = compactor.compress(text)
print(gist.text, gist.gist_rate)
print(compactor.continue_text(text, max_new_tokens=64).text)
```

Or by a pipeline of transformers:

```python
from transformers import pipeline

import trl_gist.pipeline  # registers the task

gists = pipeline("context-compaction", model="{{ model_name }}"{{ trust }})(text)
```

Each half is a model of its own. The generator alone:

```python
from transformers import AutoModelForCausalLM

generator = AutoModelForCausalLM.from_pretrained({{ generator }}{{ trust }})
```
{%- if trust %}

The pair brings code of its own, which runs only where it is trusted: read the files *.py first.
{%- endif %}

## Measures

{% if measures -%}
On {{ count }}, after {{ pair.step }} steps;
nats per target token ± standard error over documents.

| measure | value |
|---|---|
{% for name, value, error in measures -%}
| {{ cell(name) }} | {{ value }}{% if error %} ± {{ error }}{% endif %} |
{% endfor %}
{%- if by_kind %}
The same by kind of target:

| kind | targets | {{ of_kind | join(" | ") }} |
|---|---{{ of_kind | length * "|---" }}|
{% for kind, targets, values in by_kind -%}
| {{ cell(kind) }} | {{ targets }} | {{ values | join(" | ") }} |
{% endfor %}
{%- endif %}
{%- else -%}
None: the run had no `eval_dataset`.
{%- endif %}

{% if plot -%}
![Distance to the teacher and what the gist buys, over training]({{ plot }})

{% endif -%}
## Gists
{% for example in pair.gists %}
> …{{ example.context_end | replace("\\n", "\\n> ") }}

**{{ example.gist or "(empty)" }}**
{% else %}
None: the run had no `eval_dataset`.
{% endfor %}
## Recipe

| argument | value |
|---|---|
{% for name, value in pair.recipe.items() -%}
| `{{ name }}` | `{{ cell(value) }}` |
{% endfor %}
Trained from {{ bases.summarizer }} (summarizer), {{ bases.generator }} (generator) and
{{ bases.teacher }} (teacher){% if pair.datasets %} on {{ pair.datasets | join(", ") }}{% endif %}.
{%- if license %} The licence is that of the models it was trained from.{% endif %}
""")


def save_model_card(
    directory: str | os.PathLike, pair: PairConfig, model_name: str, tags: list[str], license: dict | None = None
):
    """Writes `README.md`, as of [`model_card`]."""
    model_card(directory, pair, model_name, tags, license).save(Path(directory, REPOCARD_NAME))


def model_card(
    directory: str | os.PathLike,
    pair: PairConfig,
    model_name: str,
    tags: list[str],
    license: dict | None = None,
    measured_on: str | None = None,
) -> ModelCard:
    """
    How to use the pair in a directory, its held-out measures, plot, three gists and recipe; without the paths of the
    machine that it was trained on.

    Args:
        directory (`str` or `os.PathLike`):
            Where the pair is.
        pair ([`~pair.PairConfig`]):
            What its `gist_config.json` says.
        model_name (`str`):
            A repository on the Hub, with its owner, or else the name of a folder.
        tags (`list[str]`):
            For the Hub.
        license (`dict`, *optional*):
            `license` and, where it is `"other"`, `license_name` and `license_link`, as the Hub spells them.
        measured_on (`str`, *optional*):
            The dataset on the Hub that the measures are of. Defaults to the one that the pair was trained on, of which an
            evaluation during training holds documents out.
    """
    adapts, summarizer_adapts = (Path(directory, half, ADAPTER_CONFIG_NAME).is_file() for half in (GENERATOR_DIR, ""))
    names = {role: hub_name(base) for role, base in pair.base_models.items()}
    bases = list(dict.fromkeys(names[role] for role in ("summarizer", "generator") if names[role] is not None))
    card_data = ModelCardData(
        base_model=bases[0] if len(bases) == 1 else bases or None,
        base_model_relation=("adapter" if adapts and summarizer_adapts else "finetune") if bases else None,
        datasets=pair.datasets or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
        widget=[{"text": each["context_end"], "output": {"text": each["gist"]}} for each in pair.gists] or None,
        model_name=model_name,
        eval_results=_eval_results(pair, measured_on) or None,
        **(license or {}),
    )
    has_code = any(code_references(Path(directory, half)) for half in ("", GENERATOR_DIR))
    overall = [name for name in _measures(pair) if "/" not in name]
    measures = [(name, _number(pair.measures[name]), _number(pair.measures.get(f"{name}_se"))) for name in overall]
    kinds = sorted({name.rpartition("/")[0] for name in pair.measures if "/" in name})
    plot = f"{PLOTS_DIR}/training.png"
    content = _CARD.render(
        card_data=card_data.to_yaml(),
        pair=pair,
        cell=cell,
        bases={
            role: names[role] or f"{folder_name(base)} (not on the Hub)" for role, base in pair.base_models.items()
        },
        model_name=model_name,
        measures=measures,
        count=count_label(pair.measures, "held-out windows") if measures else None,
        of_kind=_OF_KIND,
        by_kind=[
            (
                kind,
                pair.measures.get(f"{kind}/windows", ""),
                [_with_error(pair.measures, f"{kind}/{name}") for name in _OF_KIND],
            )
            for kind in kinds
        ],
        plot=plot if Path(directory, plot).is_file() else None,
        generator=_generator_arguments(model_name, adapts, summarizer_adapts),
        trust=", trust_remote_code=True" if has_code else "",
        license=license,
    )
    return ModelCard(content)


def hub_name(base: str) -> str | None:
    """A base's name on the Hub; `None` of a folder, of this machine or another, or of a model that was given as one."""
    try:
        validate_repo_id(base)
    except HFValidationError:
        return None
    return None if not base or os.path.exists(base) or hasattr(transformers, base) else base


def folder_name(base: str) -> str:
    """The last part of a folder's path, of this machine or another."""
    return PureWindowsPath(base).name  # which both kinds of slashes part


def _generator_arguments(model_name, adapts, summarizer_adapts):
    """The arguments of `from_pretrained` in transformers (5.23), which looks for an adapter apart from a model, and in
    the root first; in a local folder, next to a whole summarizer, it would draw the adapter on that."""
    if "/" not in model_name:
        return f'"{model_name}/{GENERATOR_DIR}"'
    adapter = f'adapter_kwargs={{"subfolder": "{GENERATOR_DIR}"}}' if adapts or summarizer_adapts else None
    model = None if adapts else f'subfolder="{GENERATOR_DIR}"'
    return ", ".join(part for part in (f'"{model_name}"', model, adapter) if part)


def _measures(pair):
    return {
        name: value
        for name, value in pair.measures.items()
        if not name.endswith("_se") and name not in ("windows", "contexts", "documents")
    }


def _eval_results(pair, dataset):
    """The measures over all windows, as the Hub lists them: numbers."""
    if dataset is None and len(pair.datasets) == 1:
        dataset = pair.datasets[0]
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Context compaction",
            dataset_type=dataset or "text",
            dataset_name=f"{dataset or 'text'}, {pair.measures['documents']} held-out documents",
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=round(value, 4),
        )
        for name, value in _measures(pair).items()
        if "/" not in name and value is not None and math.isfinite(value)
    ]


def _with_error(measures, name):
    value, error = _number(measures.get(name)), _number(measures.get(f"{name}_se"))
    return f"{value} ± {error}" if error else value


def _number(value):
    return "" if value is None else f"{value:.4f}"
