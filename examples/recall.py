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
What a pair recalls from its gists alone: facts and sentences of a text, target by target.

python -m examples.recall PAIR                        on an article that the demo's pairs never saw
python -m examples.recall PAIR my_notes.txt --windows 3

PAIR is a folder or a repository on the Hub, trained with `target_kinds`. Each context is written as a gist, once. Then
the generator reads the gist and the words before a target, and writes on greedily; beside it stands what it writes
with an empty gist. Green is word for word.
"""

import argparse

from trl_gist import Gist, GistCompactor
from trl_gist.cli.flags import text_file
from trl_gist.data.targets import TargetSpec
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.models.generation import greedy_continuations

from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def recalled(compactor: GistCompactor, window: dict, gist_ids: list[int]) -> list[str]:
    """What the generator writes after the cue of each target of a window, as many tokens as the target has."""
    targets = window["targets"]
    prompts = [compactor.prompts.generator(gist_ids, target["cue_ids"]) for target in targets]
    longest = max(len(target["target_ids"]) for target in targets)
    written = greedy_continuations(compactor.generator, prompts, longest, compactor.tokenizer, batch_size=8)
    return [compactor.decode(ids[: len(t["target_ids"])]) for ids, t in zip(written, targets, strict=True)]


def print_window(console: Console, compactor: GistCompactor, window: dict):
    (gist,) = compactor.compress_batch([window["context_ids"]])
    with_gist, with_none = (recalled(compactor, window, ids) for ids in (gist.token_ids, []))
    print_recalled(console, compactor, window, {"from the gist": (gist, with_gist), "from none": (None, with_none)})
    console.rule()


def print_recalled(
    console: Console, compactor: GistCompactor, window: dict, columns: dict[str, tuple[Gist | None, list[str]]]
):
    """The targets of a window, and by column what was recalled of them from which gist: green is word for word."""
    console.print(f"[dim]{escape(window['prompt'])}[/dim]\n")
    gists = {label: gist for label, (gist, _) in columns.items() if gist is not None}
    for label, gist in gists.items():
        which = f"gist, {label}" if len(gists) > 1 else "gist"
        console.print(f"  {which}, {len(gist.token_ids)} tokens: [bold]{escape(gist.text)}[/bold]")
    table = Table("kind", "cue", "the text has", *columns, box=None, padding=(0, 1))
    for index, target in enumerate(window["targets"]):
        wanted = compactor.decode(target["target_ids"])
        written = [texts[index] for _, texts in columns.values()]
        cells = [f"[{'green' if text == wanted else 'red'}]{escape(text.strip())}[/]" for text in written]
        cue = f"… {compactor.decode(target['cue_ids']).strip()}"
        table.add_row(target["kind"], escape(cue), escape(wanted.strip()), *cells)
    console.print()
    console.print(table)


def first_windows(compactor: GistCompactor, text: str, count: int) -> list[dict]:
    """The first windows of a text, as long as the pair was trained on, with eight targets each."""
    targets = TargetSpec((("fact", 3), ("recall", 1)), targets_per_context=8)
    spec = WindowSpec(compactor.pair.context_length, 32, compactor.pair.last_k, None, count, targets=targets)
    return list(prepare_windows(Dataset.from_dict({"text": [text]}), compactor.tokenizer, spec)[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", help="folder or repository on the Hub")
    parser.add_argument("text", type=text_file, nargs="?", help="text file (default: an article of the demo's)")
    parser.add_argument("--windows", type=int, default=2, help="contexts from its beginning (default: 2)")
    args = parser.parse_args()
    text = args.text
    if text is None:
        from examples.demo_assets import split_articles

        text = split_articles()[1][0]["text"]
    console, compactor = Console(highlight=False), GistCompactor.from_pretrained(args.pair)
    for window in first_windows(compactor, text, args.windows):
        print_window(console, compactor, window)


if __name__ == "__main__":
    main()
