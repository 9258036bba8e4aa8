"""One thread a process, so that runs in several processes are equal to the bit; cache folders of the tests' own; no network.

The disk is not waited for: a process that is killed loses nothing that it has written, and what a machine that loses its
power would lose is beyond tests. Those of what a failing `os.fsync` does put their own in its place.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from commands import leave_disk

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="icpctl-test-cache-")
os.environ["TORCH_HOME"] = os.environ["XDG_CACHE_HOME"]
os.environ |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # nobody listens there
os.environ["no_proxy"] = "localhost,127.0.0.1"
leave_disk()
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
