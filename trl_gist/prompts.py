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
The token ids that each role reads: prompts with the exact tokens of context, gist and last tokens in their
places.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import jinja2.ext
import jinja2.meta
from transformers import PreTrainedTokenizerBase

from .common.arguments import token_ids
from .common.chat_template import opened_thought, render, with_parts
from .common.tokens import characters_of, special_ids, written_ids


# A private-use character cannot be in a chat template; each marks where something goes that is not the prompt's text
PLACEHOLDERS = {
    "context": "\ue000",
    "before_last_k": "\ue001",
    "tail": "\ue002",
    "last_k": "\ue003",
    "budget": "\ue004",
}

SUMMARIZER_PROMPT = (
    "Compress the text below into a short gist that lets someone who sees only the gist predict how the text goes on. "
    "Keep names, numbers and key terms. Write no full sentences.\n\n{context}\n\nGist:"
)
# The default. Measured against the plain one, and with a cold start, in docs/ABLATION.md
SUMMARIZER_PROMPT_WITH_TAIL = SUMMARIZER_PROMPT.replace("{context}", "{before_last_k}\n\nIts end:\n{tail}")

# Where a gist is asked for what the context says, S sees all of it
SUMMARIZER_PROMPT_OF_FACTS = (
    "List the facts of the text below for someone who sees only your list and is asked about the text: names, numbers, "
    "dates, and what they belong to. Be as brief as you can, write no full sentences.\n\n{context}\n\nFacts:"
)

# L comes last, so that the target goes on where it ends, as in any text. The original's prompt puts a word between them,
# and a target that goes on in the middle of a word, or of a sentence, then costs G far more than a gist can buy
GENERATOR_PROMPT = "GIST:{gist}\nLAST K TOKENS:{last_k}"
ORIGINAL_GENERATOR_PROMPT = GENERATOR_PROMPT + "\nCONTINUE:"


