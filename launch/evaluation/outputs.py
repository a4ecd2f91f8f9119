"""Where a command is to write: looked at before anything is computed for it."""

from pathlib import Path
from tempfile import TemporaryFile

from pipeline.errors import UserError

RESULTS, PAGE, QUERIES, DETECTIONS = "results.json", "report.html", "queries", "detections"


def prepare_evaluation(out: Path) -> None:
    """Makes the folders of an evaluation. Raises UserError where one of its files could not be written."""
    for folder in (out, out / DETECTIONS, out / QUERIES):
        make_folder(folder)
    for name in (RESULTS, PAGE):
        require_no_folder(out / name)


def prepare_page(file: Path) -> None:
    """Makes its folder. Raises UserError where it could not be written."""
    make_folder(file.parent)
    require_no_folder(file)


def make_folder(folder: Path) -> None:
    """Raises UserError, also where there is one that takes no files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make the folder {folder}: {error.strerror}.") from None
    try:
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--out: cannot write into {folder}: {error.strerror}.") from None


def require_no_folder(file: Path) -> None:
    """Raises UserError."""
    if file.is_dir():
        raise UserError(
            f"--out: {file} is a folder, and a file is to be written there. Name another."
        )
