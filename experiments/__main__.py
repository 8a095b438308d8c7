"""`python -m experiments` is the `isoflop` command."""

from isoflop.experiments.cli import interrupts


def main() -> int:
    """The installed command. What it imports takes longer than a hand on Ctrl-C."""
    interrupts.end_at_once()
    from isoflop.experiments.cli import main as cli

    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
