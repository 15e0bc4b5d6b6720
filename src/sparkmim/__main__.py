"""`python -m sparkmim`."""

from .cli import main

main()
