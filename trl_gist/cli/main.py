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
The command line: `trl-gist train | evaluate | compress | continue | serve | report`.

Nothing heavy is imported before a command runs, so that help and usage errors come at once. What a user got wrong (a
path, a file, a setting) ends in one line on stderr and exit code 2; a run that fails after training began keeps its
traceback.
"""

import argparse
import os
import sys

from .flags import add_continue_flags, add_serve_flags, positive


_EPILOG = """\
examples:
  trl-gist train --config configs/smollm2-135m_fineweb-edu.yaml --output_dir my-pair
  trl-gist train --accelerate_config zero2 --config configs/qwen3-4b_fineweb-edu.yaml --output_dir my-pair
  trl-gist evaluate my-pair --dataset held_out.jsonl --last_k 64 128 256
  trl-gist evaluate my-pair --dataset held_out.jsonl --windows 20 --pairs recursive=my-recursive-pair
  trl-gist compress my-pair article.txt --json
  cat article.txt | trl-gist continue my-pair --tokens 100
  trl-gist serve my-pair --port 8000
  trl-gist report my-pair
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, or raises `SystemExit` with it."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["train"]:
        return _train(argv[1:])  # its flags are those of three dataclasses, which import torch
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        _COMMANDS[args.command](args)
        sys.stdout.flush()
    except BrokenPipeError:
        # As in `… | head`: nobody reads on. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        _exit(f"trl-gist {args.command}", error)
    except KeyboardInterrupt:
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trl-gist",
        description="Learned context compaction in plain tokens: a summarizer writes a gist of a context, a generator "
        "continues from the gist.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("train", help="co-train a pair on documents (`trl-gist train --help` lists every setting)")

    evaluate = commands.add_parser(
        "evaluate", help="measure a pair against its controls on held-out documents", allow_abbrev=False
    )
    _add_pair(evaluate)
    evaluate.add_argument(
        "--dataset",
        required=True,
        nargs="+",
        metavar="NAME_OR_PATH",
        help="a dataset on the Hub, or local text, JSON lines or parquet files or folders of them",
    )
    evaluate.add_argument("--dataset_config", metavar="NAME", help="configuration of the dataset on the Hub")
    evaluate.add_argument(
        "--split",
        default="test",
        help="split of the dataset on the Hub, or of a folder laid out as one (default: %(default)s)",
    )
    evaluate.add_argument("--streaming", action="store_true", help="read documents as they are needed")
    evaluate.add_argument(
        "--text_column", default="text", metavar="NAME", help="column that holds the text (default: %(default)s)"
    )
    evaluate.add_argument(
        "--max_documents",
        type=positive,
        metavar="N",
        help="read the first N documents; after training with `eval_documents: N`, those that were held out",
    )
    evaluate.add_argument(
        "--max_windows_per_document", type=positive, metavar="N", help="cut at most N windows from a document"
    )
    evaluate.add_argument(
        "--max_windows",
        type=positive,
        metavar="N",
        help="measure N windows, spread evenly over the documents (of a stream: the first N)",
    )
    _add_batch_size(evaluate, default=32)
    evaluate.add_argument("--teacher", metavar="NAME_OR_PATH", help="the frozen teacher (default: the pair's own)")
    evaluate.add_argument(
        "--last_k",
        type=positive,
        nargs="+",
        metavar="K",
        help="numbers of last tokens to measure with, as 64 128 256 (default: as trained)",
    )
    evaluate.add_argument(
        "--budgets",
        type=positive,
        nargs="+",
        metavar="N",
        help="most tokens of a gist to measure with (default: as trained)",
    )
    evaluate.add_argument(
        "--generator_only", metavar="PAIR", help="a pair trained as long with `--generator_only`, as a control"
    )
    evaluate.add_argument(
        "--readers",
        nargs="*",
        metavar="NAME_OR_PATH",
        help="also have the gists read as plain text by the teacher, and by these unrelated language models",
    )
    evaluate.add_argument(
        "--compressors",
        nargs="*",
        metavar="NAME",
        help="also compare with other compressors at the same number of tokens: with these, as tail, or with all",
    )
    evaluate.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="N",
        help="with --compressors: also N gists that S samples (default: 0)",
    )
    evaluate.add_argument("--token_classifier", metavar="PATH", help="a checkpoint of LLMLingua-2's, as one more")
    evaluate.add_argument(
        "--gists",
        nargs="+",
        metavar="NAME=FILE",
        help="gists that other systems wrote of contexts.jsonl in the output folder, as JSON lines with `context_hash` "
        "and `gist`",
    )
    evaluate.add_argument(
        "--own_generators",
        nargs="+",
        metavar="NAME=PAIR",
        help="for a compressor, a pair trained as long with `--generator_only --compressor NAME`",
    )
    evaluate.add_argument(
        "--windows",
        type=positive,
        metavar="N",
        help="instead, walk along documents for N windows as a session does, and measure what is kept with distance",
    )
    evaluate.add_argument(
        "--pairs",
        nargs="+",
        metavar="NAME=PAIR",
        help="with --windows: other pairs of the same window to walk beside it, as one trained on several windows",
    )
    evaluate.add_argument(
        "--join_documents",
        action="store_true",
        help="with --windows: join documents, in their order, into streams of N windows, for lengths beyond every document",
    )
    evaluate.add_argument(
        "--output_dir",
        metavar="DIR",
        help="where rows, measures, plots and the page go; an evaluation that was cut off goes on from there (default: "
        "PAIR/evaluation, with --windows PAIR/distance)",
    )
    evaluate.add_argument("--overwrite", action="store_true", help="remove an evaluation with other settings there")

    compress = commands.add_parser(
        "compress", help="write a gist of each context_length tokens of a text", allow_abbrev=False
    )
    _add_pair(compress)
    _add_file(compress)
    compress.add_argument(
        "--budget", type=positive, metavar="N", help="the most tokens a gist may have (default: as trained)"
    )
    compress.add_argument(
        "--keep",
        nargs="+",
        metavar="WHAT",
        help="what a gist must have of its context, within its budget: numbers, names, dates, regex:PATTERN or a literal "
        "string",
    )
    compress.add_argument(
        "--certify",
        action="store_true",
        help="with --json: also measure what each gist is expected to cost against its whole context",
    )
    compress.add_argument(
        "--search",
        action="store_true",
        help="exchange pieces of each gist for others of its context, where that is expected to cost less: some 300 "
        "readings by the generator a context",
    )
    _add_batch_size(compress)
    compress.add_argument(
        "--json", action="store_true", help="one JSON object per gist: text, ids, log-prob and rates"
    )

    continue_ = commands.add_parser(
        "continue", help="continue a text of any length, compacting whenever the window is full", allow_abbrev=False
    )
    _add_pair(continue_)
    _add_file(continue_, "instead of a session: a gist of the text's last context_length tokens, and this beside it")
    add_continue_flags(continue_)

    serve = commands.add_parser(
        "serve", help="answer chats and completions over HTTP, as OpenAI's API does", allow_abbrev=False
    )
    _add_pair(serve)
    add_serve_flags(serve)

    report = commands.add_parser(
        "report", help="write one HTML page of a run, finished, killed or still going on", allow_abbrev=False
    )
    report.add_argument("run", metavar="RUN_DIR", help="the `output_dir` of a run")
    report.add_argument("--output", metavar="FILE.html", help="where the page goes (default: RUN_DIR/report.html)")
    report.add_argument("--overwrite", action="store_true", help="overwrite a file that is not an earlier report")
    return parser


