"""`python -m enclaved` is the program `enclaved`."""

from __future__ import annotations

from enclaved.daemon.main import main

main()
