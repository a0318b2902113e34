"""Build the documentation: a site of all Markdown files in ``site``, and man pages in ``man``.

Usage: python -m tools.docs OUTPUT. The documents link to each other by their paths in the checkout, so the
site has the same directories. The man pages come from the parsers that also print --help.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from sriov_fast import __version__, cli

TOP = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the command line."""
    output = Path(sys.argv[1])
    collect(output / "docs")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"], cwd=TOP, check=True)
    print(f"wrote {output}/site/index.html")
    write_manual(output / "man")


def collect(directory: Path) -> None:
    """Copy all files that git tracks to one directory: the documents, and the targets of their links."""
    shutil.rmtree(directory, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, check=True, capture_output=True, text=True)
    for name in listed.stdout.split("\0"):
        if name and (TOP / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, directory / name)


def write_manual(directory: Path) -> None:
    """Write sriov-fast.1 (man-pages(7)) from the parser of the command."""
    from argparse_manpage.manpage import Manpage

    data = {"prog": "sriov-fast", "project_name": "sriov-fast", "version": __version__, "manual_section": 1}
    directory.mkdir(parents=True, exist_ok=True)
    page = Manpage(cli.parser([]), format="single-commands-section", _data=data)
    (directory / "sriov-fast.1").write_text(str(page))
    print(f"wrote {directory}/sriov-fast.1")


if __name__ == "__main__":
    main()
