"""python -m gelu_ext: prints build_info(), tests every operation on every device, and says what to do if that fails."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from . import _info, _native, _selftest


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gelu_ext",
        description="Prints what gelu_ext was built for and runs on, and tests every operation with every activation, "
        "forward and backward, against float64 on every device: one line for each, and one for each problem.",
        epilog="The exit status is 0 if there is a native module and every case passes, else 1.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    as_json = parser.parse_args(arguments).json
    info, advice = _info.build_info(), _info.advice()
    if not as_json:
        print(info, flush=True)
    results = _selftest.run() if _native.module else []
    passed = bool(results) and not any(result.failed for result in results)
    advice += _of_the_test(results, advice)
    if as_json:
        tested = [result.as_dict() for result in results]
        print(json.dumps({"passed": passed, "build_info": info, "self_test": tested, "advice": advice}))
    else:
        print(*(f"self-test of {result}" for result in results), *(f"problem: {line}" for line in advice), sep="\n")
    return 0 if passed else 1


def _of_the_test(results: Sequence[_selftest.Result], known: Sequence[str]) -> list[str]:
    """A sentence for each problem that is not known already."""
    return [
        f"On {result.device} {problem.what} ({problem.why}): {_native.how_to_build()}, and report it if it stays."
        for result in results
        for problem in result.problems
        if not any(problem.why in sentence for sentence in known)
    ]


if __name__ == "__main__":
    sys.exit(main())
