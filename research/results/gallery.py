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
Every gist of held-out texts, none picked, as Markdown: of folders that `trl-gist evaluate` left, with `--tasks` too.

python -m research.results.gallery "Paid for the next tokens"=runs/demo-1/evaluation \\
    "Taught to remember"=memory/facts-2 > docs/GALLERY.md
"""

import argparse
import re
import textwrap
from pathlib import Path

from trl_gist.common.arguments import named
from trl_gist.evaluation.folder import read_measures, read_rows


# Characters of a context's end
_END = 300


def entries(folder: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each text its name and what stands under it: label and text."""
    found, pairs = [], read_measures(folder).get("pairs", {})
    for number, row in enumerate(read_rows(folder), start=1):
        if "questions" in row:
            asked = "; ".join(f"{one['cue'].strip()} {one['answer'].strip()}" for one in row["questions"])
            others = [(name, row["gists"][name]) for name in pairs]
            found.append((row["document_id"], [("asked for", asked), ("gist", row["gists"]["pair"]), *others]))
        else:
            name = f"{row['document_id']}, {number}"
            found.append((name, [("context, its end", "…" + row["context"][-_END:]), ("gist", row["gist"])]))
    return found


def gallery(folders: dict[str, str]) -> list[str]:
    """A part of the page for each folder."""
    lines = []
    for title, folder in folders.items():
        lines += [f"## {title}", ""]
        for name, parts in entries(Path(folder)):
            lines += [f"**{name}**", ""]
            for label, text in parts:
                plain = re.sub(r"([*_`<>|\\[\]#])", r"\\\1", " ".join(text.split()))
                lines += textwrap.wrap(
                    f"- *{label}*: {plain or '(nothing)'}", 100, subsequent_indent="  ", break_on_hyphens=False
                )
            lines.append("")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="TITLE=FOLDER")
    folders = named(parser.parse_args().folders, "the folders")
    print(
        "# A gallery\n\nEvery gist of held-out texts, as it was written; none is picked. [RESULTS](RESULTS.md) says what"
    )
    print("they are worth, `research/results/README.md` has the command that prints this page.\n")
    print("\n".join(gallery(folders)))


if __name__ == "__main__":
    main()
