"""Thin, because each process that a drill starts imports it again."""

if __name__ == "__main__":
    import sys

    from tests.alertdrill.cli import main

    sys.exit(main())
