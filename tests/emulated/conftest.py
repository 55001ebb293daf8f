from __future__ import annotations

import os

from tests.emulated import device

# registering a device changes the whole process, so these tests are collected only where they are alone
collect_ignore_glob = [] if os.environ.get("EMULATED_GPU") else ["test_*.py"]
if os.environ.get("EMULATED_GPU"):
    device.enable()
