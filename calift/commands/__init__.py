"""The command `calift`: a file for each group of subcommands."""
