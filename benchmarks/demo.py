"""A short demonstration: draw a gallery, index it, search it, and ask questions about a deleted image.

    python -m benchmarks.demo

runs the installed `fwd2bot` command and shows each command line before its output.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.command import run_command
from benchmarks.scenes import (
    Scene,
    describe_fully,
    find_uniquely_named,
    make_scene,
    name_scene,
    unique_caption,
    write_scenes,
)
from benchmarks.speed import find_command
from encoders.base import Fwd2BotError

_GALLERY = Path("demo-gallery")
_SCENES = 300
_SEED = 2026
_SEARCHES = 3
_SHOWN = 5


def run_demo() -> None:
    """Run every step and explain in plain words what it did."""
    scenes = [make_scene(_SEED, number) for number in range(_SCENES)]
    tell(f"Drawing {_SCENES} scenes into {_GALLERY}/.")
    write_scenes(_GALLERY, _SCENES, _SEED)
    tell("Indexing them. The embedded model reads each picture once and keeps its summary tokens.")
    call_command("index", str(_GALLERY))
    chosen = find_uniquely_named(scenes, [describe_fully(scene) for scene in scenes])[:_SEARCHES]
    hits = [search_scene(scenes[number], number) for number in chosen]
    question_deleted_scene(scenes, hits[0][0])
    found = sum(hits[i][0] == name_scene(scenes[chosen[i]], chosen[i], "png") for i in range(_SEARCHES))
    tell(
        f"Done. {_SCENES} pictures were read once. Of {_SEARCHES} sentences, {found} had the picture meant "
        "as the first hit. One hit was deleted, then described and questioned from its stored tokens."
    )


def search_scene(scene: Scene, number: int) -> list[str]:
    """Search for a scene by a caption that is true of no other; returns the names of the hits, best first."""
    tell("Searching by a sentence that is true of one picture only.")
    said = call_command("search", unique_caption(scene), "--index", str(_GALLERY), "-k", str(_SHOWN))
    names = [Path(line.split("\t")[1]).name for line in said.splitlines()]
    meant = name_scene(scene, number, "png")
    place = f"place {names.index(meant) + 1}" if meant in names else f"not among the first {_SHOWN}"
    tell(f"The picture meant is {meant}: {place}.")
    return names


def question_deleted_scene(scenes: list[Scene], name: str) -> None:
    """Delete the named picture, then caption it and ask a question about it."""
    scene = scenes[int(name.partition("-")[0])]
    (_GALLERY / name).unlink()
    tell(f"{_GALLERY / name} is now deleted. What follows comes from its stored summary tokens alone.")
    call_command("caption", name, "--index", str(_GALLERY))
    call_command("ask", name, f"What colour is the {scene.things[0].shape}?", "--index", str(_GALLERY))
    tell(f"The truth: {unique_caption(scene)}.")


def tell(words: str) -> None:
    """Print an explanation, set apart from the commands' output."""
    print(f"\n# {words}", flush=True)


def call_command(*arguments: str) -> str:
    """Show and run a fwd2bot command line; returns its stdout."""
    print(f"$ {shlex.join(['fwd2bot', *arguments])}", flush=True)
    done = subprocess.run([str(find_command()), *arguments], stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise Fwd2BotError(f"The demonstration stopped: fwd2bot {arguments[0]} failed, for the reason above.")
    return done.stdout


def main() -> int:
    """Draw a gallery, index it, search it, and ask questions about a deleted image."""
    argparse.ArgumentParser(prog="python -m benchmarks.demo", description=main.__doc__).parse_args()
    return run_command(run_demo)


if __name__ == "__main__":
    sys.exit(main())