def _add_pair(parser):
    parser.add_argument("pair", metavar="PAIR", help="what training saved: a folder, or a repository on the Hub")
    parser.add_argument("--device", help="as 'cpu' or 'cuda:1' (default: the machine's accelerator)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: as stored)"
    )
    parser.add_argument("--revision", help="of the repository on the Hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="let checkpoints run their own code")


def _add_batch_size(parser, default=8):
    parser.add_argument(
        "--batch_size", type=positive, default=default, metavar="N", help="rows in one forward (default: %(default)s)"
    )


def _add_file(parser, last_k_help="what the generator reads beside the gist, as a question (default: the text's end)"):
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="a UTF-8 text file; '-' or nothing reads stdin"
    )
    parser.add_argument("--last_k", metavar="TEXT", help=last_k_help)


def _train(argv):
    import yaml

    from ..scripts.launch import launch, size_of_launch, split_launch_flags
    from ..scripts.memory import print_memory
    from ..scripts.train import make_parser, make_trainer, train

    prog = "trl-gist train"
    if argv[-1:] == ["--config"]:
        _exit(prog, "--config needs a file.")  # `TrlParser` (TRL 1.16) would raise IndexError
    try:
        flags, rest = split_launch_flags(argv)
        if flags.accelerate_config is not None and any(part.startswith("--dry_run") for part in rest):
            rest = [*rest, *size_of_launch(flags)]
        elif flags.accelerate_config is not None:
            launch(flags, rest)
            return 0
        arguments = make_parser(prog).parse_args_and_config(rest)
        if arguments[0].dry_run:
            print_memory(*arguments)
            return 0
        trainer = make_trainer(*arguments)
    except (ValueError, OSError, yaml.YAMLError) as error:
        _exit(prog, error)
    try:
        train(trainer)
    except (ValueError, OSError) as error:
        if trainer.state.max_steps > 0:  # training had begun
            raise
        _exit(prog, error)
    return 0


