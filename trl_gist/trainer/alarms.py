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
Alarms for reward hacking: the known ways in which a pair earns its reward without doing its job.

    length_collapse         gists shrink to about one token: the penalty pays more than the text
    ignores_context         another document's gist serves as well: S writes what suits any text, or G reads none of it
    last_k_decay            G forgets how to go on without a gist, so that the gain over it grows by itself
    parrots_prompt          gists repeat S's instruction
    degenerate_vocabulary   gists loop, or are special tokens and pieces of characters

And for a run that goes on and teaches S nothing:

    no_signal               for long, no context had gists that are paid differently and that the loss counts

A gist in another language, or one that is mostly punctuation, is no alarm: it may be a code, and a good one.

Each figure is a mean over the newest contexts, of all processes, and none is judged before `SETTLED` of them. The two
that compare log-probs are noisy, 0.1 to 0.3 nats/token from one context to the next, and a long run looks at them
hundreds of times; so they are judged over more contexts and by more than the usual two standard errors, which chance
alone passes in one look of forty. An alarm that cries wolf is switched off. A slow decay of 0.1 nats/token may
therefore go by unheard: the logged figures are there to be plotted.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from ..common.statistics import standard_error
from ..scoring.controls import shuffled_log_probs
from ..scoring.gist_scorer import GistScorer


logger = get_logger(__name__)

ALARMS_FILE = "alarms.json"

# Contexts, of at least two documents, before a figure is judged: with fewer a standard error is itself a guess
SETTLED = 16
# Contexts in a running mean of log-probs. Shorter, and a decay of 0.1 nats/token hides in the noise; longer, and an
# alarm comes long after its cause
LOG_PROB_CONTEXTS = 64

# Tokens: halfway between one and two. A user who allows gists of 5 tokens or fewer wants them short: a quarter then
SHORTEST_GIST = 1.5
# Nats/token: a third of what 48 tf-idf keywords buy SmolLM2-135M over an empty gist, a tenth of what a verbatim tail
# buys it. What is worth less is not what anybody trains for
GIST_WORTH = 0.01
# Standard errors by which a gist must be worth less. Two would be passed by chance in nearly every run of 1,500
# rollouts whose gists are worth an honest 0.02 with a noise of 0.2 a context, and four in one of a hundred
WORTH_ERRORS = 4.0
# Nats/token that the excess may rise: about a third of what the demo's gists gain over the empty one
LAST_K_RISE = 0.05
# Standard errors of the rise. It is measured from the lowest of hundreds of means, which lies two or three below the
# rest by chance alone: a generator that has not changed passes four in most such runs, six in one of two hundred
RISE_ERRORS = 6.0
# Share of 3-grams: an honest gist of 24 tokens that happens on four of the prompt has 2 of its 22
PARROTED_SHARE = 0.25
PARROTED_NGRAM = 3
# Share of gists: a small model loops now and then
DEGENERATE_SHARE = 0.25
# A gist loops if it has fewer than a third of the distinct tokens of as long a stretch of its own context; a table of
# digits has few in both
LOOP_RATIO = 1 / 3
# Tokens; of fewer one cannot tell whether they loop, or are a character cut short
JUDGED_LENGTH = 8

WHAT_TO_DO = {
    "length_collapse": "A token costs more than it earns: lower `length_penalty`, or the weight of your own reward "
    "that pays for short gists.",
    "ignores_context": "Gists say nothing of their own context, or the generator does not read them. Go back to a "
    "checkpoint from before, lower `learning_rate` or raise `beta`, and read the gists (`log_completions`). If "
    "`teacher_kl` is no lower than `null_teacher_kl`, raise `generator_learning_rate` or lower `gist_dropout`.",
    "last_k_decay": "The generator loses its skill without a gist, so `log_prob_gain` rises for nothing. Raise "
    "`gist_dropout` or lower `generator_learning_rate`, and trust `gain_over_last_k`.",
    "parrots_prompt": "Gists repeat `summarizer_prompt` instead of the context. Reword it, or go back to a checkpoint "
    "from before with a lower `learning_rate` or a higher `beta`.",
    "degenerate_vocabulary": "Gists loop, or are special tokens and pieces of characters. Read them "
    "(`log_completions`); lower `temperature` or `learning_rate`, or raise `beta`.",
    "no_signal": "The summarizer learns nothing from gists that are all paid the same. Read them (`log_completions`): where "
    "those of a context are all alike, raise `temperature` or `num_generations`, or `beta` after going back to a checkpoint "
    "from before; where they differ, the reward does not tell them apart.",
}


