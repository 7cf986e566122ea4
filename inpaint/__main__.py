"""`python -m inpaint`."""

from inpaint.cli import main

main()
