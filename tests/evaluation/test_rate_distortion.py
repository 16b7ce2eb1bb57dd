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

"""The distortion-rate function against a linear program with a variable for every context and candidate."""

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import coo_array

from trl_gist.evaluation.rate_distortion import (
    best_in_pool_curve,
    best_of_each_length,
    distortion_rate_curve,
    query_curves,
)


def brute_force(context_lengths, candidate_lengths, distortions, weights, rate):
    """min Σ P_xm D_xm over all encoders P with Σ P_xm R_xm <= R: no hull, no dual, no best of a length."""
    shares = np.asarray(weights) / np.sum(weights)
    rows, columns = np.nonzero(np.isfinite(distortions))
    rates = shares[rows] * np.asarray(candidate_lengths)[columns] / np.asarray(context_lengths)[rows]
    result = linprog(
        shares[rows] * distortions[rows, columns],
        A_ub=rates[None],
        b_ub=[rate],
        A_eq=coo_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(shares), len(rows))),
        b_eq=np.ones(len(shares)),
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert result.success, result.message
    return result.fun


def instance(seed, queries=1):
    """Contexts of several lengths, of which each may choose among the candidates no longer than itself."""
    rng = np.random.default_rng(seed)
    context_lengths = rng.integers(3, 9, size=rng.integers(1, 12))
    candidate_lengths = rng.integers(0, 9, size=30)
    candidate_lengths[0] = rng.integers(0, 4)
    distortions = rng.exponential(size=(queries, len(context_lengths), 30)) * 1.5**-candidate_lengths
    if seed % 3 == 0:  # the 0/1 loss: many ties
        distortions = distortions.round()
    distortions[:, candidate_lengths[None] > context_lengths[:, None]] = np.inf
    return context_lengths, candidate_lengths, distortions, rng.integers(1, 20, size=(len(context_lengths), queries))


