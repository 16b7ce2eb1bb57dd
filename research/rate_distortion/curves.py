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
"""What a reader loses on gists of the task's strings, exactly: D*(R), its check by a linear program, the plot."""

from dataclasses import dataclass
from pathlib import Path

from trl_gist.evaluation.pages.plots import GIST, NEUTRAL, NULL, save_figure
from trl_gist.evaluation.rate_distortion import QueryCurves, distortion_rate_curve, query_curves

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.optimize import linprog
from scipy.sparse import coo_array

from research.rate_distortion.reader import losses
from research.rate_distortion.task import QUERIES, all_strings, answer_distribution, string_weights


DISTORTIONS = {"log_loss": "log-loss, nats per answer", "error": "wrong answers, share"}
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


@dataclass
class Problem:
    """All strings of the evaluated lengths with the exact weight of each with each query, and of its answers."""

    lengths: range

    def __post_init__(self):
        self.strings = all_strings(self.lengths)
        self.weights_XQ = string_weights(self.strings, self.lengths)
        self.answers_XQA = np.stack([answer_distribution(bits) for bits in self.strings])
        self.lengths_X = np.array([len(bits) for bits in self.strings])

    def of_gists(self, loss_MQA: np.ndarray, gist_XQ: np.ndarray) -> np.ndarray:
        """Expected loss of each string and query, when it is read as the row `gist_XQ` of a table of losses."""
        return (self.answers_XQA * loss_MQA[gist_XQ, np.arange(len(QUERIES))]).sum(-1)

    def best_decoding(self, gists_XQ: np.ndarray) -> dict[str, float]:
        """Expected losses if each gist is answered from its exact posterior: no decoder of these gists does better."""
        gists_Z, gist_XQ = np.unique(gists_XQ, return_inverse=True)
        joint_ZQA = np.zeros((len(gists_Z), *self.answers_XQA.shape[1:]))
        for query in range(len(QUERIES)):
            weighted_XA = self.weights_XQ[:, query, None] * self.answers_XQA[:, query]
            np.add.at(joint_ZQA, (gist_XQ.reshape(gists_XQ.shape)[:, query], query), weighted_XA)
        posterior_ZQA = joint_ZQA / np.maximum(joint_ZQA.sum(-1, keepdims=True), np.finfo(float).tiny)
        log_loss = -(joint_ZQA * np.log(np.where(joint_ZQA > 0, posterior_ZQA, 1.0))).sum()
        return {"log_loss": float(log_loss), "error": float(1 - joint_ZQA.max(-1).sum())}

    def of_candidates(self, loss_MQA: np.ndarray, query: int, candidate_lengths_M: np.ndarray) -> np.ndarray:
        """Expected loss of every string read as every candidate that is no longer, infinite elsewhere: `(X, M)`."""
        loss_XM = self.answers_XQA[:, query] @ loss_MQA[:, query].T
        loss_XM[candidate_lengths_M[None] > self.lengths_X[:, None]] = np.inf
        return loss_XM


def lloyd_gists(problem: Problem, budgets_X: np.ndarray, restarts: int = 8, iterations: int = 25) -> list[str]:
    """
    What a code can be worth where the decoder is free: gists of exactly `budgets_X` bits by Lloyd's algorithm. Strings
    move to the gist whose posterior expects their answers most, and posteriors follow. A local optimum in log-loss.
    """
    generator, gists = np.random.default_rng(0), [""] * len(problem.strings)
    joint_XF = (problem.weights_XQ[:, :, None] * problem.answers_XQA).reshape(len(problem.strings), -1)
    for bits in np.unique(budgets_X):
        members, codes, best = np.flatnonzero(budgets_X == bits), 2**bits, np.inf
        weights = problem.weights_XQ[members].sum(1)
        for _ in range(restarts):
            size = min(codes, len(members))
            centre_ZF = joint_XF[generator.choice(members, size, replace=False, p=weights / weights.sum())]
            for _ in range(iterations):
                centre_ZQA = centre_ZF.reshape(len(centre_ZF), len(QUERIES), -1) + 1e-9
                log_posterior_ZF = np.log(centre_ZQA / centre_ZQA.sum(-1, keepdims=True)).reshape(centre_ZF.shape)
                cost_XZ = -joint_XF[members] @ log_posterior_ZF.T
                code_X = cost_XZ.argmin(1)
                centre_ZF = np.zeros_like(centre_ZF)
                np.add.at(centre_ZF, code_X, joint_XF[members])
            if cost_XZ.min(1).sum() < best:
                best, best_code_X = cost_XZ.min(1).sum(), code_X
        for member, code in zip(members, best_code_X, strict=True):
            gists[member] = format(code, f"0{bits}b")
    return gists


