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
Numbers, token ids, lists, paths by name and what is true or false, as a caller gives them: what is none is refused by
name, before anything is done with it. Numpy's and torch's scalars are the numbers that they hold. Nothing heavy is
imported, so that the command line may ask too.
"""

import difflib
import math
import numbers
import operator
from collections.abc import Iterable


def whole_number(name: str, value, least: int | None = 1, optional: bool = False) -> int | None:
    """
    An argument as an `int`. Numpy's and torch's integers are taken; floats, strings and booleans are not, whatever they
    hold.

    Args:
        name (`str`):
            Of the argument, for the error.
        value:
            What was given.
        least (`int`, *optional*, defaults to `1`):
            The least that is allowed; `None` for any.
        optional (`bool`, *optional*, defaults to `False`):
            Whether `None` is allowed.

    Raises:
        ValueError: if it is anything else, or less.
    """
    if value is None and optional:
        return None
    number = _integer(value)
    if number is None or (least is not None and number < least):
        wanted = "whole" if least is None else f"at least {least}"
        raise ValueError(
            f"`{name}` must be {wanted}{' or None' if optional else ''}, got {value!r}. Give a whole number."
        )
    return number


def finite_number(name: str, value) -> int | float:
    """An argument as a number of Python's; numpy's and torch's are taken. Raises `ValueError` if it is none, NaN or
    infinite."""
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not math.isfinite(number):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}. Give one, or leave it out.")
    return number if isinstance(number, (int, float)) else float(number)


def truth(name: str, value) -> bool:
    """An argument that is true or false; numpy's and torch's are taken. Raises `ValueError` if it is anything else: of a
    text Python would take "false" for true."""
    found = _scalar(value)
    if not isinstance(found, bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r}.")
    return found


def token_ids(what: str, values, vocabulary: int | None = None, wanted: str = "a list of token ids") -> list[int]:
    """
    Token ids that a caller gives, as a list of `int`: a list or a tuple of whole numbers of Python's, numpy's or torch's,
    or an array or a tensor of one axis.

    Args:
        what (`str`):
            What errors call them, at the beginning of a sentence.
        values:
            What was given.
        vocabulary (`int`, *optional*):
            How many tokens there are. `None` allows any: a model may have embeddings beyond its tokenizer's tokens.
        wanted (`str`, *optional*):
            What errors say they must be, where the caller takes something else too.

    Raises:
        ValueError: if it is no such list, or one of them is no id of the vocabulary: a boolean, a fraction, a text,
            below 0, or too large.
    """
    if getattr(values, "ndim", None) == 1:
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{what} must be {wanted}, got {type(values).__name__}.")
    ids = list(values) if set(map(type, values)) <= {int} else [_integer(value) for value in values]
    if ids and (None in ids or min(ids) < 0 or (vocabulary is not None and max(ids) >= vocabulary)):
        wrong = next(
            value
            for token, value in zip(ids, values, strict=True)
            if token is None or token < 0 or (vocabulary is not None and token >= vocabulary)
        )
        most = "" if vocabulary is None else f" to {vocabulary - 1}"
        raise ValueError(
            f"{what} holds {wrong!r}, which is no id of the tokenizer's vocabulary. Give whole numbers from 0{most}, as "
            "the pair's own tokenizer does."
        )
    return ids


def several(name: str, values, of_what: str, instead: str) -> list:
    """
    An argument that takes several texts or the like, as a list. Python would take one text for its letters, and the token
    ids of one for as many texts.

    Args:
        name (`str`):
            Of the argument, for the error.
        values:
            What was given.
        of_what (`str`):
            What it takes several of, in the plural, as "texts".
        instead (`str`):
            What to do with one.

    Raises:
        ValueError: if it is one, or nothing that can be gone through.
    """
    listed = _listed(values)
    if listed is None or any(isinstance(_scalar(value), int) for value in listed):
        one = type(values).__name__ if listed is None else "list of numbers"
        raise ValueError(f"`{name}` takes a list of {of_what}, and got one {one}: {instead}.")
    return listed


def whole_numbers(name: str, values, least: int = 1) -> list[int]:
    """An argument that takes a list of [`whole_number`]s. Raises `ValueError` if it is none."""
    listed = _listed(values)
    if listed is None:
        raise ValueError(f"`{name}` takes a list of whole numbers, got {values!r}: put them in a list.")
    return [whole_number(name, value, least) for value in listed]


def named(values: list[str] | None, flag: str) -> dict[str, str]:
    """Paths by name; see [`named_pairs`]. Raises `ValueError` if two have one name."""
    pairs = named_pairs(values, flag)
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"`{flag}` names two {twice[0]!r}. Choose another name for one.")
    return dict(pairs)


def named_pairs(values: list[str] | None, flag: str) -> list[tuple[str, str]]:
    """`NAME=PATH` arguments. Raises `ValueError` if one has no name."""
    pairs = [value.partition("=") for value in values or []]
    for name, _, path in pairs:
        if not name or not path:
            raise ValueError(f"`{flag}` takes NAME=PATH, got {name!r}.")
    return [(name, path) for name, _, path in pairs]


def _listed(values):
    """As a list, or `None` of one text, number or mapping: an array without axes is one number."""
    values = _scalar(values)
    return None if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable) else list(values)


def _scalar(value):
    """A number of numpy's or torch's, which has a shape without axes, as Python's."""
    return value.item() if getattr(value, "shape", None) == () else value


def _integer(value):
    """As an `int`, or `None` if it is something else: a boolean too, of any of the three."""
    value = _scalar(value)
    try:
        # A tensor of one number in a list has an index, too
        return None if isinstance(value, bool) or hasattr(value, "shape") else operator.index(value)
    except TypeError:
        return None


def known_name(name: str, known: Iterable[str]) -> str:
    """The one of `known` that a name stands for, whether spaces, `_` or `-` are between its words; else the name as it
    is, which is the caller's to refuse."""
    return next((each for each in known if _words(each) == _words(name)), name)


def _words(name):
    return str(name).replace("_", " ").replace("-", " ")


def no_setting(unknown: list[str], known: list[str]) -> str:
    """What to say of arguments that a command line does not know, and which of its settings may have been meant."""
    flags = [part.partition("=")[0] for part in unknown if part.startswith("--")]
    if not flags:
        return f"{unknown[0]!r} is the value of no flag; `--help` lists them."
    return f"`{flags[0]}` is no setting. {meant(flags[0], known)}`--help` lists them all."


def meant(name: str, known: list[str]) -> str:
    """A question for the settings of which a name is the beginning, or the other way round; or for the most alike."""
    name = name.strip("-").replace("-", "_")
    alike = [other for other in known if f"{other}_".startswith(f"{name}_") or f"{name}_".startswith(f"{other}_")]
    alike = alike[:2] or difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {' or '.join(f'`{other}`' for other in alike)}? " if alike else ""
