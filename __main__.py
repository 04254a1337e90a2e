"""`python -m patchbank` is the command `patchbank`."""

from .cli import main

if __name__ == "__main__":
    main()