def rates_between(curve, seed, count=6):
    """R_min itself, the last breakpoint and beyond, a breakpoint, and rates between."""
    inner = np.random.default_rng(seed).uniform(curve.rates_B[0], curve.rates_B[-1], size=count)
    return [curve.rates_B[0], *inner, curve.rates_B[len(curve.rates_B) // 2], curve.rates_B[-1], 1.5]


@pytest.mark.parametrize("seed", range(25))
def test_the_curve_is_the_linear_programs_optimum_at_r_min_too(seed):
    context_lengths, candidate_lengths, (distortions,), weights = instance(seed)
    curve = distortion_rate_curve(context_lengths, candidate_lengths, distortions, weights[:, 0])
    for rate in rates_between(curve, seed):
        expected = brute_force(context_lengths, candidate_lengths, distortions, weights[:, 0], rate)
        assert curve(rate) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(25))
def test_the_multiplier_certifies_the_value_through_the_dual(seed):
    context_lengths, candidate_lengths, (distortions,), weights = instance(seed)
    curve = distortion_rate_curve(context_lengths, candidate_lengths, distortions, weights[:, 0])
    shares = weights[:, 0] / weights.sum()

    def dual(multiplier, rate):
        rates = candidate_lengths / context_lengths[:, None]
        return shares @ (distortions + multiplier * rates).min(axis=1) - multiplier * rate

    for rate in rates_between(curve, seed):
        assert dual(curve.multiplier(rate), rate) == pytest.approx(curve(rate), abs=1e-12)
        assert max(dual(multiplier, rate) for multiplier in np.linspace(0, 20, 101)) <= curve(rate) + 1e-12


@pytest.mark.parametrize("seed", range(12))
def test_queries_an_encoder_may_be_told_nothing_each_query_or_one_query_at_a_time(seed):
    context_lengths, candidate_lengths, distortions, weights = instance(seed, queries=3)
    weights[0, 1] = 0  # a context that is never read with one of the queries
    curves = query_curves(context_lengths, candidate_lengths, iter(distortions), weights)
    shares = weights / weights.sum(axis=1, keepdims=True)
    mean = sum(shares[:, [query]] * distortions[query] for query in range(3) if (weights[:, query] > 0).all())
    mean[1:] += shares[1:, [1]] * distortions[1, 1:]
    for rate in rates_between(curves.agnostic, seed, 3):
        expected = brute_force(context_lengths, candidate_lengths, mean, weights.sum(axis=1), rate)
        assert curves.agnostic(rate) == pytest.approx(expected, abs=1e-9)
    pairs = np.tile(context_lengths, 3), candidate_lengths, np.concatenate(distortions), weights.T.ravel()
    for rate in rates_between(curves.aware, seed, 3):
        assert curves.aware(rate) == pytest.approx(brute_force(*pairs, rate), abs=1e-9)
    for query, curve in enumerate(curves.per_query):
        for rate in rates_between(curve, seed, 1):
            problem = context_lengths, candidate_lengths, distortions[query], weights[:, query], rate
            assert curve(rate) == pytest.approx(brute_force(*problem), abs=1e-9)


def test_an_encoder_that_knows_the_query_is_never_worse():
    context_lengths, candidate_lengths, distortions, weights = instance(1, queries=3)
    curves = query_curves(context_lengths, candidate_lengths, distortions, weights)
    rates = np.linspace(curves.agnostic.rates_B[0], 1, 50)
    assert (curves.aware(rates) <= curves.agnostic(rates) + 1e-12).all()
    assert (curves.aware(rates) < curves.agnostic(rates) - 1e-3).any()


def test_a_curve_by_hand():
    """Two contexts of two tokens: the first gains 4 a rate of 1 from its token, the second 2; so the first goes first."""
    curve = distortion_rate_curve([2, 2], [0, 1, 1, 2], [[3, 1, 2, 1], [2, 5, 1, 1]])
    assert curve.rates_B == pytest.approx([0, 0.25, 0.5])
    assert curve.distortions_B == pytest.approx([2.5, 1.5, 1])
    assert curve(0.125) == pytest.approx(2)
    assert curve(np.array([0.375, 9])) == pytest.approx([1.25, 1])
    assert [curve.multiplier(rate) for rate in (0, 0.3, 0.5)] == pytest.approx([4, 2, 0])


def test_the_best_of_each_length_is_all_the_curve_needs():
    context_lengths, candidate_lengths, (distortions,), weights = instance(2)
    whole = distortion_rate_curve(context_lengths, candidate_lengths, distortions, weights[:, 0])
    lengths, best = best_of_each_length(candidate_lengths, distortions)
    assert (np.diff(lengths) > 0).all()
    reduced = distortion_rate_curve(context_lengths, lengths, best, weights[:, 0])
    assert (reduced.rates_B == whole.rates_B).all() and (reduced.distortions_B == whole.distortions_B).all()


def test_pools_of_several_sizes_give_the_best_in_pool():
    pools = [[(4, 1.0), (0, 3.0), (4, 0.5)], [(3, 2.0)], [(1, 1.0), (5, 0.25)]]
    lengths, weights = [8, 6, 10], [1, 1, 2]
    table = np.full((3, 5), np.inf)
    table[0, [3, 0]], table[1, 2], table[2, [1, 4]] = (0.5, 3.0), 2.0, (1.0, 0.25)
    curve = best_in_pool_curve(lengths, pools, weights)
    for rate in rates_between(curve, 0):
        expected = brute_force(lengths, [0, 1, 3, 4, 5], table, weights, rate)
        assert curve(rate) == pytest.approx(expected, abs=1e-9)
    grown = best_in_pool_curve(lengths, [*pools[:2], [*pools[2], (2, 0.5)]], weights)
    assert grown(0.4) < curve(0.4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distortions_XM": [[1.0, float("nan")], [1.0, 1.0]]}, "NaN"),
        ({"distortions_XM": [[1.0, -np.inf], [1.0, 1.0]]}, "−∞"),
        ({"distortions_XM": [[1.0, 1.0], [np.inf, np.inf]]}, "Context 1 has no candidate"),
        ({"distortions_XM": [1.0, 1.0]}, "shape"),
        ({"candidate_lengths_M": [1, 2, 3]}, r"`candidate_lengths_M` \(3,\)"),
        ({"candidate_lengths_M": [-1, 2]}, "at least 0"),
        ({"context_lengths_X": [4]}, "`context_lengths_X` has shape"),
        ({"context_lengths_X": [4, 0]}, "above 0"),
        ({"weights_X": [1, -1]}, "`weights_X`"),
        ({"weights_X": [0, 0]}, "not all 0"),
        ({"weights_X": [float("nan"), 1]}, "finite"),
    ],
)
def test_bad_input_names_the_argument(change, message):
    good = {
        "context_lengths_X": [4, 4],
        "candidate_lengths_M": [1, 2],
        "distortions_XM": np.ones((2, 2)),
        "weights_X": [1, 1],
    }
    with pytest.raises(ValueError, match=message):
        distortion_rate_curve(**good | change)


def test_below_r_min_there_is_no_encoder():
    curve = distortion_rate_curve([4, 4], [1, 2], [[2.0, 1.0], [np.inf, 1.0]])
    assert curve(0.375) == 1.5
    for rate in (0.374, float("nan"), np.array([0.5, 0.1])):
        with pytest.raises(ValueError, match="R_min = 0.375"):
            curve(rate)
    with pytest.raises(ValueError, match="R_min"):
        curve.multiplier(0.1)


def test_an_empty_pool_and_a_missing_query_are_refused():
    with pytest.raises(ValueError, match="pool of context 1 is empty"):
        best_in_pool_curve([4, 4], [[(1, 1.0)], []])
    with pytest.raises(ValueError, match="zip"):
        query_curves([4], [1], [np.ones((1, 1))], np.ones((1, 2)))
