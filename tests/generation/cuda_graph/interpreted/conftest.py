"""These need the interpreter, or a GPU; `test_interpreted.py` starts a process for them."""

import os

import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore = ["test_fused_engine.py"]
