"""`python -m orchestrator VERB [overrides]`.

Signals are handled before the command line is imported, which takes a second or more."""

from orchestrator.engine import stop_signals


def main() -> None:
    """Run the command line. A signal ends it with one line from here on."""
    stop_signals.end_at_once()
    from orchestrator.cli import main as run

    run()


if __name__ == "__main__":
    main()
