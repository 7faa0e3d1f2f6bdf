"""Starts processes of cot_unsloth without the seconds its imports take, by forking a process that has done them.

`python fork_server.py [MODULE]...` imports these modules (Unsloth must come first), then the libraries, and computes
nothing. Requests are lines of JSON on stdin, answers lines of JSON on stdout. Each child has its own working directory,
environment, output and exit code, and can be killed like any process. Tests of the import order, or of environment
variables that a library reads when it is imported, need a new process instead (`helpers.started`).
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch", "torch._dynamo", "transformers", "transformers.models.llama.modeling_llama", "transformers.trainer",
    "trl.trainer.sft_trainer", "peft", "datasets", "accelerate", "safetensors.torch", "gguf", "xllamacpp", "jinja2",
    "pydantic", "click", "yaml", "rich.console", "httpx", "matplotlib.pyplot", "math_verify", "psutil", "filelock",
)  # fmt: skip


BEFORE = dict(os.environ)


def child(request: dict[str, Any]) -> None:
    """Run the requested module or script in this forked process; does not return."""
    os.chdir(request["cwd"])
    imported = {name: value for name, value in os.environ.items() if name not in BEFORE}  # set by a library
    os.environ.clear()
    os.environ.update(imported | request["env"])
    for descriptor, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(path, flags), descriptor)
    what = request["what"]
    is_script = what.endswith(".py")
    sys.path[0:0] = [str(Path(what).parent) if is_script else request["cwd"]]
    sys.argv = [what, *request["args"]]
    code: object = 0
    try:
        if is_script:
            runpy.run_path(what, run_name="__main__")
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print during import must not be read as an answer
    del sys.path[0]  # tests/, whose models.py would hide other modules of that name
    for library in (*sys.argv[1:], *LIBRARIES):
        importlib.import_module(library)
    atexit._clear()  # children must not run the exit handlers that libraries registered in this process
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], 0 if request["block"] else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                child(request)
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # exit handlers have been removed, without which torch reports errors on a normal exit


if __name__ == "__main__":
    main()
