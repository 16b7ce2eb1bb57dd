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
The house: which module may import which, and which may reach into TRL and transformers.

Every import counts, also those inside functions and for type checkers.
"""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trl_gist


PACKAGE = Path(trl_gist.__file__).parent
# From the ground up: each imports those before it alone
WINGS = (
    *("version", "common", "prompts", "pair", "data", "models", "scoring", "inference", "pipeline", "rewards"),
    *("evaluation", "serving", "integrations", "trainer", "scripts", "cli"),
)
# Where TRL and transformers name what is theirs alone
PRIVATE_IN = (
    *("trl.trainer.grpo_trainer", "trl.trainer.base_trainer", "trl.trainer.utils", "trl.generation.vllm_generation"),
    *("transformers.trainer", "transformers.modeling_utils", "transformers.configuration_utils"),
    *("transformers.generation.utils", "transformers.tokenization_utils_base", "transformers.pipelines.base"),
)
MAY_REACH = {
    "trainer/gist_trainer.py": "all that GistTrainer overrides of TRL's trainer",
    "trainer/vllm.py": "what TRL's vLLM engine is told of the pair's policy",
    "pipeline.py": "`_sanitize_parameters` and `_forward`, which transformers documents for pipelines of others",
    "models/attention.py": "`_attn_implementation`, which has a public setter and no getter",
}


def modules() -> dict[str, Path]:
    """Names without `trl_gist.`, but for the package itself."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> set[str]:
    """The modules of the package that a module imports."""
    package = MODULES[name].parent.relative_to(PACKAGE.parent).parts
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.partition(".")[0] == "trl_gist":
                inside = target.removeprefix("trl_gist").removeprefix(".")
                found.add(inside if inside in MODULES else inside.rpartition(".")[0])
    return found


def foreign_roots(name: str) -> set[str]:
    """Packages beside this one that a module imports."""
    roots = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots.add(node.module.partition(".")[0])
    return roots


GRAPH = {name: imports(name) for name in MODULES if name}


def wing(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_is_in_a_wing():
    assert {wing(name) for name in GRAPH} == set(WINGS)


def test_imports_go_down_only():
    upward = [
        f"{name} imports {target or 'trl_gist'}"
        for name, targets in GRAPH.items()
        for target in targets
        if not target or WINGS.index(wing(target)) > WINGS.index(wing(name))
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    left = {name: targets - {name} for name, targets in GRAPH.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize("name", [name for name in GRAPH if WINGS.index(wing(name)) <= WINGS.index("inference")])
def test_inference_and_what_is_below_it_never_import_trl(name):
    assert "trl" not in foreign_roots(name)


# ---- Private names ----


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names_of_others() -> set[str]:
    """That TRL's and transformers' classes call themselves by."""
    sources = [inspect.getsource(importlib.import_module(module)) for module in PRIVATE_IN]
    return {name for source in sources for name in re.findall(r"\b(?:self\.|def )(_[a-z]\w*)", source)}


def reached(tree: ast.Module, theirs: set[str]) -> set[str]:
    """
    Private names of TRL and transformers that a file imports, overrides, or reads where it does not define them itself.
    """
    found, defined, bases = set(), set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and wing(node.module) in ("trl", "transformers"):
            bases |= {alias.name: importlib.import_module(node.module) for alias in node.names}
            found |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            defined.add(node.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            own = {each.name for each in node.body if isinstance(each, ast.FunctionDef) and is_private(each.name)}
            for base in {ast.unparse(base) for base in node.bases} & bases.keys():
                found |= {name for name in own if hasattr(getattr(bases[base], base), name)}
        elif isinstance(node, ast.Attribute) and node.attr not in defined:
            found |= {node.attr} & theirs
    return found


def test_private_names_of_trl_and_transformers_are_reached_in_few_files():
    theirs = private_names_of_others()
    assert {"_generate_and_score_completions", "_save_checkpoint", "_attn_implementation"} <= theirs
    reaching = {MODULES[name].relative_to(PACKAGE).as_posix(): reached(tree, theirs) for name, tree in TREES.items()}
    reaching = {path: names for path, names in reaching.items() if names}
    assert reaching.keys() == MAY_REACH.keys(), reaching


# ---- What is loaded ----


LOADED = """
import importlib, json, sys
for names in json.loads(sys.argv[1]):
    for name in names:
        importlib.import_module(name)
    print(*{name.partition(".")[0] for name in sys.modules})
from transformers.pipelines import PIPELINE_REGISTRY
print(*(PIPELINE_REGISTRY.check_task(task)[1]["impl"].__qualname__ for task in ("context-compaction", "gist-compaction")))
"""


@pytest.fixture(scope="module")
def loaded():
    """Top-level modules of one fresh process after more and more of the package; and what its tasks are."""
    everything = [name for name in MODULES if name and wing(name) != "integrations" and not name.endswith("__main__")]
    stages = [["trl_gist"], ["trl_gist.inference.compactor"], [f"trl_gist.{name}" for name in everything]]
    process = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(stages)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    *stages, tasks = (set(line.split()) for line in process.stdout.splitlines()[-len(stages) - 1 :])
    return {**dict(zip(("package", "inference", "all"), stages, strict=True)), "tasks": tasks}


def test_importing_the_package_stays_light_and_importing_the_pipeline_registers_it(loaded):
    assert "trl_gist" in loaded["package"] and "torch" not in loaded["package"]
    assert loaded["tasks"] == {"GistCompactionPipeline"}


def test_inference_loads_nothing_that_reads_data_trains_or_serves(loaded):
    assert "torch" in loaded["inference"]
    assert not loaded["inference"] & {"trl", "datasets", "pandas", "deepspeed", "vllm", "fastapi", "matplotlib"}


def test_only_integrations_know_of_frameworks_for_agents(loaded):
    frameworks = {"langchain", "langchain_core", "langgraph", "agents"}
    for name, targets in GRAPH.items():
        if wing(name) != "integrations":
            assert not foreign_roots(name) & frameworks and not {wing(target) for target in targets} & {"integrations"}
    assert "trl" in loaded["all"] and not loaded["all"] & frameworks


def test_every_module_says_what_lives_there():
    silent = [name for name, tree in TREES.items() if ast.get_docstring(tree) is None]
    assert silent == []
