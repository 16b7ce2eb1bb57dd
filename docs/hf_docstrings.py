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
Docstrings in the style of Hugging Face, as Markdown: a griffe extension that mkdocs.yml names.

`Args:`, `Returns:` and their like become headings, parameters a definition list, and [`GistConfig`] a link where a page
under docs/api/ documents it. No parser of griffe's reads this style; without one it hands a docstring on as Markdown.
"""

import re
import textwrap
from pathlib import Path

import griffe


SECTION = re.compile(r"^(Args|Parameters|Attributes|Returns|Raises|Example):$")
ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*)(?: \((.*)\))?:\s*(.*)$")
DOCUMENTED = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?!\()")


class HuggingFaceDocstrings(griffe.Extension):
    def __init__(self):
        pages = Path(__file__).parent.glob("api/*.md")
        self.documented = [path for page in pages for path in DOCUMENTED.findall(page.read_text(encoding="utf-8"))]

    def on_package(self, *, pkg: griffe.Module, **kwargs):
        self._render(pkg)

    def _render(self, obj):
        if obj.docstring is not None:
            obj.docstring.value = REFERENCE.sub(self._link, to_markdown(obj.docstring.value))
        for member in obj.members.values():
            if not member.is_alias:
                self._render(member)

    def _link(self, match):
        full, parts = match[1] == "", match[2].split(".")
        # `GistCompactor.compress` is a member of what is documented
        for index in reversed(range(len(parts))):
            for path in self.documented:
                if path.split(".")[-1] == parts[index]:
                    target, text = ".".join([path, *parts[index + 1 :]]), ".".join(parts[index:])
                    return f'<autoref optional identifier="{target}"><code>{text}</code></autoref>'
        return f"`{match[2] if full else parts[-1]}`"


def to_markdown(docstring: str) -> str:
    """The docstring with its sections as Markdown."""
    out, lines = [], docstring.split("\n")
    while lines:
        line = lines.pop(0)
        section = SECTION.match(line)
        if section is None:
            out.append(line)
            continue
        body = []
        while lines and (not lines[0].strip() or lines[0].startswith("    ")):
            body.append(lines.pop(0))
        out += ["", f"**{section[1]}**", "", *_entries(body, section[1]), ""]
    return "\n".join(out)


def _entries(body, section):
    if section in ("Returns", "Example"):
        return textwrap.dedent("\n".join(body)).split("\n")
    out = []
    for line in body:
        entry = ENTRY.match(line)
        if line.startswith("    > "):  # a group of parameters
            out += ["", f"*{line[6:]}*", ""]
        elif entry is not None:
            name, type_, text = entry.groups()
            names = ", ".join(f"`{each}`" for each in name.split(", "))
            out += ["", f"{names} ({type_})" if type_ else names, f":   {text}"]
        else:
            out.append(line[4:] if line.startswith("        ") else line)
    return out