@dataclass(frozen=True)
class GistPrompts:
    """
    The prompts of the three roles, assembled from token ids.

    A context is cut in token space and must reach every role as exactly those tokens. Decoding and re-tokenising a
    prompt would merge tokens across the seams, so each fixed part is tokenised once, alone, and then only concatenated.

        summarizer  <chat header> Compress the text below … X … Gist: <chat footer>        → Z
        generator   <bos> GIST: Z \\n LAST K TOKENS: L                                     → Y
        teacher     <bos> X, or X L where L is not the end of X                             → Y

    An empty Z gives the *null* prompt, the baseline of the reward. The summarizer's prompt holds X, or X without L, which
    the generator sees anyway. It may also hold L, so that S knows what its gist will be read with; the tail, the tokens
    just before L once more, as many as the gist may have: the gist to start from, where a small model finds it; and the
    budget of the gist, a number, which is text of the part around it.
    """

    bos: tuple[int, ...]
    summarizer_bos: tuple[int, ...]
    summarizer_parts: tuple[str, ...]
    before_gist: tuple[int, ...]
    before_last_k: tuple[int, ...]
    before_target: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase
    tokenize: Callable[[str], tuple[int, ...]]
    tail_length: int

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        summarizer_prompt: str,
        tail_length: int = 48,
        generator_prompt: str = GENERATOR_PROMPT,
        chat_template_kwargs: dict | None = None,
        rendered: dict | None = None,
    ) -> "GistPrompts":
        """
        The summarizer's prompt is rendered in the tokenizer's chat template, or, with `rendered`, as it was before.

        Raises:
            ValueError: if the chat template takes none of `chat_template_kwargs`, or there is no template; or if it
                refuses a user's message, or shows none.
        """

        @functools.cache
        def ids(text):
            return tuple(written_ids(tokenizer, text))

        bos = bos_ids(tokenizer)
        before_gist, before_last_k, before_target = re.split("{gist}|{last_k}", generator_prompt)
        prompts = cls(
            bos=bos,
            # A chat template writes its own bos as text; a plain prompt gets the tokenizer's
            summarizer_bos=() if tokenizer.chat_template else bos,
            summarizer_parts=() if rendered else _render(tokenizer, summarizer_prompt, chat_template_kwargs or {}),
            before_gist=bos + ids(before_gist),
            before_last_k=ids(before_last_k),
            before_target=ids(before_target),
            tokenizer=tokenizer,
            tokenize=ids,
            tail_length=tail_length,
        )
        return prompts.as_rendered(rendered) if rendered else prompts

    @property
    def rendered(self) -> dict:
        """
        The summarizer's prompt as its template has rendered it, for JSON: `parts`, texts and between them the names of
        what goes there, and whether the tokenizer's `bos` comes before them. A template may be another tomorrow, or
        name the day: what S was trained with is what it is asked with.
        """
        names = {mark: name for name, mark in PLACEHOLDERS.items()}
        parts = re.split(f"([{''.join(names)}])", "".join(self.summarizer_parts))
        return {"bos": bool(self.summarizer_bos), "parts": [names.get(part, part) for part in parts]}

    def as_rendered(self, rendered: dict) -> "GistPrompts":
        """These prompts with the summarizer's as of [`GistPrompts.rendered`]."""
        texts = (PLACEHOLDERS[part] if place % 2 else part for place, part in enumerate(rendered["parts"]))
        bos = self.bos if rendered["bos"] else ()
        return dataclasses.replace(self, summarizer_bos=bos, summarizer_parts=_cut("".join(texts)))

    @property
    def opened_thought(self) -> str:
        """The tag by which the summarizer's prompt opens a thought, as `<think>`; or nothing."""
        return opened_thought(self.summarizer_parts[-1])

    def summarizer(
        self, context_ids: list[int], last_k_ids: list[int] | None = None, budget: int | None = None
    ) -> list[int]:
        """
        What S reads before it writes a gist.

        Args:
            context_ids, last_k_ids (`list[int]`):
                X and L. L is left out, and need not be given, unless the prompt has `{last_k}`.
            budget (`int`, *optional*):
                The most tokens the gist may have; as many has the `{tail}`, and without a budget `tail_length`. Stated
                where the prompt has `{budget}`.

        Raises:
            ValueError: if the prompt has a placeholder for what is not given, or ids are none.
        """
        context_ids = token_ids("The context", context_ids)
        last_k_ids = None if last_k_ids is None else token_ids("L", last_k_ids)
        for name, value, wanted in (
            ("last_k_ids", last_k_ids, self.needs_last_k),
            ("budget", budget, self.states_budget),
        ):
            if wanted and value is None:
                raise ValueError(f"The summarizer's prompt needs `{name}`: pass it.")
        filled = {PLACEHOLDERS["context"]: context_ids, PLACEHOLDERS["last_k"]: last_k_ids}
        if self.needs_last_k:
            unseen = before_last_k(context_ids, last_k_ids)
            filled |= {PLACEHOLDERS["before_last_k"]: unseen, PLACEHOLDERS["tail"]: self._tail(unseen, budget)}
        ids = list(self.summarizer_bos)
        for part in self.summarizer_parts:
            if part in filled:
                ids += filled[part]
            else:
                ids += self.tokenize(part.replace(PLACEHOLDERS["budget"], str(budget)))
        return ids

    def generator(self, gist_ids: list[int], last_k_ids: list[int]) -> list[int]:
        """What G reads before the target. Special tokens in the gist never reach G."""
        gist_ids, last_k_ids = token_ids("The gist", gist_ids), token_ids("The last text", last_k_ids)
        return [*self.generator_before_cue(gist_ids), *self.generator_cue(last_k_ids)]

    def generator_before_cue(self, gist_ids: list[int]) -> list[int]:
        """What G reads of a gist once, whatever number of targets follows. Its ids are not checked."""
        return [*self.before_gist, *self.without_special(gist_ids), *self.before_last_k]

    def generator_cue(self, cue_ids: list[int]) -> list[int]:
        """What G reads between the gist and one target: its cue, which of the continuation is L. Its ids are not checked."""
        return [*cue_ids, *self.before_target]

    def teacher(self, context_ids: list[int], last_k_ids: list[int]) -> list[int]:
        """What T reads before the target: all that S and G have together."""
        return [*self.bos, *through_last_k(token_ids("The context", context_ids), token_ids("L", last_k_ids))]

    def plain(self, ids: list[int]) -> list[int]:
        """What a frozen language model reads before the target, whatever the ids are: only a tail of X, or L alone. Where
        that is nothing at all, it is what ends the text before."""
        return [*self.bos, *token_ids("The text", ids)] or [self.tokenizer.eos_token_id]

    def without_special(self, gist_ids: list[int]) -> list[int]:
        """A gist as G reads it, and S in a later context: there a special token would pass for a part of the template."""
        return [token for token in gist_ids if token not in self.special_ids]

    def own_gist(self, readable_ids: list[int], most: int) -> list[int] | None:
        """
        The gist of what is no longer than a gist may be: itself, verbatim, without special tokens and halves of
        characters. `None` of what is longer. S is not asked then: it would go on beyond it and, shown next to nothing,
        echo its prompt.

        Args:
            readable_ids (`list[int]`):
                What the gist is to stand for, as of [`before_last_k`] or [`stands_for`].
            most (`int`):
                The most tokens of the gist.
        """
        ids = characters_of(self.tokenizer).whole(self.without_special(readable_ids))
        return ids if len(ids) <= most else None

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """See [`~common.tokens.special_ids`]."""
        return special_ids(self.tokenizer)

    @property
    def sees_last_k(self) -> bool:
        """Whether S sees L: in question answering, whether its gists are question-aware."""
        return PLACEHOLDERS["last_k"] in self.summarizer_parts

    @property
    def needs_last_k(self) -> bool:
        """Whether S's prompt depends on where L begins."""
        return any(PLACEHOLDERS[name] in self.summarizer_parts for name in ("before_last_k", "tail", "last_k"))

    @property
    def states_budget(self) -> bool:
        """Whether S is told the most tokens its gist may have."""
        return any(PLACEHOLDERS["budget"] in part for part in self.summarizer_parts)

    @property
    def instruction(self) -> list[tuple[int, ...]]:
        """The fixed text of the summarizer's prompt, in the pieces between its placeholders."""
        marks = "".join(PLACEHOLDERS.values())
        return [self.tokenize(piece) for piece in re.split(f"[{marks}]", "".join(self.summarizer_parts))]

    @property
    def generator_overhead(self) -> int:
        """Tokens of the generator's template, counted in the total rate."""
        return len(self.generator([], []))

    def summarizer_overhead(self, max_budget: int) -> int:
        """Tokens of the summarizer's template beside X and L, with the budget up to `max_budget` that takes the most, and
        of the tail."""
        budgets = range(1, max_budget + 1) if self.states_budget else [None]
        tail = max(max_budget, self.tail_length) if PLACEHOLDERS["tail"] in self.summarizer_parts else 0
        return max(len(self.summarizer([], [], budget)) for budget in budgets) + tail

    def _tail(self, ids, budget):
        return characters_of(self.tokenizer).last(ids, self.tail_length if budget is None else budget)


