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


"""The best of a pool of gists, against a linear program written out."""

import numpy as np
import pytest
from scipy.optimize import linprog

from trl_gist.evaluation.comparison.pool import plot_pool, pool_curve


LENGTHS, BUDGETS = [20, 10, 16], 2


@pytest.fixture
def results():
    generator = np.random.default_rng(3)
    rows = []
    for window in range(len(LENGTHS) * BUDGETS):
        for compressor, tokens in (
            ("no gist", 0),
            ("trained summarizer", 3 + window % 2),
            ("tail", 2 + 3 * (window % 2)),
        ):
            for reader in ("teacher", "generator"):
                kl = generator.uniform(0.1, 1)
                rows.append({"compressor": compressor, "reader": reader, "window": window, "tokens": tokens, "kl": kl})
    return rows


def test_the_curve_is_the_linear_program_over_every_gist_of_a_window(results):
    curve = pool_curve(results, np.repeat(LENGTHS, BUDGETS).tolist(), BUDGETS)
    rows = [row for row in results if row["reader"] == "generator"]
    windows = np.array([row["window"] // BUDGETS for row in rows])
    rates = np.array([row["tokens"] / LENGTHS[window] for row, window in zip(rows, windows, strict=True)]) / 3
    one_each = [(windows == window).astype(float) for window in range(3)]
    for rate in (0.0, 0.05, 0.1, 0.2, 0.4):
        best = linprog([row["kl"] / 3 for row in rows], A_ub=[rates], b_ub=[rate], A_eq=one_each, b_eq=[1, 1, 1])
        assert curve(rate) == pytest.approx(best.fun, abs=1e-9)


def test_the_plot_is_drawn(results, tmp_path):
    plot_pool(results, np.repeat(LENGTHS, BUDGETS).tolist(), BUDGETS, tmp_path / "pool")
    assert (tmp_path / "pool.png").stat().st_size > 10_000
