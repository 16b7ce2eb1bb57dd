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

"""What `trl-gist push` runs: which files of a folder are a pair's, what is said of them, and how they reach the Hub."""

import contextlib
import dataclasses
import json
import os
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PureWindowsPath

from huggingface_hub import HfApi, ModelCard, RepoCard, SpaceCardData
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..common.run_files import PLOTS_DIR, RUN_LOG_DIR
from ..data.documents import datasets_on_hub
from ..evaluation.folder import read_measures
from ..models.loading import check_half
from ..pair import GENERATOR_DIR, PAIR_CONFIG_NAME, PairConfig
from ..trainer.model_card import hub_name, model_card
from ..trainer.repository import (
    MODEL_CONFIGS,
    REPORT_FILE,
    TAGS,
    code_files,
    commit_files,
    license_of,
    with_names,
    without_folder,
)
from ..version import __version__
from . import space


_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = (
    "added_tokens.json chat_template.jinja chat_template.json merges.txt sentencepiece.bpe.model special_tokens_map.json "
    "spiece.model tekken.json tiktoken.model tokenizer.json tokenizer.model vocab.json vocab.txt"
).split()
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
# What the template is tested with
GRADIO, PYTHON = "6.31.0", "3.12"


@dataclass
class PushArguments:
    """
    What is pushed where.

    Args:
        pair (`str`):
            The folder of a pair.
        repo (`str`):
            The repository on the Hub, with its owner.
        public (`bool`, *optional*, defaults to `False`):
            Whether all may see it.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to list the files and send nothing; the Hub is not asked.
        base_model (`str`, *optional*):
            Name on the Hub of the base, where that was a folder.
        datasets (`list[str]`, *optional*):
            On the Hub, that the pair was trained on. Defaults to those that the pair names.
        license (`str`, *optional*):
            Defaults to the bases' own, as the Hub has it.
        card (`str`, *optional*):
            A file that stands in for the card that is written.
        evaluation (`str`, *optional*):
            The folder of an evaluation of the pair, whose measures the card has in place of the last ones in training.
        space (`bool`, *optional*, defaults to `False`):
            Whether a Gradio Space of that name is made too.
    """

    pair: str
    repo: str
    public: bool = False
    dry_run: bool = False
    base_model: str | None = None
    datasets: list[str] | None = None
    license: str | None = None
    card: str | None = None
    evaluation: str | None = None
    space: bool = False


def push(args: PushArguments):
    """
    Prints what is sent and what is left out, and sends it in one commit; then the Space, in another.

    Raises:
        ValueError: if the folder is no whole pair, it cannot be loaded by others, a file has a token of the Hub in it, or
            the repository is another model's or seen by others than asked for.
        ConnectionError: if the Hub refuses, or is out of reach. The repository is as it was, and what has arrived is not
            sent twice.
    """
    check_repo_name("The repository", args.repo)
    for name in ("license", "evaluation") if args.card is not None else ():
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name} ({getattr(args, name)}) is of the card that is written, and --card ({args.card}) stands in for it: "
                "leave one of the two out."
            )
    directory = Path(args.pair)
    if not directory.is_dir():
        raise ValueError(f"{args.pair} is no folder. Give the folder that training saved.")
    api = HfApi(library_name="trl_gist", library_version=__version__)
    files, left_out = pair_files(directory, args, None if args.dry_run else api)
    kinds = {"model": files}
    if args.space:
        code = [name for name in files if name.endswith(".py")]
        if code:
            raise ValueError(f"--space runs no code that a pair brings, as {code[0]}. Leave it out.")
        kinds["space"] = space_files(args.repo)
    for kind, content in kinds.items():
        check_no_token(content)
        print_files(f"{args.repo}, a {'public' if args.public else 'private'} {kind}", content)
    if left_out:
        print("Left out:")
        for name, (size, why) in left_out.items():
            print(f"  {name}  {_in_words(size)}, {why}")
    if args.dry_run:
        print("Nothing was sent.")
        return
    with _said_of(f"The push to {args.repo}"):
        for kind in kinds:  # before anything is made or sent
            check_target(api, args.repo, kind, args.public)
        for kind, content in kinds.items():
            url = api.create_repo(
                args.repo,
                private=not args.public,
                repo_type=kind,
                space_sdk="gradio" if kind == "space" else None,
                exist_ok=True,
            )
            commit_files(api, args.repo, content, f"trl-gist push, {__version__}", repo_type=kind)
            print(f"Pushed to {url}", flush=True)
    if args.space and not args.public:
        print("The Space reads a private pair by a token: add HF_TOKEN, one that may read it, to the Space's secrets.")


