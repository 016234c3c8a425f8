"""``python -m robustcli``."""

from robustcli.cli import main

if __name__ == "__main__":
    main()
