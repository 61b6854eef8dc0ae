"""The `fwd2bot` command: its subcommands and exit codes.

finding.py has the commands that find images, upkeep.py those that write an index.
Exit codes: 0 success, 1 failure with a one-line message, 2 wrong usage, 130 Ctrl-C (0 from `index --watch`
after its first run, which is meant to end so). Nothing heavy is imported at the top, so that `--help` answers
at once.
"""

import errno
import os
import sys
from typing import Annotated

import typer

from encoders.shortage import is_gpu_shortage, is_shortage

from . import finding, upkeep
from .options import ImageArgument, IndexOption, JsonOption
from .terminal import complain, keep_talking, print_answer, print_facts, print_note, print_results

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Find images by a sentence, and ask about them, from what a model read of them once.",
    epilog="\b\nStart with:\n  fwd2bot index ~/Photos\n  cd ~/Photos && fwd2bot search two dogs on a beach",
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("fwd2bot")
        except PackageNotFoundError:  # a source tree that is not installed
            number = "unknown"
        print_results([f"fwd2bot {number}\n"])
        raise typer.Exit


@app.callback()
def begin(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Before any command, refuse a locale in which file names are not UTF-8."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        complain(f"names of files are UTF-8, and this locale reads them as {encoding}: set PYTHONUTF8=1")
        raise typer.Exit(1)


app.command(epilog=upkeep.INDEX_EPILOG)(upkeep.index)
app.command(epilog=finding.SEARCH_EPILOG)(finding.search)
app.command(epilog=finding.SIMILAR_EPILOG)(finding.similar)


ASK_EPILOG = """\b
The answer comes from the tokens stored in the index: the image itself may be gone. (The next
`fwd2bot index` of its folder drops it.)

\b
Examples:
  fwd2bot caption holiday/img_0042.jpg
  fwd2bot ask img_0042.jpg "How many people are there?"
"""


@app.command(epilog=ASK_EPILOG)
def caption(image: ImageArgument, index_dir: IndexOption = None) -> None:
    """Describe an image from its stored tokens."""
    from retrieval import ask
    from retrieval.locate import find_index

    print_answer(ask.caption(find_index(index_dir), image))


@app.command(epilog=ASK_EPILOG)
def ask(
    image: ImageArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="One question, in quotes.")],
    index_dir: IndexOption = None,
) -> None:
    """Ask an image something, from its stored tokens."""
    from retrieval import ask
    from retrieval.locate import find_index

    print_answer(ask.ask(find_index(index_dir), image, question))


@app.command(epilog="\b\nExamples:\n  fwd2bot info\n  fwd2bot info --index ~/archive-index --json")
def info(index_dir: IndexOption = None, as_json: JsonOption = False) -> None:
    """Say what the index is made of."""
    from indexer.audit import describe_index
    from retrieval.locate import find_index

    facts = describe_index(find_index(index_dir))
    print_facts(facts._asdict(), as_json)
    if facts.faiss == "behind":
        print_note("a search is slow until `fwd2bot index` has run to its end")


app.command(epilog=upkeep.VERIFY_EPILOG)(upkeep.verify)
app.command(epilog=upkeep.COMPACT_EPILOG)(upkeep.compact)
app.command(epilog=upkeep.MERGE_EPILOG)(upkeep.merge)


def main() -> None:
    """Run the command line; every expected failure is one line on stderr and exit code 1."""
    keep_talking()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its messages would drown the command's own
    try:
        app(prog_name="fwd2bot")
    except Exception as error:
        sentence = _explain(error)
        if not sentence:
            raise
        complain(sentence)
    sys.exit(1)


def _explain(error: Exception) -> str:
    """The sentence for an expected failure, "" for any other."""
    if is_gpu_shortage(error):
        return "the GPU's memory is full: free it, or run without it (CUDA_VISIBLE_DEVICES= fwd2bot ...)"
    if is_shortage(error):
        return (
            "there is too little memory, or too few threads: end other programs, or raise the limits "
            "(`ulimit -v`, `ulimit -u`), and run it again; `index` needs less with --workers 1 --batch-size 1"
        )
    if isinstance(error, OSError):
        return _explain_system(error)
    from encoders.base import Fwd2BotError  # not sooner: it imports NumPy, for which memory may be too short

    return str(error) if isinstance(error, Fwd2BotError) else ""


def _explain_system(error: OSError) -> str:
    """The sentence for what the system refused, such as a full disk or a folder that cannot be written."""
    place = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk{place}: make room and run it again, what is done is kept"
    if error.errno == errno.EFBIG:
        return f"over the limit on file size{place}: raise it (`ulimit -f`) and run it again"
    if error.errno == errno.EMFILE:
        return f"too many open files{place}: raise the limit (`ulimit -n`) and run it again"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{error.strerror}{place}: become its owner, or have access given to you, and run it again"
    if error.errno == errno.ENOENT and not error.filename:  # only getcwd names no file
        return "the current folder was removed: go to another one, or give whole paths"
    return f"{error.strerror or error}{place}"


if __name__ == "__main__":
    main()
