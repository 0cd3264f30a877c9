"""Print what the parity tests measured as the README's table.

make test && make parity-table
"""

from __future__ import annotations

import json
from pathlib import Path

FIGURES = Path("build/parity.json")


def main() -> None:
    """One row per kind of model, the worst of its variants."""
    groups = json.loads(FIGURES.read_text())
    print("| Model | variants tested | largest error, of the spread |\n|---|---|---|")
    for group, kinds in sorted(groups.items()):
        print(f"| {group} | {len(kinds)} | {max(kinds.values()):.1e} |")


if __name__ == "__main__":
    main()
