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
A page to try a pair in: the gists of a text, each as it is written, and how the text goes on from them.

`trl-gist push --space` sends this file as the `app.py` of a Gradio Space. It runs as well where the pair is:
`PAIR=my-pair python -m trl_gist.scripts.space`.
"""

import os
from collections.abc import Iterator

from trl_gist.inference.compactor import GistCompactor
from trl_gist.inference.keep import FINDERS


PAIR = "user/pair"
MOST_CHARACTERS = 100_000


def make_demo(pair: str):
    """The page, as [`gradio.Blocks`], of the pair in a folder or on the Hub."""
    import gradio as gr

    compactor = GistCompactor.from_pretrained(pair)
    longest = compactor.pair.max_gist_length

    def write_gists(text: str, budget: float, keep: list[str]) -> Iterator[list[list]]:
        """Of each window its gist and both lengths, as soon as it is written."""
        rows = []
        try:
            for gist in compactor.iter_windows(text, budget=int(budget), keep=keep or None, batch_size=1):
                rows.append([gist.text, len(gist.token_ids), gist.context_tokens])
                yield rows
        except ValueError as error:
            raise gr.Error(str(error)) from error

    def continue_text(text: str, question: str, tokens: float) -> str:
        """What the generator writes after a gist of the text's last window."""
        try:
            return compactor.continue_text(text, max_new_tokens=int(tokens), last_k=question or None).text
        except ValueError as error:
            raise gr.Error(str(error)) from error

    with gr.Blocks(title=pair) as demo:
        gr.Markdown(
            f"# {pair}\nGists of at most {longest} tokens for each {compactor.pair.context_length} of a text; "
            "the generator goes on from one of them."
        )
        text = gr.Textbox(label="Text", lines=10, max_length=MOST_CHARACTERS)
        with gr.Row():
            budget = gr.Slider(1, longest, value=longest, step=1, label="Tokens of a gist")
            keep = gr.CheckboxGroup([*FINDERS], label="Must be in it")
        gists = gr.Dataframe(
            headers=["gist", "its tokens", "the text's"], column_widths=["76%", "12%", "12%"], label="Gists", wrap=True
        )
        gr.Button("Write gists", variant="primary").click(
            write_gists, [text, budget, keep], gists, api_name="write_gists"
        )
        question = gr.Textbox(label="Instead of the text's end, the generator reads", placeholder="A question")
        tokens = gr.Slider(1, 256, value=64, step=1, label="Tokens of the continuation")
        continuation = gr.Textbox(label="Continuation, from the last gist", lines=4)
        gr.Button("Continue").click(continue_text, [text, question, tokens], continuation, api_name="continue_text")
    return demo


if __name__ == "__main__":
    make_demo(os.environ.get("PAIR", PAIR)).launch()
