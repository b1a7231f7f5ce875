"""python -m training.export MODEL --format FORMAT --output PATH."""

from training.export.command import main

if __name__ == "__main__":
    main()
