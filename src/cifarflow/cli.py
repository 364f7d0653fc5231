"""The command `cifarflow`; each part imports what it needs when it runs, none waits for torch or mlflow."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifarflow import errors
from cifarflow.workspace import Workspace

if TYPE_CHECKING:
    from cifarflow.inference.predictor import Prediction, Predictor

FAILED = errors.CifarflowError.exit_code
MODEL_MEMORY_BYTES = 1280 << 20  # vgg16, the largest network here, takes 600 MiB
PICTURE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".avif",
    ".jp2",
}

PREDICT_EXAMPLES = """\
examples:
  uv run cifarflow predict cat.jpg
  uv run cifarflow predict holiday/ --top 1        every picture in the folder and below it
  uv run cifarflow predict *.png --json            one JSON object a line
"""
RECIPE_EXAMPLES = """\
examples:
  uv run cifarflow recipe                          list the recipes
  uv run cifarflow recipe cifar94                  make params.yaml that recipe
"""
CHECK_EXAMPLES = """\
examples:
  uv run cifarflow check                           of params.yaml, or own pictures, that come from somebody else
"""
SYNC_EXAMPLES = """\
examples:
  uv run cifarflow sync                            after a training without network, or after `dvc checkout`
"""
MEND_EXAMPLES = """\
examples:
  uv run cifarflow mend                            after a kill, when `dvc repro` stops with an error of its own
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 when something that the user can mend went wrong."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter that the terminal lacks must not stop the answer
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        code = errors.run(lambda: options.run(options))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cifarflow",
        description="Use what the pipeline made; `uv run dvc repro` runs the pipeline itself.",
        epilog="`cifarflow COMMAND --help` shows examples.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str, examples: str
    ) -> argparse.ArgumentParser:
        layout = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(
            name, help=text, description=text, epilog=examples, formatter_class=layout
        )
        command.set_defaults(run=run)
        return command

    predict = add("predict", _predict, "classify pictures with the exported model", PREDICT_EXAMPLES)
    predict.add_argument(
        "pictures", nargs="+", type=Path, metavar="PICTURE", help="a picture, or a folder of pictures"
    )
    predict.add_argument("--model", type=Path, help="an exported model (default: models/export/model.onnx)")
    predict.add_argument("--top", type=_positive, default=3, metavar="K", help="classes to show (default: 3)")
    predict.add_argument(
        "--json", action="store_true", help="print one JSON object a picture, each on its line"
    )

    recipe = add("recipe", _recipe, "list the recipes, or make params.yaml one of them", RECIPE_EXAMPLES)
    recipe.add_argument("name", nargs="?", metavar="NAME", help="a recipe; the list of them when left out")

    add("check", _check, "look at params.yaml and own pictures before DVC does", CHECK_EXAMPLES)
    add("sync", _sync, "send the trackers what they could not take while training", SYNC_EXAMPLES)
    add("mend", _mend, "make good what a kill left broken in DVC's own files", MEND_EXAMPLES)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _workspace() -> Workspace:
    """The checkout that holds the current folder, so that commands work in every folder of it."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file()), here)
    return Workspace.at(root, os.environ)


# predict ----------------------------------------------------------------------------------------------------


def _predict(options: argparse.Namespace) -> int:
    from cifarflow.inference.predictor import Predictor

    if options.model is not None and not options.model.is_file():
        raise errors.CheckpointError(
            f"--model {errors.printable(str(options.model))}: there is no such file. Give the path of an .onnx file."
        )
    predictor = Predictor(options.model or _workspace().onnx_model, memory_bytes=MODEL_MEMORY_BYTES)
    paths = [path for argument in options.pictures for path in _pictures_in(argument)]
    layout = _as_json if options.json else _table_row(paths, predictor.classes)
    code = 0
    for path in paths:
        try:
            print(layout(path, _classify(predictor, path, top=options.top)))
        except errors.DataIntegrityError as error:
            sys.stdout.flush()
            print(errors.printable(f"error: {error}"), file=sys.stderr)
            code = FAILED
    return code


def _pictures_in(path: Path) -> Iterator[Path]:
    """The path itself; of a folder the pictures in and below it, sorted, without hidden ones."""
    if not _is_folder(path):
        yield path
        return
    inside = sorted(inner.relative_to(path) for inner in path.rglob("*") if inner.is_file())
    pictures = [inner for inner in inside if inner.suffix.lower() in PICTURE_SUFFIXES and not _hidden(inner)]
    # A folder without any stays in the list, so that it is named in its turn.
    yield from (path / inner for inner in pictures) if pictures else [path]


def _is_folder(path: Path) -> bool:
    """False also where nobody may look or no path can be: reading it as a picture gives the reason."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _classify(predictor: "Predictor", path: Path, *, top: int) -> "list[Prediction]":
    if _is_folder(path):
        raise errors.DataIntegrityError(f"{path} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    return predictor.classify(path, top=top)


def _table_row(paths: Sequence[Path], classes: Sequence[str]) -> "Callable[[Path, list[Prediction]], str]":
    """One line a picture, its classes in columns: it can be printed as soon as it is known."""
    path_width = max(len(errors.printable(str(path))) for path in paths)
    label_width = max(len(errors.printable(name)) for name in classes)

    def row(path: Path, answers: "list[Prediction]") -> str:
        cells = [
            f"{errors.printable(answer.label):<{label_width}} {answer.probability:>6.1%}"
            for answer in answers
        ]
        return "   ".join([f"{errors.printable(str(path)):<{path_width}}", *cells])

    return row


def _as_json(path: Path, answers: "list[Prediction]") -> str:
    predictions = [{"label": answer.label, "probability": answer.probability} for answer in answers]
    return json.dumps({"picture": str(path), "predictions": predictions})


# recipe, check, sync, mend -----------------------------------------------------------------------------------


def _recipe(options: argparse.Namespace) -> int:
    from cifarflow import recipes

    workspace = _workspace()
    if options.name is None:
        known = recipes.describe_recipes(workspace)
        width = max(map(len, known))
        for name, text in known.items():
            print(f"{name:<{width}}  {text}".rstrip())
        return 0
    done = recipes.put_in_place(options.name.removesuffix(".yaml"), workspace)
    if done.changes == ():
        print(f"params.yaml has the values of recipe {options.name} already; it was left as it is.")
        return 0
    for line in done.changes or ():
        print(line)
    if done.saved is not None:
        unread = "" if done.changes else " It could not be read, so the changes are not listed."
        print(f"The old params.yaml is kept as {os.path.relpath(done.saved, workspace.root)}.{unread}")
    print(f"params.yaml is recipe {options.name} now. Next: `uv run dvc repro`.")
    return 0


def _check(options: argparse.Namespace) -> int:
    """DVC reads params.yaml and every file of data/images before a stage can: without limits, and in other words."""
    from cifarflow.config import load_config

    workspace = _workspace()
    config = load_config(workspace.params)
    print("params.yaml is sound.")
    if config.data.source == "folder":
        from cifarflow.data.preflight import check_pictures
        from cifarflow.data.progress import show_progress

        pictures = check_pictures(workspace.images, progress=show_progress)
        print(
            f"{len(pictures):,} pictures of {len({picture.label for picture in pictures})} classes are sound."
        )
    return 0


def _sync(options: argparse.Namespace) -> int:
    from cifarflow.config import load_config
    from cifarflow.restore import restore_records
    from cifarflow.tracking.sync import sync

    workspace = _workspace()
    config = load_config(workspace.params)
    restored = restore_records(config, workspace)
    for stage in restored.stages:
        print(f"The results of `{stage}` came from DVC's cache: recorded as restored.")
    report = sync(workspace, config.tracking, current=restored.state)
    print(f"Runs completed: {report.runs_completed}. Events sent: {report.events_sent}.")
    for failure in report.failures:
        print(f"error: {failure}", file=sys.stderr)
    return FAILED if report.failures else 0


def _mend(options: argparse.Namespace) -> int:
    from cifarflow.mend import mend

    done = mend(_workspace().root)
    for line in done or ["DVC's files are whole: nothing to mend."]:
        print(line)
    if done:
        print("Next: `uv run dvc repro`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
