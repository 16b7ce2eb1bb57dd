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

"""Means with their standard errors, and what counts as a number in a log."""

import numpy as np


def standard_error(values, documents) -> float:
    """Standard error of the mean of `values`, one per window, over independent documents (cluster-robust)."""
    return mean_and_error(values, documents)[1]


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def with_error(value, error=None, digits: int = 3, sign: str = "", scale: float = 1) -> str:
    """As text: `0.123 ± 0.045`, without the error where there is none, and a dash for what is no number."""
    if not is_number(value):
        return "–"
    return f"{scale * value:{sign}.{digits}f}" + (f" ± {scale * error:.{digits}f}" if is_number(error) else "")


def measured(measures: dict, name: str, digits: int = 3, sign: str = "", scale: float = 1) -> str:
    """[`with_error`] of a measure by its name, whose standard error is under the same name with `_se`."""
    return with_error(measures.get(name), measures.get(f"{name}_se"), digits, sign, scale)


def mean_and_error(values, documents) -> tuple[float, float]:
    """Of [`ratio_and_error`], the mean of `values`, one per window or target."""
    return ratio_and_error(np.asarray(values, dtype=float), np.ones(len(values)), documents)


def ratio_and_error(numerator: np.ndarray, denominator: np.ndarray, documents) -> tuple[float, float]:
    """Σ numerator / Σ denominator over windows, and its linearised standard error over documents (cluster-robust).
    Windows with a NaN are left out."""
    valid = ~(np.isnan(numerator) | np.isnan(denominator))
    numerator, denominator = numerator[valid], denominator[valid]
    if not len(numerator):
        return float("nan"), float("nan")
    ratio = numerator.sum() / denominator.sum()
    _, cluster = np.unique(
        [str(document) for document in np.asarray(documents, dtype=object)[valid]], return_inverse=True
    )
    residuals = np.bincount(cluster, weights=numerator - ratio * denominator)
    count = len(residuals)
    if count < 2:
        return float(ratio), float("nan")
    variance = (residuals**2).sum() * count / (count - 1)
    return float(ratio), float(np.sqrt(variance) / abs(denominator.sum()))