def reader_curves(model, tokenizer, problem: Problem, longest: int) -> dict[str, QueryCurves]:
    """D*(R) of a frozen reader over all binary strings up to a length, the empty one too, in each of `DISTORTIONS`."""
    candidates = all_strings(range(longest + 1))
    candidate_lengths_M = np.array([len(bits) for bits in candidates])
    curves = {}
    for name, loss_MQA in losses(model, tokenizer, candidates).items():
        tables = (problem.of_candidates(loss_MQA, query, candidate_lengths_M) for query in range(len(QUERIES)))
        curves[name] = query_curves(problem.lengths_X, candidate_lengths_M, tables, problem.weights_XQ)
    return curves


def largest_difference_from_linprog(model, tokenizer, problem: Problem) -> float:
    """
    Between D*(R) and a linear program with a variable for every string and candidate, at R_min and four other rates,
    in both distortions. For a problem of few strings.
    """
    candidates = all_strings(range(problem.lengths[-1] + 1))
    lengths_M = np.array([len(bits) for bits in candidates])
    weights_X, differences = problem.weights_XQ.sum(1), []
    for loss_MQA in losses(model, tokenizer, candidates).values():
        loss_XM = sum(
            (problem.weights_XQ[:, query] / weights_X)[:, None] * problem.of_candidates(loss_MQA, query, lengths_M)
            for query in range(len(QUERIES))
        )
        curve = distortion_rate_curve(problem.lengths_X, lengths_M, loss_XM, weights_X)
        x_P, m_P = np.nonzero(np.isfinite(loss_XM))
        of_string_XP = coo_array((np.ones(len(x_P)), (x_P, np.arange(len(x_P)))))
        for rate in (curve.rates_B[0], 0.2, 0.4, 0.6, 0.8):
            result = linprog(
                weights_X[x_P] * loss_XM[x_P, m_P],
                A_ub=(weights_X[x_P] * lengths_M[m_P] / problem.lengths_X[x_P])[None],
                b_ub=[rate],
                A_eq=of_string_XP,
                b_eq=np.ones(len(weights_X)),
                method="highs-ds",
                options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
            )
            differences.append(abs(result.fun - curve(rate)))
    return max(differences)


def measure_gists(generator, tokenizer, problem: Problem, gists_XQ: np.ndarray, held_out_X: np.ndarray) -> dict:
    """
    Exact expectations over strings, queries and answers: the rate, both distortions, each also per query and on
    held-out strings, and what either half leaves: `_best_decoder` is the same gists decoded from their exact
    posterior, `_best_encoder` D* of this generator at the rate, with gists no longer than its longest.

    Args:
        generator ([`~transformers.LlamaForCausalLM`]):
            Who reads the gists.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Its tokenizer.
        problem ([`Problem`]):
            The strings.
        gists_XQ (`np.ndarray` of shape `(strings, 7)`):
            The gist of each string for each query; where the encoder does not see the query, the same for all.
        held_out_X (`np.ndarray` of shape `(strings,)`):
            True at strings that training never saw.
    """
    longest = max(map(len, gists_XQ.flat))
    read = all_strings(range(longest + 1))
    row = {gist: index for index, gist in enumerate(read)}
    gist_XQ = np.vectorize(row.__getitem__)(gists_XQ)
    rate_XQ = np.vectorize(len)(gists_XQ) / problem.lengths_X[:, None]
    weights_XQ = problem.weights_XQ
    measures = {"rate": (weights_XQ * rate_XQ).sum(), "gists": len(np.unique(gists_XQ))}
    encoder = "agnostic" if (gists_XQ == gists_XQ[:, :1]).all() else "aware"
    best_encoder, best_decoder = reader_curves(generator, tokenizer, problem, longest), problem.best_decoding(gists_XQ)
    for name, loss_MQA in losses(generator, tokenizer, read).items():
        weighted_XQ = weights_XQ * problem.of_gists(loss_MQA, gist_XQ)
        measures[name] = weighted_XQ.sum()
        measures[f"{name}_per_query"] = (weighted_XQ.sum(0) / weights_XQ.sum(0)).tolist()
        measures[f"{name}_held_out"] = weighted_XQ[held_out_X].sum() / weights_XQ[held_out_X].sum()
        measures[f"{name}_best_encoder"] = getattr(best_encoder[name], encoder)(measures["rate"])
        measures[f"{name}_best_decoder"] = best_decoder[name]
    return measures


