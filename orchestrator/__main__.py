"""`python -m orchestrator VERB [overrides]`."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
