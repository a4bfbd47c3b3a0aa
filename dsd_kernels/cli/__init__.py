"""The command line: `dsd-kernels train | study | bench | inspect | doctor`."""

import sys

INSTALL = "pip install 'dsd-kernels[cli,train]'"


def main() -> None:
    """Run the command line; without its packages, say in one line how to get them."""
    try:
        from dsd_kernels.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        print(f"error: dsd-kernels needs {error.name}, which is not installed: {INSTALL}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted while loading; nothing was written", file=sys.stderr)
        sys.exit(130)
    app(prog_name="dsd-kernels")
