"""``python -m tests.diagnostics.zoo [NAME ...]``: the diagnostics of every member of the zoo, as a Markdown table.

Exit code 1 where a planted defence passes as ok with more left than the bare network, or an honest one does not pass.
"""

import sys

from tests.diagnostics.zoo.table import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
