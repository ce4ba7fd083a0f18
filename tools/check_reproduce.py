"""Compares a page of docs/ with the committed result files; exit code 1 if they differ.

python tools/check_reproduce.py                     # compares docs/reproduce.md
python tools/check_reproduce.py --study languages   # compares docs/how-many-languages.md
python tools/check_reproduce.py --write             # updates the page's results and verdicts
"""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llava.errors import UserError  # noqa: E402
from llava.files import write_atomically  # noqa: E402
from tools.reproduce.page import renew  # noqa: E402
from tools.reproduce.results import read_results  # noqa: E402
from tools.reproduce.settings import read_study, study_file  # noqa: E402

# The page of each study, in docs/.
PAGES = {"mini": "reproduce.md", "languages": "how-many-languages.md"}
log = logging.getLogger("check_reproduce")


def main(arguments: list[str] | None = None) -> int:
    """Compares, or writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", choices=PAGES, default="mini")
    parser.add_argument("--page", type=Path, help="another page")
    parser.add_argument("--results", type=Path, help="another folder than docs/results/STUDY")
    parser.add_argument("--write", action="store_true", help="update the page")
    options = parser.parse_args(arguments)
    page = options.page or ROOT / "docs" / PAGES[options.study]
    found = page.read_text(encoding="utf-8")
    folder = options.results or ROOT / "docs" / "results" / options.study
    try:
        results = read_results(folder, allow_none=True)
        wanted = renew(found, results, read_study(study_file(options.study)), page)
    except UserError as error:
        log.error("%s", error)
        return 2
    if options.write:
        write_atomically(page, wanted)
        return 0
    lines = list(
        difflib.unified_diff(
            found.splitlines(), wanted.splitlines(), str(page), "from results", lineterm=""
        )
    )
    if lines:
        log.error("%s", "\n".join(lines))
    return int(bool(lines))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
