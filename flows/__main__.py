"""`python -m flows` is `fucina`."""

from flows.cli import main

if __name__ == "__main__":
    main()
