"""The command line: one subcommand a verb."""
