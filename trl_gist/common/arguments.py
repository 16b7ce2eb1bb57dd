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
Numbers and lists that a caller gives: what is none is refused by name, before anything is done with it. Nothing heavy is
imported, so that the command line may ask too.
"""

import math
import numbers
import operator
from collections.abc import Iterable


def whole_number(name: str, value, least: int | None = 1, optional: bool = False) -> int | None:
    """
    An argument as an `int`. Numpy's integers are taken; floats, strings and booleans are not, whatever they hold.

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
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:  # numpy's booleans too
        number = None
    if number is None or (least is not None and number < least):
        wanted = "whole" if least is None else f"at least {least}"
        raise ValueError(
            f"`{name}` must be {wanted}{' or None' if optional else ''}, got {value!r}. Give a whole number."
        )
    return number


def finite_number(name: str, value) -> int | float:
    """An argument as a number of Python's; numpy's are taken. Raises `ValueError` if it is none, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}. Give one, or leave it out.")
    return value if isinstance(value, (int, float)) else float(value)


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
    listed = None if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable) else list(values)
    if listed is None or any(isinstance(value, numbers.Integral) for value in listed):
        one = type(values).__name__ if listed is None else "list of numbers"
        raise ValueError(f"`{name}` takes a list of {of_what}, and got one {one}: {instead}.")
    return listed


def whole_numbers(name: str, values, least: int = 1) -> list[int]:
    """An argument that takes a list of [`whole_number`]s. Raises `ValueError` if it is none."""
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise ValueError(f"`{name}` takes a list of whole numbers, got {values!r}: put them in a list.")
    return [whole_number(name, value, least) for value in values]
