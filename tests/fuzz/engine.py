"""One target, one engine, in a process of its own: ``python -m tests.fuzz.engine TARGET atheris|hypothesis ...``.

What it finds it writes into a folder (see watch.py); a crash or a hang shows by its exit code, and the input that did
it is then the folder's ``current``.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import resource
import sys
import tempfile
from pathlib import Path

MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 (files there are never read by others)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is one."""
    return tempfile.TemporaryDirectory(dir=MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None, prefix="mbexport-fuzz-")


def main() -> None:
    """Run the engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("engine", choices=("atheris", "hypothesis"))
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for what is found")
    parser.add_argument("--place", type=Path, required=True, help="empty, to work in")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.engine == "atheris":
            import atheris  # not installed: said plainly, and the run fails

            stack.enter_context(atheris.instrument_imports(include=["mbexport"]))
        from tests.fuzz import targets, watch
    resource.setrlimit(resource.RLIMIT_AS, (watch.ADDRESS_SPACE, watch.ADDRESS_SPACE))
    target = targets.Workplace(options.place).targets[options.target]
    tally = watch.Tally(options.target, options.engine, options.seed)
    watched = watch.Watch(target.run, tally, options.folder, options.inputs - 20)
    engine = _atheris if options.engine == "atheris" else _hypothesis
    engine(target, watched, options)
    watched.save()


def _hypothesis(target, watched, options) -> None:  # type: ignore[no-untyped-def]
    import hypothesis

    from tests.fuzz.structure import inputs
    from tests.fuzz.watch import HANGS

    @hypothesis.seed(options.seed)
    @hypothesis.settings(
        max_examples=options.inputs, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(inputs(target))
    def search(data: bytes) -> None:
        faulthandler.dump_traceback_later(HANGS, exit=True)
        watched(data)
        faulthandler.cancel_dump_traceback_later()

    search()


def _atheris(target, watched, options) -> None:  # type: ignore[no-untyped-def]
    import atheris

    from tests.fuzz.structure import KEYS, NASTY, PIECES, dump
    from tests.fuzz.watch import HANGS

    corpus = options.folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = {
        *PIECES,
        *(dump(value).encode() for value in NASTY),
        *(f'"{key}"'.encode("utf-8", "replace") for key in KEYS),
    }
    dictionary = options.folder / "words"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in sorted(words) if 0 < len(word) < 60))
    arguments = [
        sys.argv[0], f"-runs={options.inputs}", f"-seed={options.seed}", f"-timeout={HANGS}", "-max_len=65536",
        "-rss_limit_mb=4096", f"-dict={dictionary}", f"-artifact_prefix={options.folder}/", "-verbosity=0", str(corpus),
    ]  # fmt: skip
    atheris.Setup(arguments, watched)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
