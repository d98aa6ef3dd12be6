"""`python -m audiogen_fast` is the command `audiogen-fast`."""

from audiogen_fast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
