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
A repository on the Hub that holds a pair: what its bases are called there, the code that it brings, one commit at a time,
what a commit takes away, and the licence it stands under.
"""

import dataclasses
import json
from pathlib import Path

import transformers
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from ..models.loading import code_references
from ..pair import GENERATOR_DIR, PairConfig
from .model_card import folder_name, hub_name


REPORT_FILE = "report.html"
TAGS = ["trl", "trl_gist", "context-compression"]
MODEL_CONFIGS = (CONFIG_NAME, GENERATION_CONFIG_NAME, ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME)


def without_folder(base: str) -> str:
    """
    What a base is called that is not on the Hub: a folder by the last part of its path, and not as a name on the Hub would
    be; a model that was given as one by its class, as it was.
    """
    is_class = isinstance(getattr(transformers, base, None), type)  # the package has a folder `models` too
    return base if is_class else f"./{folder_name(base)}"


def with_names(
    pair: PairConfig, adapters: dict[str, dict], names: dict[str, str]
) -> tuple[PairConfig, dict[str, bytes]]:
    """The pair with other names of its bases; and the adapters' configs, by their files' names, as files where that
    changes them."""
    bases = {role: names.get(base, base) for role, base in pair.base_models.items()}
    changed = {
        name: json.dumps({**config, "base_model_name_or_path": names[base]}, indent=2).encode()
        for name, config in adapters.items()
        if (base := config["base_model_name_or_path"]) in names
    }
    return dataclasses.replace(pair, base_models=bases), changed


def code_files(directory: Path) -> dict[str, Path]:
    """
    The code that a pair brings, by its names in the repository: the modules that its configs name, and what these import.
    The generator's is also in the root, where transformers (5.23) looks for it of a repository.

    Raises:
        ValueError: if a module is missing, or is that of a folder of this machine.
    """
    files = {}
    for half in ("", GENERATOR_DIR):
        for reference in code_references(Path(directory, half)):
            repo, _, name = reference.rpartition("--")
            if hub_name(repo) is not None:
                continue  # whoever loads the pair gets it from there
            module = Path(directory, half, f"{name.split('.')[0]}.py")
            try:
                needed = [] if repo else [module, *map(Path, get_relative_import_files(module))]
            except OSError as error:
                raise ValueError(
                    f"Without its code nobody could load the pair: {Path(directory, half)} names {reference}, and "
                    f"{error.filename} is missing. Copy the *.py files of the base there."
                ) from error
            if repo:
                raise ValueError(
                    f"Without its code nobody could load the pair: {Path(directory, half)} names {reference}, and {repo} is "
                    f"not on the Hub. Copy its *.py files there, and name {name} in `auto_map`."
                )
            for path in needed:
                files[path.relative_to(directory).as_posix()] = path
                files.setdefault(path.name, path)
    return files


def commit_files(
    api: HfApi,
    repo: str,
    files: dict[str, Path | bytes],
    commit_message: str | None,
    token: str | None = None,
    revision: str | None = None,
    repo_type: str = "model",
) -> CommitInfo:
    """
    Uploads files, and deletes those of an earlier push that they replace, in one commit: with Xet, huggingface_hub's
    (2.4) `upload_folder` spreads a folder over several, and one of S's weights without G's could be what somebody
    downloads. Large files that have arrived are not sent again by the next try.
    """
    head = api.repo_info(repo, repo_type=repo_type, revision=revision, token=token)
    held = [sibling.rfilename for sibling in head.siblings]
    return api.create_commit(
        repo,
        operations=[
            *(CommitOperationAdd(name, content) for name, content in files.items()),
            *(CommitOperationDelete(name) for name in outdated(held, files)),
        ],
        commit_message=commit_message,
        token=token,
        repo_type=repo_type,
        revision=revision,
        # Files that have not changed are left out of a commit: had somebody pushed in between, it would be a mixture
        parent_commit=head.sha,
    )


def outdated(held: list[str], pushed: list[str]) -> list[str]:
    """
    What a push has to delete: files that an earlier one wrote where this one writes, as the shards of a model that now
    has fewer, or adapters of a pair that is now plain models. Whatever else the repository holds is not the pair's.
    """
    folders = {name.split("/")[0] for name in pushed if "/" in name}
    return [
        name
        for name in held
        if name not in pushed
        and (
            name.split("/")[0] in folders
            or name in MODEL_CONFIGS
            or ("/" not in name and name.endswith(".safetensors"))
        )
    ]


def license_of(api: HfApi, bases: list[str], token: str | None = None) -> dict[str, str] | None:
    """The licence that all bases have by their cards on the Hub, which holds for what is trained from them; `None` if
    they differ, one says none, or the Hub is out of reach."""
    found = []
    for base in bases:
        try:
            card = api.model_info(base, token=token).card_data
        except Exception:  # huggingface_hub (2.4) raises OSError and its client's own; no licence is worth a run
            return None
        fields = {name: getattr(card, name, None) for name in ("license", "license_name", "license_link")}
        found.append({name: value for name, value in fields.items() if value is not None})
    return found[0] if found and found[0] and all(each == found[0] for each in found) else None