def plot(curves: dict[str, QueryCurves], points: dict[str, list[dict]], controls: dict[str, list[dict]], path: Path):
    """
    D*(R) of the frozen reader, the co-trained pairs and the controls, one panel for each distortion.

    Args:
        curves (`dict`):
            Of [`reader_curves`].
        points (`dict`):
            `agnostic` or `aware` to a list of points with `rate`, and the mean and standard error of each distortion.
        controls (`dict`):
            A perfect decoder of `no gist`, of `even bits` and of `Lloyd's code`: points with `rate` and both
            distortions.
        path (`Path`):
            Without a suffix: a PNG and an SVG.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), DISTORTIONS, strict=True):
        _draw_curves(axis, curves[name])
        _draw_controls(axis, controls, name)
        for kind, drawn in points.items():
            _draw_pairs(axis, drawn, name, kind)
        axis.set_xlim(-0.16, 1.02)
        axis.set_xticks(np.arange(6) / 5)
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.75 * axis.get_ylim()[0])
        axis.set_yticks([tick for tick in TICKS if tick < curves[name].agnostic(0.0)])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("rate: bits of the gist / bits of the string", fontsize=9)
        axis.set_ylabel(DISTORTIONS[name], fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.2)
    figure.suptitle(
        "Seven questions about a binary string, answered from a shorter one\n"
        "± 2 standard errors over seeds; crosses: decoded by the exact posterior",
        x=0.01,
        ha="left",
        fontsize=10,
        weight="bold",
    )
    save_figure(figure, path)


def _draw_curves(axis, curves):
    for kind, color, text, at, offset, side in (
        ("agnostic", NULL, "best encoder for the\nfrozen reader, D*(R)", 0.82, (0, 8), "left"),
        ("aware", NEUTRAL, "D*(R), encoder sees the query", 1.0, (2, -12), "right"),
    ):
        curve = getattr(curves, kind)
        rates = np.unique([*curve.rates_B, 1.0])
        axis.plot(rates, curve(rates), color=color, linewidth=2 if kind == "agnostic" else 1)
        _label(axis, text, at, curve(at), color, offset, side)


def _draw_controls(axis, controls, name):
    none = controls["no gist"][0]
    for text, style in (("even bits", "x--"), ("Lloyd's code", "x:")):
        drawn = [none, *controls[text]]
        rates, values = ([point[key] for point in drawn] for key in ("rate", name))
        axis.plot(rates, values, style, color=NEUTRAL, linewidth=0.8, markersize=5)
        _label(axis, text, rates[-1], values[-1], NEUTRAL, (7, -3))
    _label(axis, "no gist", 0, none[name], NEUTRAL, (-5, -3), "right")


def _draw_pairs(axis, points, name, kind):
    rates, values = ([point[key] for point in points] for key in ("rate", name))
    errors = [2 * point[f"{name}_se"] for point in points]
    style = "o-" if kind == "agnostic" else "s:"
    axis.errorbar(rates, values, yerr=errors, fmt=style, color=GIST, capsize=4, markersize=5, linewidth=1.5)
    text = "co-trained pair" + (", S sees the query" if kind == "aware" else "")
    middle = len(rates) // 2
    _label(axis, text, rates[middle], values[middle], GIST, (0, 8), "center")


def _label(axis, text, x, y, color, offset, side="left"):
    axis.annotate(text, (x, y), offset, textcoords="offset points", color=color, fontsize=8, ha=side)
