"""`python -m producer.cli` is `nightcourt`."""

from producer.cli import main

if __name__ == "__main__":
    main()
