"""One thread a process, so that runs in several processes are equal to the bit; cache folders of the tests' own; no network."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="icpctl-test-cache-")
os.environ["TORCH_HOME"] = os.environ["XDG_CACHE_HOME"]
os.environ |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # nobody listens there
os.environ["no_proxy"] = "localhost,127.0.0.1"
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
