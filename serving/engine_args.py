"""Writes `engine_args.json`: the names that the pinned vLLM takes in `engine:`, so that the catalog need not import vLLM.

Run as `python -m serving.engine_args` after changing the pin; a test compares the file with the installed vLLM.
"""

import dataclasses
import json
from pathlib import Path

FILE = Path(__file__).with_name("engine_args.json")


def installed() -> dict[str, object]:
    """The version and argument names of the vLLM in this environment. Takes seconds: it imports vLLM."""
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    fields = [*dataclasses.fields(AsyncEngineArgs), *dataclasses.fields(FrontendArgs)]
    return {"vllm": vllm.__version__, "names": sorted({field.name for field in fields})}


if __name__ == "__main__":
    FILE.write_text(json.dumps(installed(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")
