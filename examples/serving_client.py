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
OpenAI's own client against `trl-gist serve`: a chat, a long one streamed, and the gists of a text.

trl-gist serve runs/demo-1 --chat_window 128        a pair of `make demo`; chats beyond 128 tokens are compacted
python examples/serving_client.py                   in another terminal, with `pip install openai`
python examples/serving_client.py --file article.txt --budget 12

With that pair the second prints, on one core (a model of this size answers hardly anything right):

    answered: The map depicted a map of the world, with the Earth divided into nine continents. …
      36 tokens read, 40 written
      nothing was compacted
    streamed: The map showed a map of the city of London, with the city of London on the map. …
      96 tokens were compacted into 24: 'ery next door, or water from a; 1854; John Snow; Soho; Broad Street'
    compressed: 123 tokens into 24, expected to cost 0.236 ± 0.015 nats per token: ' The\\n1854; John Snow; …

A server with a key reads it from TRL_GIST_API_KEY, and so does this client. Routes, fields, limits: docs/serving.md.
"""

import argparse
import os

from trl_gist.cli.flags import text_file

import httpx
from openai import OpenAI


CHAT = [
    ("system", "Answer in one sentence."),
    ("user", "In 1854 the physician John Snow marked on a map of Soho the houses where people had died of cholera."),
    ("assistant", "The marks stood close together around a public pump in Broad Street."),
    ("user", "Those who drank beer from the brewery next door, or water from a well of their own, were spared."),
    ("assistant", "So it was the water of that pump, and not the air, that carried the disease."),
    ("user", "The parish took the handle off the pump, and Bazalgette built London its sewers some years later."),
    ("assistant", "The water was clean after that, and cholera did not come back to the city."),
    ("user", "What did the map show?"),
]
MESSAGES = [{"role": role, "content": content} for role, content in CHAT]
TEXT = " ".join(content for _, content in CHAT[1:-1])
KEEP = ["names", "numbers"]  # of what a gist stands for, as far as there is room


def chat(client: OpenAI, model: str):
    """A question alone, which is short enough to be read as it is."""
    answer = client.chat.completions.create(model=model, messages=MESSAGES[-1:], max_tokens=40, temperature=0)
    print(f"answered: {answer.choices[0].message.content}")
    print(f"  {answer.usage.prompt_tokens} tokens read, {answer.usage.completion_tokens} written")
    print_compacted(answer.gist)


def stream(client: OpenAI, model: str):
    """The question after its history. The chunk with the `finish_reason` says what was compacted."""
    print("streamed: ", end="")
    chunks = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=40,
        temperature=0,
        stream=True,
        extra_body={"keep": KEEP},
    )
    for chunk in chunks:
        (choice,) = chunk.choices
        print(choice.delta.content or "", end="", flush=True)
        if choice.finish_reason is not None:
            print()
            print_compacted(chunk.gist)


def print_compacted(gist: dict | None):
    """What the server adds to OpenAI's fields."""
    if gist is None:
        print("  nothing was compacted")
    else:
        print(f"  {gist['tokens_in']} tokens were compacted into {gist['tokens_out']}: {gist['text']!r}")


def compress(client: OpenAI, text: str, budget: int | None):
    """A gist for each context of a text, by a route that OpenAI does not have."""
    body = {"input": text, "keep": KEEP, "certify": True, **({} if budget is None else {"budget": budget})}
    compressed = client.post("/compress", cast_to=httpx.Response, body=body).json()
    for gist in compressed["data"]:
        print(
            f"compressed: {gist['context_tokens']} tokens into {len(gist['token_ids'])}, expected to cost "
            f"{gist['expected_kl']:.3f} ± {gist['expected_kl_se']:.3f} nats per token: {gist['text']!r}"
        )


def main(base_url: str, text: str | None, budget: int | None):
    client = OpenAI(base_url=base_url, api_key=os.environ.get("TRL_GIST_API_KEY", "none"))
    model = client.models.list().data[0].id
    chat(client, model)
    stream(client, model)
    compress(client, TEXT if text is None else text, budget)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_url", default="http://127.0.0.1:8000/v1", help="(default: %(default)s)")
    parser.add_argument(
        "--file", type=text_file, metavar="FILE", dest="text", help="a text to compress (default: one about cholera)"
    )
    parser.add_argument("--budget", type=int, help="most tokens of a gist (default: the pair's)")
    main(**vars(parser.parse_args()))
