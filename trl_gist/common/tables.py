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

"""Tables: for the terminal, and what stands in one of Markdown."""

from rich import box
from rich.table import Table


def console_table(title: str | None, *headings: str, wrap: bool = False) -> Table:
    """A table for [`rich.console.Console.print`] whose first column stands left, and the others right; narrow terminals
    cut cells off or, with `wrap`, break them. Without headings rows bring their columns."""
    table = Table(title=title, box=box.SIMPLE, title_justify="left", show_header=bool(headings))
    for heading in headings:
        table.add_column(heading, justify="right" if table.columns else "left", no_wrap=not wrap)
    return table


def cell(value) -> str:
    """A value on one line, whose bars part no columns. What is Markdown in it stays that."""
    return " ".join(str(value).splitlines()).replace("|", r"\|")