class RunningMean:
    """
    Mean of the newest values, and its standard error over documents.

    Whole rollouts are kept: the newest that together hold at least `size` values.

    Args:
        size (`int`):
            Values to keep.
    """

    def __init__(self, size: int):
        self.size = size
        self.rollouts: list[list[list]] = []  # of pairs, each a value and its document

    def add(self, values: list[float], documents: list[str]):
        """Adds the values of a rollout, one per context; NaN stands for none."""
        pairs = [[value, document] for value, document in zip(values, documents, strict=True) if value == value]
        if pairs:
            self.rollouts.append(pairs)
            while self.count - len(self.rollouts[0]) >= self.size:
                self.rollouts.pop(0)

    @property
    def count(self) -> int:
        """Values kept."""
        return sum(len(rollout) for rollout in self.rollouts)

    def estimate(self) -> tuple[float, float]:
        """Mean and standard error; NaN, of which no comparison is true, before there are `SETTLED` values of two
        documents."""
        pairs = [pair for rollout in self.rollouts for pair in rollout]
        if len(pairs) < SETTLED or len({document for _, document in pairs}) < 2:
            return math.nan, math.nan
        values, documents = zip(*pairs, strict=True)
        return float(np.mean(values)), standard_error(values, documents)


class Alarms:
    """
    Watches each rollout of a [`GistTrainer`] for reward hacking.

    An alarm warns when it starts, and again only if its figure has recovered in between.

    Args:
        scorer ([`GistScorer`]):
            The pair and its teacher.
        max_gist_length (`int`):
            Longest gist, in tokens.
        accelerator ([`~accelerate.Accelerator`]):
            The one of the [`GistTrainer`]. All processes see the same figures and come to the same verdicts.

    Attributes:
        on (`set[str]`):
            Names of the alarms that are on.
        started (`set[str]`):
            Those that have started since somebody emptied it; see [`StopOnAlarm`].
    """

    def __init__(self, scorer: GistScorer, max_gist_length: int, accelerator: Accelerator):
        self.scorer = scorer
        self.shortest_gist = min(SHORTEST_GIST, max_gist_length / 4)
        self.accelerator = accelerator
        self.template = {ngram for part in scorer.prompts.instruction for ngram in _ngrams(part, PARROTED_NGRAM)}
        self.means = {
            "gist_length": RunningMean(SETTLED),
            "gain_over_shuffled": RunningMean(LOG_PROB_CONTEXTS),
            "last_k_excess": RunningMean(LOG_PROB_CONTEXTS),
            "parroted_share": RunningMean(SETTLED),
            "degenerate_share": RunningMean(SETTLED),
        }
        self.taught = RunningMean(LOG_PROB_CONTEXTS)
        self.lowest_excess: list[float] | None = None  # mean and standard error
        self.previous: list[dict] = []
        self.on: set[str] = set()
        self.started: set[str] = set()

    def watch(self, rows: list[dict], texts: list[str], num_generations: int, step: int) -> dict[str, float]:
        """
        Takes the figures of a rollout and warns of the alarms that start.

        Costs one forward of the generator per context, with another document's gist, and one of the teacher, on the
        last k tokens: of the step's `num_generations` forwards and backwards per context and more, a few percent.

        Args:
            rows (`list[dict]`):
                This process's gists, with the columns of [`GistScorer.score`]; those of one context are adjacent.
            texts (`list[str]`):
                The gists decoded, without special tokens.
            num_generations (`int`):
                Gists per context.
            step (`int`):
                For the warning.

        Returns:
            `dict[str, float]`: What to log. Means over the rollout's contexts on all processes, in nats per target
            token: `gain_over_shuffled` (absent where no other document lends its gist), `gain_over_last_k`,
            `last_k_excess`; the shares `parroted_share` (absent if all gists are too short) and `degenerate_share`;
            and 0 or 1 for each `alarm/<name>`.
        """
        contexts = gather_object(self._of_own_contexts(rows, texts, num_generations))
        documents = [context.pop("document_id") for context in contexts]
        columns = {name: [context[name] for context in contexts] for name in contexts[0]}
        for name, mean in self.means.items():
            mean.add(columns[name], documents)
        verdicts = self._verdicts()
        self._announce(verdicts, step)
        columns.pop("gist_length")  # logged with the scores
        present = {name: [value for value in column if not math.isnan(value)] for name, column in columns.items()}
        figures = {name: sum(values) / len(values) for name, values in present.items() if values}
        return figures | {f"alarm/{name}": float(name in self.on) for name in verdicts}

    def watch_signal(self, taught: list[bool], documents: list[str], step: int) -> dict[str, float]:
        """
        Takes whether each context of this process taught S anything in a rollout, with its document, and warns if none of
        the newest did. Returns what to log: 0 or 1 for `alarm/no_signal`.
        """
        contexts = gather_object(list(zip(map(float, taught), documents, strict=True)))
        self.taught.add(*zip(*contexts, strict=True))
        values = [value for rollout in self.taught.rollouts for value, _ in rollout]
        silent = len(values) >= LOG_PROB_CONTEXTS and not any(values)
        figure = (
            f"of the last {len(values)} contexts none had gists that are paid differently and that the loss counts"
        )
        self._announce({"no_signal": (silent, figure)}, step)
        return {"alarm/no_signal": float(silent)}

    def state_dict(self) -> dict:
        """All that a resumed run needs to come to the verdicts of one that was never interrupted."""
        return {
            "means": {name: mean.rollouts for name, mean in self.means.items()},
            "taught": self.taught.rollouts,
            "lowest_excess": self.lowest_excess,
            "previous": self.previous,
            "on": sorted(self.on),
        }

    def save(self, checkpoint_dir: str | os.PathLike):
        """Writes the state as JSON, in which floats keep every bit."""
        Path(checkpoint_dir, ALARMS_FILE).write_text(json.dumps(self.state_dict()), encoding="utf-8")

    def load(self, checkpoint_dir: str | os.PathLike):
        """Loads what [`~Alarms.save`] wrote."""
        state = json.loads(Path(checkpoint_dir, ALARMS_FILE).read_text(encoding="utf-8"))
        for name, mean in self.means.items():
            mean.rollouts = state["means"][name]
        self.taught.rollouts = state.get("taught", [])  # which checkpoints had not
        self.lowest_excess, self.previous, self.on = state["lowest_excess"], state["previous"], set(state["on"])

    # ---- Figures of each context ----

    def _of_own_contexts(self, rows, texts, num_generations):
        """For each context of this process, its document and its figures. Where a gist costs a forward, the first
        stands for its group: they are independent draws."""
        firsts = rows[::num_generations]
        shuffled = self._shuffled(firsts)
        last_k = self.scorer.cue_log_probs(firsts)
        contexts = []
        for index, first in enumerate(firsts):
            group = slice(index * num_generations, (index + 1) * num_generations)
            gists = [row["gist_ids"] for row in rows[group]]
            degenerate = [
                is_degenerate(gist, text, first["context_ids"], self.scorer.prompts.special_ids)
                for gist, text in zip(gists, texts[group], strict=True)
            ]
            contexts.append(
                {
                    "document_id": str(first["document_id"]),
                    "gist_length": _mean([len(gist) for gist in gists]),
                    "gain_over_shuffled": first["gist_log_prob"] - shuffled[index],
                    "gain_over_last_k": _mean([row["gist_log_prob"] for row in rows[group]]) - last_k[index],
                    "last_k_excess": last_k[index] - first["null_log_prob"],
                    "parroted_share": self._parroted_share(gists, first["context_ids"]),
                    "degenerate_share": _mean(degenerate),
                }
            )
        return contexts

    def _shuffled(self, firsts):
        """Lenders come from all processes; a rollout of one context borrows from the rollout before."""
        names = ("context_ids", "last_k_ids", "target_ids", "targets", "gist_ids")
        own = [
            {"document_id": str(row["document_id"])} | {name: row[name] for name in names if name in row}
            for row in firsts
        ]
        everyone = gather_object(own)
        lenders = everyone if len(everyone) > 1 else everyone + self.previous
        self.previous = everyone[-1:]
        start = self.accelerator.process_index * len(own)
        return shuffled_log_probs(self.scorer, lenders, list(range(start, start + len(own))))

    def _parroted_share(self, gists, context_ids):
        """Mean over the gists long enough to have an n-gram, or NaN."""
        parroted = self.template - set(_ngrams(context_ids, PARROTED_NGRAM))
        ngrams = [_ngrams(gist, PARROTED_NGRAM) for gist in gists]
        return _mean([_mean([ngram in parroted for ngram in of_gist]) for of_gist in ngrams if of_gist])

    # ---- Verdicts ----

    def _verdicts(self):
        """For each alarm, whether it is on, and its figure in words."""
        # Once on, there is no benefit of the doubt: it would flicker around its threshold
        worth_errors = 0.0 if "ignores_context" in self.on else WORTH_ERRORS
        length, _ = self.means["gist_length"].estimate()
        worth, worth_error = self.means["gain_over_shuffled"].estimate()
        rise, allowed_rise = self._last_k_rise()
        parroted, _ = self.means["parroted_share"].estimate()
        degenerate, _ = self.means["degenerate_share"].estimate()
        return {
            "length_collapse": (
                length <= self.shortest_gist,
                f"gists are {length:.2f} tokens long on average, {self.shortest_gist:.2f} or less",
            ),
            "ignores_context": (
                worth + worth_errors * worth_error < GIST_WORTH,
                f"a gist is worth {worth:.4f} ± {worth_error:.4f} nats/token over another document's, less than "
                f"{GIST_WORTH} even with {WORTH_ERRORS:.0f} standard errors on top",
            ),
            "last_k_decay": (
                rise > allowed_rise,
                f"on the last k tokens alone the generator has fallen behind the teacher by {rise:.3f} nats/token "
                f"since its best, more than {allowed_rise:.3f}",
            ),
            "parrots_prompt": (
                parroted > PARROTED_SHARE,
                f"{parroted:.0%} of the gists' {PARROTED_NGRAM}-grams are the prompt's and not the context's, more "
                f"than {PARROTED_SHARE:.0%}",
            ),
            "degenerate_vocabulary": (
                degenerate > DEGENERATE_SHARE,
                f"{degenerate:.0%} of the gists loop or are broken characters, more than {DEGENERATE_SHARE:.0%}",
            ),
        }

    def _last_k_rise(self):
        """How far the excess has risen above its lowest, and how far it may."""
        excess, error = self.means["last_k_excess"].estimate()
        if math.isnan(excess):
            return math.nan, math.nan
        if self.lowest_excess is None or excess < self.lowest_excess[0]:
            self.lowest_excess = [excess, error]
        lowest, lowest_error = self.lowest_excess
        # Half to go off: no fewer, because the lowest is low by chance as well
        errors = RISE_ERRORS / 2 if "last_k_decay" in self.on else RISE_ERRORS
        return excess - lowest, max(LAST_K_RISE, errors * math.hypot(error, lowest_error))

    def _announce(self, verdicts, step):
        for name, (on, figure) in verdicts.items():
            if on and name not in self.on:
                logger.warning(f"Alarm `{name}` at step {step}: {figure}. {WHAT_TO_DO[name]}")
                self.started.add(name)
        self.on = (self.on - verdicts.keys()) | {name for name, (on, _) in verdicts.items() if on}


