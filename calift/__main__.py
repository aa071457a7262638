"""`python -m calift` is the command `calift`."""

from calift.commands.main import main

main()
