"""`python -m experiments` is the `isoflop` command."""

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
