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
What a session's gists still know at a text's end, for docs/sessions.md: one rolling gist, or a chain of them with room for
four, or for all. All that can be is folded, and the generator answers from the gists alone.

python -m research.memory.sessions memory/single
"""

import argparse

from trl_gist import GistCompactor
from trl_gist.common.geometry import SEPARATOR
from trl_gist.data.tasks import make_tasks
from trl_gist.evaluation.tasks.readings import begins_with

from examples.short_run import quiet_console
from research.common.tables import markdown_table


NEW_TOKENS = 8


def right_from_gists(session, targets: list[dict]) -> list[bool]:
    """Which questions the generator answers right from a session's gists, without its live tokens."""
    written = [session.recall(target["cue"], NEW_TOKENS, alternatives=0, live=False).text for target in targets]
    return [
        begins_with(own.strip().partition("\n")[0], target["target"])
        for own, target in zip(written, targets, strict=True)
    ]


def rows_of(compactor: GistCompactor, texts: list[dict], settings: dict) -> list[dict]:
    """Of each text the tokens of its last gists, how many gists were written, and which questions are answered right."""
    rows = []
    for text in texts:
        session = compactor.session(**settings)
        session.append(text["context"])
        while len(session.live) > session.settings.last_k + 1:
            session.compact()
        rows.append(
            {
                "gist": session.gist,
                "gist_tokens": len(session.gist_ids),
                "gists_written": sum(row.gists_written for row in session.history),
                "right": right_from_gists(session, text["targets"]),
            }
        )
    return rows


def table(rows_of_arms: dict[str, list[dict]]) -> list[str]:
    def cells(rows):
        right = [each for row in rows for each in row["right"]]
        means = (sum(row[name] for row in rows) / len(rows) for name in ("gist_tokens", "gists_written"))
        return [f"{sum(right)} of {len(right)}", *(f"{mean:.0f}" for mean in means)]

    head = ["session", "right", "tokens of gists", "gists written"]
    return markdown_table(head, [[arm, *cells(rows)] for arm, rows in rows_of_arms.items()])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", help="a folder that `research.memory.pair` left")
    for name, value, meaning in (
        ("texts", 4, "of needles"),
        ("difficulty", 2, "facts of a text"),
        ("windows", 8, "of a text"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{meaning} (default: {value})")
    args = parser.parse_args()
    quiet_console()
    compactor = GistCompactor.from_pretrained(args.pair)
    rolling = compactor.session().settings
    texts = make_tasks(
        compactor.tokenizer,
        "needles",
        documents=args.texts,
        windows=args.windows,
        window_length=rolling.chunk_length,
        last_k=rolling.last_k,
        tail_length=rolling.last_k + rolling.gist_length,
        difficulty=args.difficulty,
        seed=0,
    )
    one = rolling.gist_length + compactor.count_tokens(SEPARATOR)
    arms = {
        "one rolling gist": {},
        **{f"a chain, room for {n} gists": {"gist_budget": n * one} for n in (4, args.windows)},
    }
    print(*table({arm: rows_of(compactor, texts, settings) for arm, settings in arms.items()}), sep="\n")


if __name__ == "__main__":
    main()
