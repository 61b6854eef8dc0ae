"""Entry point of the command: Ctrl-C is quiet even during its imports, which take a tenth of a second."""

import sys


def main() -> None:
    """Run the command line; exits with 130 if Ctrl-C came before it could begin."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
