"""python -m gelu_ext: prints build_info(); the exit status says whether there is a native module to run on."""

import sys

from ._info import build_info

if __name__ == "__main__":
    info = build_info()
    print(info)
    sys.exit(0 if info["native_module"] else 1)
