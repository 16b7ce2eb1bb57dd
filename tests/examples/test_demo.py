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

"""examples/demo.py, end to end on a tiny checkpoint and five articles of shuffled sentences."""

import json
import re

import pytest
from datasets import Dataset
from tiny import make_documents, make_model

from examples import demo, demo_assets
from trl_gist import GistCompactor


@pytest.fixture
def five_articles(tokenizer, tmp_path, monkeypatch):
    texts = make_documents(60)
    articles = [{"title": f"Article {n}", "text": "\n".join(texts[12 * n : 12 * n + 12])} for n in range(5)]
    model = make_model(tokenizer, max_position_embeddings=1024)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "checkpoint")
    monkeypatch.setattr(demo_assets, "HELD_OUT_ARTICLES", 2)
    monkeypatch.setattr(demo_assets, "wikipedia_articles", lambda: Dataset.from_list(articles))
    monkeypatch.setattr(demo, "smollm2_checkpoint", lambda: tmp_path / "checkpoint")
    monkeypatch.setenv("COLUMNS", "200")
    return articles


@pytest.mark.parametrize(("generator_only", "compressor"), [(False, None), (True, "tail")], ids=["pair", "G alone"])
def test_it_trains_measures_saves_and_continues(five_articles, tmp_path, capsys, generator_only, compressor):
    run = tmp_path / "run"
    demo.main(7, str(run), generator_only, compressor)
    printed = capsys.readouterr().out
    measures = json.loads((run / "gist_config.json").read_text())["measures"]
    assert re.search(r"\d windows of 2 unseen articles", printed)
    (after, error) = re.search(r"gain of the gist over null .* (-?[\d.]+) ± ([\d.]+)\s*\n", printed).groups()
    assert float(after) == pytest.approx(measures["gain_over_null"], abs=6e-4)
    assert float(error) == pytest.approx(measures["gain_over_null_se"], abs=6e-4)
    assert printed.count("nats/token: ") == 4, "the verdicts"
    assert f"The pair is in {run}" in printed and (run / "report.html").is_file()
    assert {path.name for path in (run / "plots").iterdir()} >= {"training.png", "readers.png"}
    held_out = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    assert len(held_out) == 6 and len({piece["document_id"] for piece in held_out}) == 2
    pair = GistCompactor.from_pretrained(run, device="cpu").pair
    assert (pair.step, pair.context_length, pair.last_k) == (7, 128, 16)


def test_paid_for_facts_it_shows_what_is_recalled_before_and_after(five_articles, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setitem(demo.FACTS, "cold_start_steps", 1)
    demo.main(2, str(run), generator_only=False, compressor=None, facts=True)
    printed = capsys.readouterr().out
    measures = json.loads((run / "gist_config.json").read_text())["measures"]
    after = re.search(r"facts recalled token for token .* ([\d.]+) ± [\d.]+\s*\n", printed)[1]
    assert float(after) == pytest.approx(measures["fact/exact"], abs=6e-4)
    assert re.search(r"gist, before, \d+ tokens: ", printed) and re.search(r"gist, after, \d+ tokens: ", printed)
    for rule in demo.RULES:
        assert re.search(rf"\n\s*{rule} .*\d\.\d+ ± \d\.\d+", printed), rule
    compactor = GistCompactor.from_pretrained(run, device="cpu")
    *_, window = demo.first_windows(compactor, demo.split_articles()[1][0]["text"], 3)
    for target in window["targets"]:
        assert compactor.decode(target["target_ids"]).strip()[:20] in printed


def test_no_article_is_both_trained_on_and_held_out(five_articles):
    train, held_out = (set(articles["title"]) for articles in demo_assets.split_articles())
    assert len(train) == 3 and len(held_out) == 2 and not train & held_out
