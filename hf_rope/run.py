"""`python -m hf_rope.run SCRIPT ARGUMENTS...`: runs an unchanged script with hf_rope registered.

Python imports this package before this file, and that registers `model_type="hf_rope"` with the Auto classes. The
script then runs as with `python SCRIPT ARGUMENTS...`: as `__main__`, with its own arguments and its folder first on
the path. `accelerate launch -m hf_rope.run SCRIPT ARGUMENTS...` does the same in each of its processes, and so do the
workers that multiprocessing spawns.
"""

import os
import sys
from types import ModuleType
from typing import Any

SCRIPT = "HF_ROPE_SCRIPT"
"""The environment variable that tells workers the script's path."""


def run(arguments: list[str]) -> None:
    """Runs the script that `arguments` begin with; what it raises, its exit code included, passes through.

    Raises:
        SystemExit: no script is named, or there is no such file; with one sentence for stderr, and exit code 1.
    """
    if not arguments:
        sys.exit("hf_rope.run needs a script to run: python -m hf_rope.run SCRIPT ARGUMENTS...")
    script = os.path.abspath(arguments[0])
    if not os.path.isfile(script):
        sys.exit(f"There is no file {arguments[0]!r} to run: python -m hf_rope.run SCRIPT ARGUMENTS...")
    sys.argv[:] = arguments
    if not getattr(sys.flags, "safe_path", False):  # otherwise Python has put no folder in front that could be replaced
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    main = ModuleType("__main__")
    # Workers that are spawned begin with the module that this names, and find the script by the environment.
    main.__spec__ = __spec__
    os.environ[SCRIPT] = script
    # runpy would leave multiprocessing's second name for it at this file, where workers' objects are then looked up.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    execute(script, vars(main))


def execute(script: str, namespace: dict[str, Any]) -> None:
    """Runs a file's code in a module's namespace, whose `__file__` it becomes."""
    namespace["__file__"] = script
    with open(script, "rb") as file:
        code = compile(file.read(), script, "exec", dont_inherit=True)
    exec(code, namespace)


if __name__ == "__main__":
    run(sys.argv[1:])
elif __name__ == "__mp_main__":
    execute(os.environ[SCRIPT], globals())
