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
What becomes of paths, numbers and lists that users bring, by every route: the sweeps of the tests, as tables.

    PYTHONPATH=tests/helpers python -m research.what_users_bring.sweep
"""

import argparse
import logging
import tempfile
from pathlib import Path

from trl_gist.inference.compactor import GistCompactor

import datasets
from any_path import ALL_SIGNS, DOCUMENTS, OTHER_ROUTES, SIGNS, Place, walked  # of tests/helpers, as those below
from swept_arguments import COUNTS, LISTS, NO_COUNTS, PLACES, SIZES, no_lists, no_places, refusal
from swept_arguments import ROUTES as OF_COUNTS
from tiny import make_model, make_tokenizer
from tiny_sessions import make_compactor

from research.common.tables import markdown_table


def code(text: str) -> str:
    """A name with any signs in a Markdown table."""
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def documents(directory: Path, signs: tuple[str, ...] = (*SIGNS, ALL_SIGNS)) -> list[str]:
    """The table of documents, a sign a line and a route a column."""
    rows = []
    for number, sign in enumerate(signs):
        (directory / str(number)).mkdir()
        outcomes = dict(walked(Place(directory / str(number), sign), DOCUMENTS))
        rows.append(["all of them" if sign == ALL_SIGNS else code(sign), *outcomes.values()])
    return markdown_table(["sign", *DOCUMENTS], rows)


def other_routes(directory: Path) -> list[str]:
    """The table of all else, a route a line, with all signs in each name."""
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(directory / "checkpoint")
    tokenizer.save_pretrained(directory / "checkpoint")
    place = Place(directory, ALL_SIGNS, str(directory / "checkpoint"))
    return markdown_table(["route", "all signs"], [list(outcome) for outcome in walked(place, OTHER_ROUTES)])


def arguments(compactor: GistCompactor, directory: Path) -> list[str]:
    """The tables of numbers, places and lists, a route a line, a blank one between them."""

    def refused(routes, values_of, pair=compactor):
        for route, call in routes.items():
            values = values_of(route)
            told = sum(refusal(route, call, pair, value) is not None for value in values)
            yield route, f"{told} of {len(values)}"

    def taken(call):
        first, *others = (call(compactor, value) for value in COUNTS)
        return f"{1 + sum(other == first for other in others)} of {len(COUNTS)}"

    session = compactor.session(keep_history=directory / "tokens")
    session.append([5, 6, 7, 8])
    counts = [
        [*_named(route), told, taken(OF_COUNTS[route]) if route in OF_COUNTS else ""]
        for route, told in refused({**OF_COUNTS, **SIZES}, lambda route: NO_COUNTS)
    ]
    places = [[*_named(route), told, ""] for route, told in refused(PLACES, lambda route: no_places(), session)]
    lists = [[*_named(route), told] for route, told in refused(LISTS, no_lists)]
    return [
        *markdown_table(
            ["route", "argument", "no count, refused by name", "integers of any kind, taken"], counts + places
        ),
        "",
        *markdown_table(["route", "argument", "no list, refused by name"], lists),
    ]


def _named(route):
    name, argument = route.split()
    return f"`{name}`", f"`{argument}`"


def main():
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        datasets.config.HF_DATASETS_CACHE = Path(directory, "cache")
        tables = [
            documents(Path(directory)),
            other_routes(Path(directory)),
            arguments(make_compactor(), Path(directory)),
        ]
    print("\n\n".join("\n".join(table) for table in tables))


if __name__ == "__main__":
    main()
