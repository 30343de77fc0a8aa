"""`python -m hf_rope.run SCRIPT ARGUMENTS...`: runs an unchanged script with hf_rope registered.

Python imports this package before this file, and that registers `model_type="hf_rope"` with the Auto classes. The
script then runs as with `python SCRIPT ARGUMENTS...`: as `__main__`, with its own arguments and its folder first on
the path. `accelerate launch -m hf_rope.run SCRIPT ARGUMENTS...` does the same in each of its processes, and so do the
workers that multiprocessing spawns.
"""

import os
import runpy
import sys
from pathlib import Path
from types import ModuleType

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
    # Not runpy.run_path: its module has no __spec__, so that spawned workers would begin with the script, without
    # hf_rope, and not with this file; and it stays unknown as "__mp_main__", where workers' objects are looked up.
    main = ModuleType("__main__")
    main.__file__, main.__spec__ = script, __spec__
    os.environ[SCRIPT] = script
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    exec(compile(Path(script).read_bytes(), script, "exec", dont_inherit=True), vars(main))


if __name__ == "__main__":
    run(sys.argv[1:])
elif __name__ == "__mp_main__":  # a spawned worker, which multiprocessing begins with this file
    globals().update(runpy.run_path(os.environ[SCRIPT], run_name="__mp_main__"))
