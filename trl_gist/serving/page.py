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

"""The page at the server's root, one file with what it needs: page.html beside this, in the look of evaluation's pages."""

import base64
import functools
import hashlib
import re
from importlib import resources


@functools.cache
def page() -> tuple[str, int, dict[str, str]]:
    """The page, its status and its headers: the browser runs and loads nothing but what stands in it, by its digest."""
    package = resources.files("trl_gist")
    style = (package / "evaluation/pages/style.css").read_text(encoding="utf-8")
    html = (package / "serving/page.html").read_text(encoding="utf-8").replace("/* pages/style.css */", style)
    digests = {kind: _digest(re.search(f"<{kind}>(.*?)</{kind}>", html, re.DOTALL)[1]) for kind in ("style", "script")}
    policy = (
        "default-src 'none'",
        *(f"{kind}-src 'sha256-{digest}'" for kind, digest in digests.items()),
        "connect-src 'self'",
        *("img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return html, 200, headers


def _digest(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
