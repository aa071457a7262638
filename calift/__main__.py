"""`python -m calift` is the command `calift`."""

from calift.main import main

main()