def check_repo_name(what: str, name: str):
    """Raises `ValueError` if it is not the name of a repository with its owner."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{what} ({name}) is no name on the Hub: {error}") from error
    if "/" not in name:
        raise ValueError(f"{what} ({name}) lacks its owner: give user/name.")


def pair_files(
    directory: Path, args: PushArguments, api: HfApi | None
) -> tuple[dict[str, Path | bytes], dict[str, tuple[int, str]]]:
    """
    The files of a pair by their names in the repository, those that are written for it as bytes; and by name the size of
    what is left out, and why. The Hub is asked for the bases if there is an `api`. Raises `ValueError` as [`push`].
    """
    pair = PairConfig.load(directory)
    files, left_out = sorted_files(directory)
    for role, half in (("summarizer", directory), ("generator", directory / GENERATOR_DIR)):
        check_half(half, role)
        index = half / SAFE_WEIGHTS_INDEX_NAME
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else ()
        for shard in sorted(shards):
            if not (half / shard).is_file():
                raise ValueError(f"The pair's {role} is not whole: {half} lacks {shard}, which {index.name} names.")
    for name, path in files.items():
        if name.endswith(".safetensors"):
            check_whole(path)
    if _TOKENIZER_CONFIG not in files:
        raise ValueError(f"The pair has no tokenizer: {directory} lacks {_TOKENIZER_CONFIG}.")
    pair, adapters, elsewhere = with_bases(pair, files, args.base_model, api)
    for name in args.datasets or ():
        if hub_name(name) is None:
            raise ValueError(
                f"--datasets ({name}) is no name of a dataset on the Hub. Give user/name, or leave it out."
            )
    pair = dataclasses.replace(pair, datasets=args.datasets or pair.datasets)
    bases = [pair.base_models[role] for role in ("summarizer", "generator")]
    license = {"license": args.license} if args.license is not None else None
    if license is None and api is not None and all(map(hub_name, bases)):
        license = license_of(api, sorted(set(bases)))
    if args.card is None:
        shown, measured_on = (pair, None) if args.evaluation is None else evaluated(pair, args.evaluation)
        card = str(model_card(directory, shown, args.repo, TAGS, license, measured_on)).encode()
    else:
        card = Path(args.card).read_bytes()
        ModelCard(card.decode())  # raises `ValueError` for metadata that are none
    written = {REPOCARD_NAME: card, PAIR_CONFIG_NAME: pair.to_json().encode(), **adapters}
    files = dict(sorted({**files, **written}.items()))
    absolute = {base for base in elsewhere if PureWindowsPath(base).is_absolute() or base.startswith("/")}
    check_no_folder(files, {str(directory.resolve()), *absolute})
    return files, left_out


def check_whole(path: Path):
    """Raises `ValueError` if a file of weights is cut off, or is none."""
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}. Copy it again, or take another checkpoint.") from error


def evaluated(pair: PairConfig, folder: str) -> tuple[PairConfig, str]:
    """The pair with the measures that `trl-gist evaluate` wrote, of the first setting; and their dataset on the Hub."""
    found = read_measures(folder)
    if not isinstance(found.get("measures"), list):
        raise ValueError(
            f"--evaluation ({folder}) is no evaluation on held-out documents, as `trl-gist evaluate` writes."
        )
    first = found["measures"][0]
    measures = {
        f"{prefix}{name}": value
        for prefix, group in [
            ("", first),
            *((f"{kind}/", of_kind) for kind, of_kind in first.get("kinds", {}).items()),
        ]
        for name, value in group.items()
        if isinstance(value, int | float) and name not in ("last_k", "budget")
    }
    names = datasets_on_hub(found["dataset"][0] if len(found["dataset"]) == 1 else found["dataset"])
    return dataclasses.replace(pair, measures=measures), names[0] if len(names) == 1 else "text"


def sorted_files(directory: Path) -> tuple[dict[str, Path], dict[str, tuple[int, str]]]:
    """Files of a pair by name; and by name, of folders as a whole, the size of what is none, and why."""
    files, left_out = code_files(directory), {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = path.relative_to(directory).as_posix()
        if _is_of_pair(name):
            files[name] = path
        elif name != REPOCARD_NAME and name not in files:  # written anew
            folder = name.split("/")[0]
            listed = f"{folder}/" if "/" in name and folder != GENERATOR_DIR else name
            size, why = left_out.get(listed, (0, _why_not(name)))
            left_out[listed] = size + path.stat().st_size, why
    return files, left_out


def _is_of_pair(name):
    folder, _, file = name.rpartition("/")
    if folder == PLOTS_DIR:
        return file.endswith((".png", ".svg"))
    if folder == "" and file in (PAIR_CONFIG_NAME, REPORT_FILE):
        return True
    kept = (*MODEL_CONFIGS, *_TOKENIZER_FILES, _TOKENIZER_CONFIG)
    return folder in ("", GENERATOR_DIR) and (
        file in kept or file.endswith(".safetensors") or file.startswith(("LICENSE", "NOTICE"))
    )


def _why_not(name):
    folder = name.split("/")[0]
    if folder.startswith("."):
        return "hidden"
    if "/" in name and re.fullmatch(r"(last-)?checkpoint(-\d+)?", folder):
        return "a checkpoint: what a run needs to go on, as optimizer states"
    if folder == RUN_LOG_DIR or "tfevents" in name or name.endswith(".log"):
        return "logs"
    if name.endswith(_PICKLES):
        return "a pickle, as optimizer states are, or arguments with a token"
    return "no part of a pair"


def with_bases(
    pair: PairConfig, files: dict[str, Path], base_model: str | None, api: HfApi | None
) -> tuple[PairConfig, dict[str, bytes], list[str]]:
    """
    The pair with bases that are names on the Hub, or names without a folder of this machine; the adapters' configs, as
    files, where that changes them; and the bases that are not on the Hub. Raises `ValueError` if nobody else could load
    the adapters.
    """
    configs = {
        name: json.loads(path.read_text()) for name, path in files.items() if name.endswith(ADAPTER_CONFIG_NAME)
    }
    stands_on = {name: config["base_model_name_or_path"] or "" for name, config in configs.items()}
    named = {*pair.base_models.values(), *stands_on.values()}
    elsewhere = sorted(base for base in named if not _on_hub(base, api))
    if base_model is not None:
        check_repo_name("--base_model", base_model)
        if len(elsewhere) != 1:
            raise ValueError(
                f"--base_model ({base_model}) is the Hub's name of a base that was a folder, but of this pair "
                f"{' and '.join(elsewhere) or 'none'} was. Leave it out, or correct `base_models` in {PAIR_CONFIG_NAME} "
                f"and `base_model_name_or_path` in the files {ADAPTER_CONFIG_NAME}."
            )
        if not _on_hub(base_model, api):
            raise ValueError(f"--base_model ({base_model}) is not on the Hub. Push it first.")
    for base in stands_on.values():
        if base in elsewhere and base_model is None:
            raise ValueError(
                f"{base or 'A model without a name'}, which the adapters stand on, is not on the Hub, so that nobody else "
                "could load them. Give its name there by --base_model, and push it first if it has none."
            )
    names = {base: base_model or without_folder(base) for base in elsewhere}
    return *with_names(pair, configs, names), elsewhere


def _on_hub(base, api):
    if hub_name(base) is None:
        return False
    with _said_of(f"Asking the Hub for {base}"):
        return api is None or api.repo_exists(base)


def space_files(repo: str) -> dict[str, Path | bytes]:
    """A Space that loads the pair: the app, this package, which need not be published, and what it requires."""
    package = Path(__file__).parents[1]
    data = SpaceCardData(
        title=repo.split("/")[1],
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file="app.py",
        license="apache-2.0",
        models=[repo],
        tags=TAGS,
    )
    card = RepoCard(f"---\n{data.to_yaml()}\n---\n\nWrites gists of a text by the pair [{repo}](/{repo}).\n")
    requirements = [line for line in metadata.requires("trl-gist") or () if "extra ==" not in line]
    sources = {
        f"{package.name}/{path.relative_to(package).as_posix()}": path
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    return {
        REPOCARD_NAME: str(card).encode(),
        "app.py": Path(space.__file__).read_bytes().replace(space.PAIR.encode(), repo.encode()),
        "requirements.txt": "".join(f"{line}\n" for line in requirements).encode(),
        **sources,
    }


def check_no_token(files: dict[str, Path | bytes]):
    """Raises `ValueError` for a text with what looks like a token of the Hub."""
    for name, content in files.items():
        if not name.endswith(".safetensors"):
            if _TOKEN.search(content if isinstance(content, bytes) else content.read_bytes()):
                raise ValueError(f"{name} has what looks like a token of the Hub. Remove it there, and push again.")


def check_no_folder(files: dict[str, Path | bytes], folders: set[str]):
    """Raises `ValueError` for a text that names one of these folders of this machine."""
    for name, content in files.items():
        if name.endswith(".safetensors"):
            continue
        content = content if isinstance(content, bytes) else content.read_bytes()
        for folder in sorted(folders):
            if folder.encode() in content or json.dumps(folder)[1:-1].encode() in content:
                remedy = (
                    "Write it anew: `trl-gist report`." if name == REPORT_FILE else "Remove it there, and push again."
                )
                raise ValueError(f"{name} names {folder}, a folder of this machine. {remedy}")


def check_target(api: HfApi, repo: str, kind: str, public: bool):
    """Raises `ValueError` for a repository that is there and holds something else, or is not seen by whom was asked for."""
    try:
        info = api.repo_info(repo, repo_type=kind)
    except RepositoryNotFoundError:
        return
    held = {sibling.rfilename for sibling in info.siblings or ()}
    ours = PAIR_CONFIG_NAME if kind == "model" else "trl_gist/version.py"
    theirs = [name for name in held if name in (*MODEL_CONFIGS, "app.py") or name.endswith(".safetensors")]
    if theirs and ours not in held:
        raise ValueError(
            f"{repo} holds another {kind}, as {min(theirs)} is there and {ours} is not. Choose another name."
        )
    if public and info.private:
        raise ValueError(f"The {kind} {repo} is private. Leave --public out, or make it public in its settings first.")
    if not public and not info.private:
        raise ValueError(f"The {kind} {repo} is public already: add --public, or choose another name.")


@contextlib.contextmanager
def _said_of(what):
    """What the client raises, as one error that says what to do."""
    try:
        yield
    except ValueError:
        raise  # ours
    except Exception as error:  # huggingface_hub (2.4) raises OSError, RuntimeError and its client's own
        said = f"{error} {error.__cause__}" if isinstance(error, RuntimeError) else error
        raise ConnectionError(
            f"{what} failed: {said}\nThe same command tries again, and what has arrived is not sent twice. "
            "If it is refused: `hf auth login`, with a token that may write."
        ) from error


def print_files(title: str, files: dict[str, Path | bytes]):
    """One a line with its size; of the package in a Space the sum."""
    sizes = {}
    for name, content in files.items():
        listed = "trl_gist/" if name.startswith("trl_gist/") else name
        size = len(content) if isinstance(content, bytes) else os.path.getsize(content)
        sizes[listed] = sizes.get(listed, 0) + size
    width = max(map(len, sizes))
    print(f"{title}:")
    for name, size in sizes.items():
        print(f"  {name:<{width}}  {_in_words(size):>9}")
    print(f"  {'':<{width}}  {_in_words(sum(sizes.values())):>9} in {len(files)} files")


def _in_words(size):
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
