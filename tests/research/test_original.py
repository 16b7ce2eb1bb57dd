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

"""research/original/results.py: what it says of a real, tiny run is what the run's files say."""

import json
import shutil
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import make_documents
from tiny_recipes import tiny_args

from research.original import results
from trl_gist import GistCompactor, GistTrainer
from trl_gist.cli.main import main as trl_gist
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer


@pytest.fixture(scope="module")
def flagship(checkpoint, tmp_path_factory):
    """A run with an evaluation before, within and after, and the pair measured on other documents, which lie beside it."""
    pair = tmp_path_factory.mktemp("original") / "run"
    trainer = GistTrainer(
        model=checkpoint,
        args=tiny_args(
            pair,
            **{"eval_strategy": "steps", "eval_on_start": True, "eval_steps": 2, "max_steps": 4},
            **{"gist_samples_steps": 2, "save_strategy": "steps", "save_steps": 2},
        ),
        train_dataset=Dataset.from_dict({"text": make_documents(12)}),
        eval_dataset=Dataset.from_dict({"text": make_documents(5, seed=1)}),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    documents = pair.with_name("other.jsonl")
    Dataset.from_dict({"text": make_documents(4, seed=2)}).to_json(documents)
    flags = ["--compressors", "--own_generators", f"tail={pair}", "--max_windows", "6"]
    assert trl_gist(["evaluate", str(pair), "--dataset", str(documents), *flags]) == 0
    return pair


def test_it_prints_what_was_measured_and_draws_it(flagship, tmp_path, capsys, monkeypatch):
    images = tmp_path / "images"
    capsys.readouterr()
    argv = ["results.py", str(flagship), "--evaluation", f"other={flagship / 'evaluation'}", "--images", str(images)]
    monkeypatch.setattr(sys, "argv", argv)
    results.main()
    printed = capsys.readouterr().out
    evaluation = json.loads((flagship / "evaluation" / "measures.json").read_text())
    measures = evaluation["measures"][0]
    assert f"| KL, G on the gist | {measures['kl_gist']:.3f} ± {measures['kl_gist_se']:.3f} |" in printed
    (own,) = [
        row
        for row in evaluation["compressors"]
        if row.get("reader") == "own generator" and row["compressor"] == "tail"
    ]
    assert f"| {own['behind_trained']:.3f} ± {own['behind_trained_se']:.3f} |" in printed
    assert f"ahead of tail with its own reader: by {own['behind_trained']:.3f} ± " in printed
    logs = [json.loads(line) for line in (flagship / "run_log" / "metrics.jsonl").read_text().splitlines()]
    held_out = [log for log in logs if "eval_teacher_kl" in log]
    assert [log["step"] for log in held_out] == [0, 2, 4]
    for log in held_out:
        assert f"| {log['step']} | {log['eval_teacher_kl']:.3f} ± " in printed
    rows = [json.loads(line) for line in (flagship / "evaluation" / "rows.jsonl").read_text().splitlines()]
    assert f"rank 1 of {len({row['document_id'] for row in rows})}" in printed
    for name in ("training", "patterns", "survival"):
        assert (images / f"{name}.png").stat().st_size > 5000


def test_the_rate_curve_takes_evaluations_of_the_same_windows_only(flagship, tmp_path, capsys, monkeypatch):
    from research.original import rate_curve

    folder = flagship / "evaluation"
    capsys.readouterr()
    argv = ["rate_curve.py", str(folder), "--single", str(folder), "--image", str(tmp_path / "rate")]
    monkeypatch.setattr(sys, "argv", argv)
    rate_curve.main()
    measures = json.loads((folder / "measures.json").read_text())["measures"][0]
    line = f"{measures['total_rate']:.1%} | {measures['kl_gist']:.3f} ± {measures['kl_gist_se']:.3f} |"
    printed = capsys.readouterr().out
    assert printed.count(line) == 2
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    ends = [row["gist_ids"][-8:] == row["context_ids"][: -len(row["last_k_ids"])][-8:] for row in rows]
    first = printed.splitlines()[2]
    assert first.endswith(f"| {sum(ends) / len(rows):.0%} |")
    assert float(first.split(" | ")[5].split()[0]) == pytest.approx(
        measures["kl_tail"] - measures["kl_gist"], abs=6e-4
    )
    assert (tmp_path / "rate.png").stat().st_size > 5000
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    lines = (other / "rows.jsonl").read_text().splitlines(keepends=True)
    (other / "rows.jsonl").write_text("".join(lines[:-1]))
    monkeypatch.setattr(sys, "argv", ["rate_curve.py", str(folder), str(other)])
    with pytest.raises(SystemExit) as error:
        rate_curve.main()
    assert error.value.code == 2
    assert "other windows" in capsys.readouterr().err


def test_kinds_of_gists_are_chosen_with_and_without_the_target(flagship, monkeypatch):
    from research.original import what_to_keep

    rows = []
    monkeypatch.setattr(what_to_keep, "markdown_table", lambda head, lines: rows.extend(lines) or [])
    documents = str(flagship.with_name("other.jsonl"))
    argv = ["what_to_keep.py", str(flagship), "--dataset", documents, "--split", "train"]
    monkeypatch.setattr(sys, "argv", [*argv, "--futures", "2"])
    what_to_keep.main()
    kls = {name: float(kl.split()[0]) for name, kl, *_ in rows}
    assert len(kls) == 12
    kinds = [kl for name, kl in kls.items() if not name.startswith("the best")]
    assert kls["the best, in hindsight"] <= min(kinds)
    assert kls["the best, in hindsight"] <= kls["the best on 2 made-up targets"]
    assert [row[-1] for row in rows if row[0] == "the best, in hindsight"] == ["100%"]


def test_the_piece_that_lowers_kl_most_takes_the_place_of_the_tail(flagship, monkeypatch):
    from research.original.search_gists import exchanged

    compactor = GistCompactor.from_pretrained(flagship)
    prompts, model = compactor.prompts, compactor.generator.double()
    scorer = GistScorer(TargetScorer(model), TargetScorer(model), prompts)

    def log_probs(prompt, target_ids):
        logits = model(torch.tensor([[*prompt, *target_ids]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)

    def kl(gist, row):
        target_ids = row["target_ids"]
        of_teacher = log_probs(prompts.teacher(row["context_ids"], row["last_k_ids"]), target_ids)
        of_reader = log_probs(prompts.generator(gist, row["last_k_ids"]), target_ids)
        return (of_teacher.exp() * (of_teacher - of_reader)).sum().item()

    tails = 0
    for first in range(20, 60, 10):
        ids = list(range(first, first + 20))
        *futures, row = (
            {"context_ids": ids, "last_k_ids": ids[-4:], "target_ids": target}
            for target in ([7, 9, 11], [21, 3, 5], [30, 2])
        )
        pieces = [ids[start : start + 4] for start in range(0, 16, 4)]
        found = exchanged(scorer, futures, row, length=4, piece=4)
        with torch.no_grad():
            best = min(pieces, key=lambda gist: sum(kl(gist, future) for future in futures))
            of_row = [kl(piece, row) / 2 for piece in pieces]
        assert found["gists"] == [pieces[-1], best]
        assert found["first_kl"][-1] == pytest.approx(of_row)
        tails += best == pieces[-1]
    assert tails < 4


def test_a_search_goes_on_and_is_judged_by_targets_it_was_not_chosen_by(flagship, tmp_path, capsys, monkeypatch):
    from research.original import search_gists

    file, documents = tmp_path / "found.jsonl", str(flagship.with_name("other.jsonl"))
    argv = ["search_gists.py", str(file), "--pair", str(flagship), "--dataset", documents, "--split", "train"]

    def search(*flags):
        monkeypatch.setattr(sys, "argv", [*argv, "--futures", "2", *flags])
        search_gists.main()

    search("--piece", "2", "--documents", "2")
    first = file.read_text()
    search("--piece", "2", "--documents", "3")
    assert file.read_text().startswith(first)
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({search["document_id"] for search in found}) == 3
    assert all(len(search["gists"]) == len(search["kl"]) == 4 for search in found)
    with pytest.raises(SystemExit):
        search("--piece", "7")
    assert "--piece must be 1 to 6" in capsys.readouterr().err

    # Worth, beside the piece in place: one piece on both made-up targets, the other on the true one
    found = [{"document_id": n, "first_kl": [[0.0, 3.0, 1.0], [0.0, 3.0, 1.0], [4.0, 0.0, 1.0]]} for n in range(2)]
    *_, one, two, itself, nothing = search_gists.table_of_knowledge(found)
    # By one: (1 − 3) / 2 from either made-up target, −2 from the true one. By two: −3, and 0 twice, where the tail stays
    gains = [line.split(" | ")[1].split(" ±")[0] for line in (one, two, itself, nothing)]
    assert gains == ["-1.3333", "-1.0000", "1.0000", "-0.6667"]


def test_each_compressor_is_read_by_its_own_reader(flagship, tmp_path, capsys, monkeypatch):
    from research.original import own_readers

    def lines(*readers):
        argv = ["own_readers.py", *readers, "--dataset", str(flagship.with_name("other.jsonl")), "--split", "train"]
        monkeypatch.setattr(sys, "argv", argv)
        capsys.readouterr()
        own_readers.main()
        return [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]

    tail, head = lines(f"tail={flagship}", f"head={flagship}")
    kl, higher = (float(text.split()[0]) for text in (head[1], head[2]))
    assert tail[2] == ""
    assert kl - float(tail[1].split()[0]) == pytest.approx(higher, abs=2e-4)
    # Another reader of the same gists reads them otherwise
    halfway = flagship / "checkpoint-2"
    assert lines(f"tail={flagship}", f"head={halfway}")[1][1] != head[1]
    # Two readers of one compressor go by their folders' names
    first, second = lines(f"tail={flagship}", f"tail={halfway}")
    assert [first[0], second[0]] == [f"| tail, {flagship.name}", "| tail, checkpoint-2"]
    assert second[2] != "0.0000 ± 0.0000"
    # What a search found comes first, on its documents alone
    files = tmp_path / "found.jsonl", tmp_path / "missing.jsonl"
    lines_of = [{"document_id": number, "kl": [9.0, kl], "nll": [9.0, 1.0]} for number, kl in ((0, 0.5), (2, 1.0))]
    files[0].write_text("".join(json.dumps(line) + "\n" for line in lines_of))
    files[1].write_text(json.dumps({"document_id": 9, "kl": [0.0], "nll": [0.0]}))
    searched, tail = lines(f"tail={flagship}", "--searched", str(files[0]))
    assert searched[:2] == ["| searched", "0.7500 ± 0.2500"]
    assert float(tail[1].split()[0]) - 0.75 == pytest.approx(float(tail[2].split()[0]), abs=2e-4)
    for readers, says in (
        (("tail=missing", "heads=missing"), "no compressor is called heads"),
        ((f"tail={flagship}", f"tail={flagship}"), "folders of different names"),
        ((f"tail={flagship}", "--searched", str(files[1])), "only 0 of 1 documents"),
    ):
        with pytest.raises(SystemExit):
            lines(*readers)
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("difference", "says"),
    [
        (0.3, "**holds** beyond two"),
        (0.1, "holds, within"),
        (-0.1, "**does not hold**, within"),
        (-0.3, "**does not hold**"),
    ],
)
def test_a_verdict_is_held_against_two_standard_errors(difference, says):
    assert results._verdict(difference, 0.1).startswith(says)


def test_a_run_without_an_evaluation_is_refused(flagship, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(flagship, tmp_path / "run")
    (run / "run_log" / "metrics.jsonl").write_text("")
    argv = ["results.py", str(run), "--evaluation", f"other={run / 'evaluation'}"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as error:
        results.main()
    assert error.value.code == 2
    assert "eval_on_start" in capsys.readouterr().err
