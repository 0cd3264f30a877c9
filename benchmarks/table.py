"""Put the tables of benchmarks/results/cpu.json between the markers in README.md.

make bench bench-table
"""

from __future__ import annotations

from pathlib import Path

from mbexport.bench.markdown import markdown
from mbexport.bench.report import read

ROOT = Path(__file__).parent.parent
RESULT, README = ROOT / "benchmarks/results/cpu.json", ROOT / "README.md"
BEGIN, END = "<!-- cpu-table -->", "<!-- /cpu-table -->"
NOT_YET = "Not measured yet: `make bench bench-table`."


def rendered() -> str:
    """What belongs between the markers."""
    return markdown(read(RESULT)) if RESULT.exists() else NOT_YET


def split_readme() -> tuple[str, str, str]:
    """README.md before, between and after the markers."""
    before, rest = README.read_text("utf-8").split(BEGIN)
    between, after = rest.split(END)
    return before, between, after


def main() -> None:
    """Replace what is there."""
    before, _, after = split_readme()
    README.write_text(f"{before}{BEGIN}\n{rendered()}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
