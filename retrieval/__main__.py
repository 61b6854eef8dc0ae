"""The command from its first import on, which takes a tenth of a second: Ctrl-C is quiet from here."""

import sys


def main() -> None:
    """Run the command line; 130 where Ctrl-C came before it could begin."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
