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

"""`trl-gist report`: the page of a run."""

import argparse

from .flags import check_installed


def add_parser(commands):
    parser = commands.add_parser(
        "report", help="write one HTML page of a run, finished, killed or still going on", allow_abbrev=False
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the `output_dir` of a run")
    parser.add_argument("--output", metavar="FILE.html", help="where the page goes (default: RUN_DIR/report.html)")
    parser.add_argument("--overwrite", action="store_true", help="overwrite a file that is not an earlier report")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    check_installed("matplotlib", purpose="which draws the curves", extra="eval")
    from ..evaluation.run_report.report import write_report

    print(write_report(args.run_dir, args.output, args.overwrite))