class StopOnAlarm(TrainerCallback):
    """
    Ends the run, with a checkpoint, at the end of the rollout in which an alarm starts.

    Only a start ends it: who resumes the run has seen the alarm, and it goes on.

    Args:
        alarms ([`Alarms`]):
            Those of the trainer.
        steps_per_rollout (`int`):
            Optimizer steps, after which a checkpoint holds no half-used rollout.
    """

    def __init__(self, alarms: Alarms, steps_per_rollout: int):
        self.alarms = alarms
        self.steps_per_rollout = steps_per_rollout

    def on_step_end(self, args, state, control, **kwargs):
        if self.alarms.started and state.global_step % self.steps_per_rollout == 0:
            names = ", ".join(sorted(self.alarms.started))
            logger.warning(f"`stop_on_alarm`: the run ends at step {state.global_step} ({names}).")
            self.alarms.started.clear()
            control.should_training_stop = True
            if args.save_strategy != SaveStrategy.NO:
                control.should_save = True


def is_degenerate(gist_ids: list[int], text: str, context_ids: list[int], special_ids: frozenset[int]) -> bool:
    """
    Whether a gist is no text in any language or code.

    More than half of it is special tokens, which never reach the generator, or bytes that make no character (a gist
    cut inside one has a single such piece); or it loops. Of fewer than `JUDGED_LENGTH` tokens nothing is said.

    Args:
        gist_ids (`list[int]`):
            The gist.
        text (`str`):
            The gist decoded: a piece of a character becomes U+FFFD.
        context_ids (`list[int]`):
            Its context, which says how many distinct tokens to expect.
        special_ids (`frozenset[int]`):
            The tokenizer's special tokens.
    """
    if len(gist_ids) < JUDGED_LENGTH:
        return False
    broken = sum(token in special_ids for token in gist_ids) + text.count("\ufffd")
    expected = len(set(context_ids[-len(gist_ids) :]))
    return 2 * broken > len(gist_ids) or len(set(gist_ids)) < LOOP_RATIO * expected


def _ngrams(ids, length):
    return [tuple(ids[start : start + length]) for start in range(len(ids) - length + 1)]


def _mean(values):
    """NaN of no values."""
    return sum(values) / len(values) if values else math.nan
