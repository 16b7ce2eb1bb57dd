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
The distortion-rate function of prompt compression for a frozen reader, exact (Nagle et al. 2024,
https://huggingface.co/papers/2407.15504).

An encoder replaces each context x by a candidate m, at random if it likes, and a frozen reader answers from m. With
n_x of N rows on context x, m costs the rate R_xm = (n_x/N)·|m|/|x| and the distortion D_xm = (1/N)·Σ over those rows.
The least distortion at a mean rate of at most R is a linear program, with the dual

    D*(R) = max over λ >= 0 of  Σ_x min_m (D_xm + λ R_xm)  −  λ R

For each x only the best candidate of each length can attain the inner minimum, and of those only the corners of their
lower convex hull. The dual is piecewise linear in λ, and D* is the sum of the hulls: all their segments, steepest
first. So the whole curve comes out at once, without a search over λ.

No encoder beats D*(R) with this reader. A reader that is trained with the encoder can.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


# A rate that the caller summed in another order may fall short of R_min by rounding
_ROUNDING = 1e-12


@dataclass(frozen=True)
class DistortionRateCurve:
    """
    D*(R): convex, falling and piecewise linear from R_min, and constant beyond the last breakpoint.

    Attributes:
        rates_B, distortions_B (`np.ndarray` of shape `(breakpoints,)`):
            The breakpoints, rates ascending from R_min. Rates are |m|/|x|; distortions have the unit they came in.
    """

    rates_B: np.ndarray
    distortions_B: np.ndarray

    def __call__(self, rate: float | np.ndarray) -> float | np.ndarray:
        """
        D* at a rate, or at each of an array of them.

        Raises:
            ValueError: if a rate is NaN or below R_min, where no encoder exists.
        """
        rate = self._feasible(rate)
        value = np.interp(rate, self.rates_B, self.distortions_B)
        return value if rate.ndim else float(value)

    def multiplier(self, rate: float) -> float:
        """A λ that attains the dual's maximum at this rate: minus the slope of D* just beyond it. Raises as a call."""
        segment = np.searchsorted(self.rates_B, self._feasible(rate), side="right") - 1
        if segment == len(self.rates_B) - 1:
            return 0.0
        rises_B, runs_B = np.diff(self.distortions_B), np.diff(self.rates_B)
        return float(-rises_B[max(segment, 0)] / runs_B[max(segment, 0)])

    def _feasible(self, rate):
        rate = np.asarray(rate, dtype=np.float64)
        if not (rate >= self.rates_B[0] - _ROUNDING).all():  # also where a rate is NaN
            raise ValueError(
                f"`rate` ({rate}) must be at least R_min = {self.rates_B[0]}, the rate of the shortest candidates: no "
                "encoder has a lower one. Raise it, or add shorter candidates."
            )
        return rate


def distortion_rate_curve(
    context_lengths_X: Sequence[int],
    candidate_lengths_M: Sequence[int],
    distortions_XM: np.ndarray,
    weights_X: Sequence[float] | None = None,
) -> DistortionRateCurve:
    """
    The distortion-rate function, where all contexts choose from one list of candidates.

    Args:
        context_lengths_X (`Sequence[int]`):
            |x|, in tokens.
        candidate_lengths_M (`Sequence[int]`):
            |m|, in tokens.
        distortions_XM (`np.ndarray` of shape `(contexts, candidates)`):
            Mean distortion over the rows of context x when the reader gets m; infinite where m is not among the
            candidates of x.
        weights_X (`Sequence[float]`, *optional*):
            n_x, the rows of each context, on any scale: they are divided by their sum. By default all weigh the same.

    Raises:
        ValueError: if shapes do not match, a value is NaN or out of its range, or a context has no candidate.
    """
    context_lengths_X = np.asarray(context_lengths_X, dtype=np.float64)
    lengths_L, best_XL = best_of_each_length(candidate_lengths_M, distortions_XM)
    weights_X = np.ones(len(best_XL)) if weights_X is None else np.asarray(weights_X, dtype=np.float64)
    for name, values_X in (("context_lengths_X", context_lengths_X), ("weights_X", weights_X)):
        if values_X.shape != (len(best_XL),):
            raise ValueError(
                f"`{name}` has shape {values_X.shape}, but `distortions_XM` has {len(best_XL)} contexts: give "
                "one each."
            )
    if not (np.isfinite(context_lengths_X) & (context_lengths_X > 0)).all():
        raise ValueError("`context_lengths_X` must be above 0: a rate is relative to the context's length.")
    if not (np.isfinite(weights_X) & (weights_X >= 0)).all() or weights_X.sum() == 0:
        raise ValueError("`weights_X` must be finite, at least 0, and not all 0: they count the rows of each context.")
    if not np.isfinite(best_XL).any(axis=1).all():
        context = int((~np.isfinite(best_XL).any(axis=1)).argmax())
        raise ValueError(f"Context {context} has no candidate of finite distortion in `distortions_XM`: add one.")
    weights_X = weights_X / weights_X.sum()
    rates_XL = lengths_L / context_lengths_X[:, None]
    contexts_X, shortest_X = np.arange(len(best_XL)), np.isfinite(best_XL).argmax(axis=1)
    runs_S, rises_S = _hull_segments(rates_XL, best_XL, shortest_X, weights_X)
    order_S = np.argsort(rises_S / runs_S, kind="stable")
    return DistortionRateCurve(
        rates_B=np.cumsum([weights_X @ rates_XL[contexts_X, shortest_X], *runs_S[order_S]]),
        distortions_B=np.cumsum([weights_X @ best_XL[contexts_X, shortest_X], *rises_S[order_S]]),
    )


def best_of_each_length(
    candidate_lengths_M: Sequence[int], distortions_XM: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    The least distortion of each context at each length: `lengths_L`, ascending, and `best_XL`. All that the curve
    needs of a large table of candidates, which may be reduced part by part.

    Raises:
        ValueError: if shapes do not match, a length is negative, or a distortion is NaN or −∞.
    """
    lengths_M, distortions_XM = np.asarray(candidate_lengths_M), np.asarray(distortions_XM, dtype=np.float64)
    if distortions_XM.ndim != 2 or lengths_M.shape != distortions_XM.shape[1:] or 0 in distortions_XM.shape:
        raise ValueError(
            f"`distortions_XM` has shape {distortions_XM.shape} and `candidate_lengths_M` {lengths_M.shape}: they "
            "must be (contexts, candidates) and (candidates,), none of them empty."
        )
    if not (lengths_M >= 0).all():
        raise ValueError("`candidate_lengths_M` must be at least 0, in tokens.")
    if not (distortions_XM > -np.inf).all():
        raise ValueError("`distortions_XM` holds NaN or −∞. Mark what is no candidate of a context by +∞.")
    order_M = np.argsort(lengths_M, kind="stable")
    lengths_L, starts_L = np.unique(lengths_M[order_M], return_index=True)
    return lengths_L, np.minimum.reduceat(distortions_XM[:, order_M], starts_L, axis=1)


@dataclass(frozen=True)
class QueryCurves:
    """
    D*(R) by what the encoder knows of the query. It is told nothing (`agnostic`), or the query, under one mean rate
    for all queries (`aware`), or for each query under a mean rate of its own (`per_query`).
    """

    agnostic: DistortionRateCurve
    aware: DistortionRateCurve
    per_query: list[DistortionRateCurve]


def query_curves(
    context_lengths_X: Sequence[int],
    candidate_lengths_M: Sequence[int],
    distortions_of_queries: Iterable[np.ndarray],
    weights_XQ: np.ndarray,
) -> QueryCurves:
    """
    The distortion-rate functions of contexts that are read with queries.

    Args:
        context_lengths_X, candidate_lengths_M (`Sequence[int]`):
            As of [`distortion_rate_curve`].
        distortions_of_queries (`Iterable[np.ndarray]`):
            For each query an array `(contexts, candidates)`, as of [`distortion_rate_curve`]; a generator need not
            hold them all in memory.
        weights_XQ (`np.ndarray` of shape `(contexts, queries)`):
            Rows of each context and query, on any scale.

    Raises:
        ValueError: as [`distortion_rate_curve`], or if there are not as many queries as columns of `weights_XQ`.
    """
    context_lengths_X, weights_XQ = np.asarray(context_lengths_X), np.asarray(weights_XQ, dtype=np.float64)
    total_XM, best, per_query = np.zeros(1), [], []
    for weights_X, distortions_XM in zip(weights_XQ.T, distortions_of_queries, strict=True):
        distortions_XM = np.asarray(distortions_XM, dtype=np.float64)
        weighted_XM = np.full_like(distortions_XM, np.inf)  # what is no candidate stays none, whatever the weight
        total_XM = total_XM + np.multiply(
            weights_X[:, None], distortions_XM, out=weighted_XM, where=distortions_XM < np.inf
        )
        lengths_L, best_XL = best_of_each_length(candidate_lengths_M, distortions_XM)
        best.append(best_XL)
        per_query.append(distortion_rate_curve(context_lengths_X, lengths_L, best_XL, weights_X))
    weights_X = weights_XQ.sum(axis=1)
    kept = weights_X > 0
    return QueryCurves(
        agnostic=distortion_rate_curve(
            context_lengths_X[kept], candidate_lengths_M, total_XM[kept] / weights_X[kept, None], weights_X[kept]
        ),
        aware=distortion_rate_curve(
            np.tile(context_lengths_X, len(best)), lengths_L, np.concatenate(best), weights_XQ.T.ravel()
        ),
        per_query=per_query,
    )


def best_in_pool_curve(
    context_lengths: Sequence[int],
    pools: Sequence[Sequence[tuple[int, float]]],
    weights: Sequence[float] | None = None,
) -> DistortionRateCurve:
    """
    The same for natural text, where candidates cannot be listed: the best that can be done with a finite pool of them
    for each context, as gists of several compressors. An upper bound of D*(R) that falls as pools grow.

    Args:
        context_lengths (`Sequence[int]`):
            |x|, in tokens.
        pools (`Sequence[Sequence[tuple[int, float]]]`):
            For each context its candidates: length in tokens, and distortion under the reader.
        weights (`Sequence[float]`, *optional*):
            As of [`distortion_rate_curve`].

    Raises:
        ValueError: as [`distortion_rate_curve`], and if a pool is empty.
    """
    for context, pool in enumerate(pools):
        if not len(pool):
            raise ValueError(f"The pool of context {context} is empty: give it a candidate, as the context itself.")
    lengths_L = sorted({length for pool in pools for length, _ in pool})
    column = {length: index for index, length in enumerate(lengths_L)}
    best_XL = np.full((len(pools), len(lengths_L)), np.inf)
    for context, pool in enumerate(pools):
        for length, distortion in pool:
            best_XL[context, column[length]] = np.minimum(best_XL[context, column[length]], distortion)  # keeps NaN
    return distortion_rate_curve(context_lengths, lengths_L, best_XL, weights)


def _hull_segments(rates_XL, best_XL, at_X, weights_X):
    """Runs and rises, weighted, of all falling segments of the hulls, from a corner of each context on."""
    runs, rises = [], []
    while len(at_X):
        contexts_X = np.arange(len(at_X))
        runs_XL = rates_XL - rates_XL[contexts_X, at_X][:, None]
        rises_XL = best_XL - best_XL[contexts_X, at_X][:, None]
        slopes_XL = np.divide(rises_XL, runs_XL, out=np.full_like(rises_XL, np.inf), where=runs_XL > 0)
        to_X = slopes_XL.argmin(axis=1)
        goes_on_X = (slopes_XL[contexts_X, to_X] < 0) & (weights_X > 0)
        contexts_X, to_X = contexts_X[goes_on_X], to_X[goes_on_X]
        runs.append(weights_X[contexts_X] * runs_XL[contexts_X, to_X])
        rises.append(weights_X[contexts_X] * rises_XL[contexts_X, to_X])
        rates_XL, best_XL, weights_X, at_X = rates_XL[goes_on_X], best_XL[goes_on_X], weights_X[goes_on_X], to_X
    return np.concatenate(runs), np.concatenate(rises)