def through_last_k(context_ids: list[int], last_k_ids: list[int]) -> list[int]:
    """
    The text up to the target: X where L is its own end, as in windows cut from documents, and X followed by L where it
    is not, as where X is a passage and L a question about it.
    """
    return [*before_last_k(context_ids, last_k_ids), *last_k_ids]


def seen_ids(row: dict) -> list[int]:
    """The text that T reads up to L's end, where L is its end: X, and in a walk all that came before it too."""
    return row["seen_ids"] if "seen_ids" in row else row["context_ids"]


def targets_of(row: dict) -> list[dict]:
    """
    A window's targets, as of [`~data.targets.make_targets`]: its column `targets`, or, without one, the one that
    `last_k_ids` and `target_ids` are.
    """
    if "targets" in row:
        return row["targets"]
    seen, last_k = seen_ids(row), row["last_k_ids"]
    return [
        {
            "kind": "continuation",
            "cue_ids": last_k,
            "target_ids": row["target_ids"],
            "after_ids": through_last_k(seen, last_k)[len(seen) :],
        }
    ]


def said_age(target: dict) -> int | None:
    """How many windows of a walk ago a target was said; `None` without a walk, and of what was not said before, as the
    continuation."""
    return None if target["kind"] in ("continuation", "far") else target.get("age")


