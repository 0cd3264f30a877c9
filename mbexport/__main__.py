"""``python -m mbexport`` is the command ``mbexport``."""

from mbexport.cli import main

main()
