"""Puts transformers' own tests where the files of this folder import them from; `fetch.py` has unpacked them there.

None of these files is named `test_...`: only `make peer-tests` names them to pytest.
"""

import sys
from pathlib import Path

PEER = Path(__file__).resolve().parents[2] / ".peer"
MARKS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")


def pytest_configure(config):
    sys.path.append(str(PEER))
    for name in MARKS:
        config.addinivalue_line("markers", f"{name}: of transformers' tests")
