"""`python -m` with this package's name is the same as its command."""

from .cli.main import main

if __name__ == "__main__":
    main()