def _evaluate(args):
    _check_matplotlib()
    if args.windows is not None:
        from ..scripts.distance import evaluate_distance

        evaluate_distance(args)
        return
    for name in ("pairs", "join_documents"):
        if getattr(args, name):
            raise ValueError(f"--{name} is for walks along documents: add --windows N.")
    from ..scripts.evaluate import evaluate

    evaluate(args)


def _compress(args):
    import dataclasses
    import json

    text = _read(args.file)
    if args.certify and not args.json:
        raise ValueError("--certify measures what only --json prints: add --json.")
    settings = {"last_k": args.last_k, "keep": args.keep, "certify": args.certify, "search": args.search}
    for gist in _load(args).iter_windows(text, args.budget, batch_size=args.batch_size, **settings):
        print(json.dumps(dataclasses.asdict(gist), ensure_ascii=False) if args.json else gist.text, flush=True)


def _continue(args):
    from ..scripts.continue_ import continue_text

    continue_text(args, _read(args.file), _load)


def _serve(args):
    from importlib.util import find_spec

    missing = [name for name in ("starlette", "pydantic", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ValueError(f'{", ".join(missing)}: missing, which the server needs: pip install "trl_gist[serve]"')
    from ..scripts.serve import serve

    serve(args, _load)


def _report(args):
    _check_matplotlib()
    from ..evaluation.run_report.report import write_report

    print(write_report(args.run, args.output, args.overwrite))


def _check_matplotlib():
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ValueError('matplotlib is missing, which draws the curves: pip install "trl_gist[eval]"')


_COMMANDS = {"evaluate": _evaluate, "compress": _compress, "continue": _continue, "serve": _serve, "report": _report}


def _load(args):
    from ..inference.compactor import GistCompactor

    return GistCompactor.from_pretrained(
        args.pair,
        device=args.device,
        dtype=args.dtype,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )


def _read(file):
    """The text, before any model is loaded."""
    name = "stdin" if file == "-" else file
    if file == "-":
        content = sys.stdin.buffer.read()
    else:
        with open(file, "rb") as stream:
            content = stream.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: byte 0x{content[error.start]:02x} at {error.start}.") from error
    if not text:
        raise ValueError(f"{name} is empty.")
    return text


def _exit(prog, error):
    message = " ".join(str(error).split())  # the Hub's messages run over several lines
    print(f"{prog}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
