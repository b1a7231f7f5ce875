"""python -m training.views --data DIR --index N --output views.png."""

from training.show import main

if __name__ == "__main__":
    main()
