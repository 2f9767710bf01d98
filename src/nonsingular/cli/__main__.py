"""python -m nonsingular.cli"""

import sys

from nonsingular.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
