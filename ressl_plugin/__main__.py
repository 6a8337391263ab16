"""`python -m ressl_plugin SCRIPT …`: register, then run one of the host's own scripts unchanged.

For main_knn.py and main_umap.py, which are no Hydra applications and so cannot find the plugin by
themselves; main_pretrain.py and main_linear.py work too.
"""

import runpy
import sys
from pathlib import Path

from ressl_plugin.method.registry import register_for_host_scripts
from ressl_plugin.utils.errors import UserError


def main() -> int:
    """Run sys.argv[1] as __main__ with the rest of the arguments."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m ressl_plugin SCRIPT [arguments of the script]")
        return 0 if len(sys.argv) > 1 else 2
    script = Path(sys.argv[1])
    if not script.is_file():
        print(f"ressl_plugin: error: {script}: no such script", file=sys.stderr)
        return 2
    try:
        register_for_host_scripts()
    except UserError as error:
        print(f"ressl_plugin: error: {error}", file=sys.stderr)
        return 2
    sys.argv = sys.argv[1:]
    sys.path[0] = str(script.parent.resolve())  # as `python SCRIPT` has it
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
