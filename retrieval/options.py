"""The arguments and options of the commands, with their help texts."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def read_place(typed: str) -> Path:
    """Parse an index path; refuses an empty one, as from an unset variable, which Path would take for "."."""
    if not typed:
        from encoders.base import IndexNotFound  # not at the top: `--help` answers at once

        raise IndexNotFound("the path of the index is empty: name a folder")
    return Path(typed)


def _require_pixels(megapixels: float) -> float:
    """Return the limit; BadParameter unless it lets through an image of some size."""
    if not megapixels > 0:  # written so that nan is refused too
        raise typer.BadParameter(f"{megapixels:g} megapixels are none: give more than 0")
    return megapixels


IndexOption = Annotated[
    Path | None,
    typer.Option(
        "--index",
        metavar="PATH",
        parser=read_place,
        help="The index; else the nearest .fwd2bot from here upwards.",
    ),
]
IndexPlaceOption = Annotated[
    Path | None,
    typer.Option(
        "--index", metavar="PATH", parser=read_place, help="Where the index goes; else DIR/.fwd2bot."
    ),
]
MODEL_HELP = (
    "tiny, a Fwd2Bot checkpoint (folder or hub name), lvlm:NAME (an LVLM of ten families, untrained), "
    "openclip:ARCH/PRETRAINED, or st:NAME (sentence-transformers); "
    "else the one the index was made with, tiny for a new one."
)
FolderArgument = Annotated[
    str, typer.Argument(metavar="DIR", help="The folder of images, or a URL such as s3://bucket/photos.")
]
ModelOption = Annotated[str | None, typer.Option(metavar="NAME", help=MODEL_HELP)]
TokensOption = Annotated[
    Literal["int8", "float16", "none"] | None,
    typer.Option(help="How summary tokens are kept, for caption and ask; int8 for a new index or --rebuild."),
]
DeviceOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="Where the model computes: auto, cpu, cuda (all GPUs), or cuda:N."),
]
BatchOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Images the model reads at once; else what fits.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Decoding threads; else one per CPU.")
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave out names or paths like this; repeatable, not remembered."),
]
FollowOption = Annotated[
    bool, typer.Option("--follow-links", help="Follow links that lead out of the folder, too.")
]
MegapixelsOption = Annotated[
    float,
    typer.Option(
        metavar="N",
        callback=_require_pixels,
        help="Leave out larger images, judged by their header; those in the index stay.",
    ),
]
RebuildOption = Annotated[
    bool,
    typer.Option(
        "--rebuild",
        help="Embed all anew. The first images that are written replace the old index; "
        "--index PATH elsewhere keeps it.",
    ),
]
MovedOption = Annotated[
    bool,
    typer.Option(
        "--moved",
        help="Go on with the index at --index: the images it was made of are in DIR now.",
    ),
]
WatchOption = Annotated[
    bool, typer.Option("--watch", help="Keep the index current as files come and go, until Ctrl-C.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="List what a run would do; change nothing.")]
CountOption = Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many images.")]
PathsOption = Annotated[bool, typer.Option("--paths", help="Print paths without scores.")]
NullOption = Annotated[bool, typer.Option("-0", help="Print raw paths, each followed by a NUL.")]
ScoreOption = Annotated[float, typer.Option(metavar="X", help="Leave out images that score less.")]
UnderOption = Annotated[
    str | None,
    typer.Option("--under", metavar="DIR", help="Only images below this folder, or in this archive."),
]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="DATE", help="Only images taken then or later: 2019-06-15.")
]
UntilOption = Annotated[
    str | None,
    typer.Option("--until", metavar="DATE", help="Only images taken then or before; also 2019-06, 2019."),
]
RerankOption = Annotated[
    int,
    typer.Option(
        "--rerank", min=0, metavar="N", help="Let the model order the N best anew, from their stored tokens."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
IMAGE_HELP = "Its path, the end of its path, or its id"
ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help=f"{IMAGE_HELP}.")]
AnyImageArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help=f"{IMAGE_HELP}; or any other image file.")
]
