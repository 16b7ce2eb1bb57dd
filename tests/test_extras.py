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
Each extra of setup.cfg by itself, beside what the package needs anyhow: everything else that is installed is hidden.
"""

import configparser
import json
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from itertools import chain

import pytest
from launching import ROOT, finished
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
CORE = SETUP["options"]["install_requires"].split("\n")
EXTRAS = {name: lines.split("\n") for name, lines in SETUP["options.extras_require"].items()}
# Beside the extra's own packages, and the modules of trl_gist that name it
NEED = {"corpus": "research/corpus", "demo": "examples research/gist_tokens", "eval": "research/rate_distortion"}
# These say themselves which packages they need, by what stands on top of them
CLIENTS = {"examples.self_study", "examples.serving_client"}

# One process loads what all have in common; then a fork of it for each extra
IMPORTS = """
import importlib, json, os, pathlib, re, sys
from importlib.machinery import PathFinder

plan, out = json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8")), pathlib.Path(sys.argv[2])
hidden = {"modules": plan[""]["hidden"], "packages": plan[""]["hidden packages"]}

class Fresh(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden["modules"] else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *args, **kwargs):
        found = super().find_distributions(*args, **kwargs)
        return (each for each in found if re.sub(r"[-_.]+", "-", each.name).lower() not in hidden["packages"])

sys.meta_path[sys.meta_path.index(PathFinder)] = Fresh

def failures(modules):
    failed = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            failed[module] = str(error)
    return failed

bare = failures(plan.pop("")["modules"])
(out / "bare.json").write_text(json.dumps(bare), "utf-8")
for extra, each in plan.items():
    child = os.fork()
    if not child:
        hidden.update({"modules": each["hidden"], "packages": each["hidden packages"]})
        ours = [module for module, error in bare.items() if f"[{extra}]" in error]
        (out / f"{extra}.json").write_text(json.dumps(failures([*each["modules"], *ours])), "utf-8")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, extra
"""


def closure(requirements, extras=frozenset({""})):
    """Names of the installed distributions that requirements bring, in turn."""
    found, waiting = set(), [(line, extras) for line in requirements if line]
    seen = set()
    while waiting:
        line, extras = waiting.pop()
        requirement = Requirement(line)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name, wanted = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
        if (name, wanted) not in seen:
            seen.add((name, wanted))
            try:
                waiting += [(each, wanted) for each in distribution(name).requires or []]
                found.add(name)
            except PackageNotFoundError:
                continue
    return found


def modules_in(*folders):
    names = (path.relative_to(ROOT).with_suffix("").parts for each in folders for path in (ROOT / each).rglob("*.py"))
    names = {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names if "__main__" not in parts}
    return sorted(names - CLIENTS)


MODULES = {}  # {distribution: what one imports of it}
for module, names in packages_distributions().items():
    for name in names:
        MODULES.setdefault(canonicalize_name(name), set()).add(module)


def fresh(lines, modules):
    shown = closure([*CORE, *lines])
    hidden = MODULES.keys() - shown - {"trl-gist", "pip"}
    tops = set().union(*(MODULES[name] for name in hidden)) - set().union(*(MODULES.get(name, ()) for name in shown))
    return {"modules": modules, "hidden": sorted(tops), "hidden packages": sorted(hidden)}


def brought(extra):
    """Distributions that an extra names itself."""
    lines = EXTRAS[extra]
    if extra == "dev":
        lines = set(lines) - set(chain.from_iterable(EXTRAS[name] for name in EXTRAS if name != "dev"))
    found = {requirement.name: requirement.extras for requirement in map(Requirement, filter(None, lines))}
    return {canonicalize_name(next(iter(extras), name)) for name, extras in found.items()}


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """{extra: {module that cannot be imported: what is said}}; of "bare", without any."""
    folder = tmp_path_factory.mktemp("extras")
    plan = {"": fresh([], modules_in("trl_gist"))}
    for extra, lines in EXTRAS.items():
        own = {module for name in brought(extra) for module in MODULES.get(name, ()) if module.isidentifier()}
        own = sorted(module for module in own if not module.startswith("_"))
        plan[extra] = fresh(lines, own + modules_in(*NEED.get(extra, "").split()))
    (folder / "plan").write_text(json.dumps(plan), "utf-8")
    command = [sys.executable, "-c", IMPORTS, str(folder / "plan"), str(folder)]
    done = finished(command, 400, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}


def test_what_cannot_be_imported_without_an_extra_names_it(failures):
    for module, said in failures["bare"].items():
        package, extra = re.fullmatch(r'(\w+) is missing: pip install "trl_gist\[(\w+)\]"', said).groups()
        assert package in set().union(*(MODULES[name] for name in brought(extra))), module
    named = {said.rpartition("[")[2][:-2] for said in failures["bare"].values()}
    assert named == {"agents", "eval", "langchain", "serve"}
    # What trains, and what uses a pair, is there without any
    assert {module.split(".")[1] for module in failures["bare"]} == {
        "evaluation",
        "integrations",
        "serving",
        "scripts",
    }
    assert (
        not {"trl_gist.evaluation", "trl_gist.scripts.train", "trl_gist.scripts.arguments"} & failures["bare"].keys()
    )


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_by_itself_brings_what_it_is_for(failures, extra):
    assert failures[extra] == {}
    if absent := sorted(name for name in brought(extra) if name not in MODULES):
        pytest.skip(f"{', '.join(absent)}: not installed here")