def one_row_each(row: dict) -> list[dict]:
    """
    A window as one row for each of its targets, for whatever reads rows of one: the cue is `last_k_ids`, and `kind` says
    which it is. Where the teacher reads something else than X and the cue, as before a far target, that is `seen_ids`.
    Rows of a window with a column `targets` say in `window_targets` how many there are, in `window_length` how many tokens
    the gist stands for, and of a walk, in `target_age`, what [`said_age`] says.
    """
    rows, seen = [], seen_ids(row)
    for target in targets_of(row):
        cue, read = target["cue_ids"], [*seen, *target["after_ids"]]
        one = {name: value for name, value in row.items() if name != "targets"}
        one |= {"last_k_ids": cue, "target_ids": target["target_ids"], "kind": target["kind"]}
        if "targets" in row:
            one |= {"window_targets": len(row["targets"]), "window_length": len(seen)}
        if (age := said_age(target)) is not None:
            one["target_age"] = age
        if through_last_k(seen, cue) != read:
            one["seen_ids"] = read
        rows.append(one)
    return rows


def before_last_k(context_ids: list[int], last_k_ids: list[int]) -> list[int]:
    """What of X the generator does not see by itself: X up to L where L is its own end, else all of it."""
    before = len(context_ids) - len(last_k_ids)
    own_end = before >= 0 and list(context_ids[before:]) == list(last_k_ids)
    return list(context_ids[:before] if own_end else context_ids)


def stands_for(row: dict) -> list[int]:
    """What of X its gist is to stand for: what the generator does not see by itself; all of it, if it is asked for
    several targets, of which a row of [`one_row_each`] is one."""
    if "targets" in row or "window_targets" in row:
        return list(row["context_ids"])
    return before_last_k(row["context_ids"], row["last_k_ids"])


def gist_from_completion(completion_ids: list[int], eos_token_ids: list[int]) -> list[int]:
    """Every token S wrote up to, not including, its first end-of-sequence token."""
    for position, token in enumerate(completion_ids):
        if token in eos_token_ids:
            return list(completion_ids[:position])
    return list(completion_ids)


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that the tokenizer itself puts before a text (Gemma and Llama have one, SmolLM2 and Qwen have none)."""
    with_special = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(with_special)):
        if with_special[start : start + len(plain)] == plain:
            return tuple(with_special[:start])
    return ()


class _Generation(jinja2.ext.Extension):
    """The tag by which a template marks what the assistant says, for transformers."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def _variables(chat_template):
    """What a chat template reads that it does not set itself, but for what `apply_chat_template` gives it."""
    environment = jinja2.Environment(extensions=[_Generation, jinja2.ext.loopcontrols])
    given = {"messages", "tools", "documents", "add_generation_prompt"}
    return jinja2.meta.find_undeclared_variables(environment.parse(chat_template)) - given


def _render(tokenizer, summarizer_prompt, chat_template_kwargs):
    """The prompt in the tokenizer's chat template, if it has one, cut at X and L; their marks are parts of their own."""
    for name, mark in PLACEHOLDERS.items():
        summarizer_prompt = summarizer_prompt.replace(f"{{{name}}}", mark)
    for name in chat_template_kwargs:
        # A template ignores what it does not know
        if not tokenizer.chat_template or name not in _variables(tokenizer.get_chat_template()):
            raise ValueError(
                f"`chat_template_kwargs` sets `{name}`, which the tokenizer's chat template "
                f"{'does not mention' if tokenizer.chat_template else 'is not there to read'}. Leave it out."
            )
    if tokenizer.chat_template:
        marks = re.findall(f"[{''.join(PLACEHOLDERS.values())}]", summarizer_prompt)
        messages = [{"role": "user", "content": summarizer_prompt}]
        summarizer_prompt = render(tokenizer, messages, **chat_template_kwargs)
        if any(mark not in summarizer_prompt for mark in marks):  # templates for images read contents in parts
            summarizer_prompt = render(tokenizer, with_parts(messages), **chat_template_kwargs)
        if any(mark not in summarizer_prompt for mark in marks):
            raise ValueError(
                "The tokenizer's chat template shows no user's message, so S would see no context. Set another "
                "`chat_template`, or None for a plain prompt."
            )
    return _cut(summarizer_prompt)


def _cut(text):
    """A prompt's text, cut at the marks that ids go to."""
    ids_go_here = "".join(mark for name, mark in PLACEHOLDERS.items() if name != "budget")
    return tuple(re.split(f"([{ids_go_here}])", text))
