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

"""research/ablation: the table of runs that are there, and how near runs keep to their target length."""

import json

from research.ablation import ablation, rate_seeds


def test_the_ablation_table_pairs_windows_and_averages_seeds(tmp_path, capsys):
    def save(arm, seed, gains):
        rows = [
            {
                "document_id": f"article {index // 2}",
                "last_k_ids": [index],
                "gist_log_prob": gain - index,
                "null_log_prob": -index,
                "rule_log_prob": 0.1 - index,
                "teacher_kl": 0.5,
            }
            for index, gain in enumerate(gains)
        ]
        (tmp_path / f"{arm}-{seed}.json").write_text(
            json.dumps({"rows": rows, "log": [{"reliability/log_prob_gain": 0.25, "reliability/kl_gain": 0.5}]})
        )

    save("base", 42, [0.1, 0.1, 0.3, 0.3])
    save("base", 43, [0.3, 0.3, 0.5, 0.5])
    save("without_l", 42, [0.4, 0.4, 0.6, 0.6])
    ablation.print_table(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    # Means over two seeds are 0.2 and 0.4 in the two articles: 0.3, and an error of their difference, halved
    assert lines[2] == (
        "| base | 2 | 0.500 ± 0.000 | 0.000 ± 0.000 | 0.300 ± 0.100 | 0.200 ± 0.100 | 0.000 ± 0.000 | 0.25 | 0.50 |"
    )
    # Paired, the articles' own difficulty is gone: 0.2 better in each
    assert lines[3] == (
        "| without_l | 1 | 0.500 ± 0.000 | 0.000 ± 0.000 | 0.500 ± 0.100 | 0.400 ± 0.100 | 0.200 ± 0.000 | 0.25 | 0.50 |"
    )


def test_lengths_are_shown_as_shares_of_the_target(monkeypatch, capsys):
    lengths = {7: [8.0, 2.0, 4.0, 3.0, 5.0, 4.0, 4.0, 5.0], 0: [6.0] * 8}
    monkeypatch.setattr(rate_seeds, "lengths", lambda seed, checkpoint: lengths[seed])
    rate_seeds.main([7, 0])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "seed 7: shortest 0.50, last quarter 1.12",  # of 4 tokens
        "seed 0: shortest 1.50, last quarter 1.50",
    ]
