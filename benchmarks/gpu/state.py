"""All that is known of one GPU so far, in one JSON file that is written after every figure."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mbexport.files import to_json, write_atomically

FILE, SCHEMA = "results.json", 1
MOST = 2  # attempts at what does not end
FIXED = ("mbexport", "gpu", "model")  # what figures of one folder must have in common


@dataclass
class State:
    """What was measured.

    Attributes:
        folder: where it is kept.
        about: the GPU, the machine, the model, versions, the first day.
        rates: multiply-adds a second by precision, and the bytes of a copy.
        contenders: by name, what they say of themselves, or ``why_not`` with the packages that were there.
        cells: by workload and contender.
        rtx_targets: by target, what became of TensorRT-RTX's engine for it.
        profiles: by contender, where ONNX Runtime runs its nodes.
        notes: whatever else was said.
        attempts: how often something was begun that has no figures yet.
    """

    folder: Path
    about: dict[str, Any]
    rates: dict[str, float] = field(default_factory=dict)
    contenders: dict[str, dict[str, Any]] = field(default_factory=dict)
    cells: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    rtx_targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def open(folder: Path, about: dict[str, Any]) -> State:
        """What a folder holds, or nothing yet.

        Raises:
            SystemExit: it holds figures of another GPU, driver or model, or with other versions of packages.
        """
        file = folder / FILE
        if not file.exists():
            return State(folder, about)
        raw = json.loads(file.read_text())
        raw.pop("schema_version")
        then = raw["about"]
        other = [(name, then[name], about[name]) for name in FIXED if then[name] != about[name]]
        installed = about["packages"]
        other += [
            (name, was, installed[name]) for name, was in then["packages"].items() if installed.get(name, was) != was
        ]
        if other:
            told = "; ".join(f"{name} was {was}, is {now}" for name, was, now in other)
            raise SystemExit(f"error: {file} holds other figures: {told}; name another folder with --results")
        raw["about"] |= {"packages": then["packages"] | installed}
        return State(folder=folder, **raw)

    def cell(self, workload: str, contender: str) -> dict[str, Any]:
        """The figures of a contender on a workload; empty where there are none."""
        return self.cells.get(workload, {}).get(contender, {})

    def leave_out(self, contender: str, why: str) -> None:
        """Keep why a contender cannot take part, with what is installed: something else may mend it."""
        self.contenders[contender] = {"why_not": why, "packages": self.about["packages"]}
        self.save()

    def is_out(self, contender: str) -> bool:
        """Whether a contender could not take part, and nothing has changed since."""
        known = self.contenders.get(contender, {})
        return "why_not" in known and known["packages"] == self.about["packages"]

    def attempt(self, what: str) -> bool:
        """Note that something begins, which may never end; False where it has begun MOST times before."""
        self.attempts[what] = self.attempts.get(what, 0) + 1
        self.save()
        return self.attempts[what] <= MOST

    def put(self, workload: str, contender: str, cell: dict[str, Any]) -> None:
        """Keep figures; what ended was no vain attempt."""
        self.attempts.pop(f"{contender}: {workload}", None)
        self.cells.setdefault(workload, {})[contender] = cell
        self.save()

    def forget(self, names: Collection[str]) -> None:
        """Drop what is known of contenders."""
        for name in names:
            self.contenders.pop(name, None)
            for workload, row in self.cells.items():
                row.pop(name, None)
                self.attempts.pop(f"{name}: {workload}", None)

    def save(self) -> None:
        """Write it, in one step."""
        content = asdict(self)
        del content["folder"]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / FILE, to_json({"schema_version": SCHEMA} | content) + "\n")
