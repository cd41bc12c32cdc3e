"""`python -m benchmarks.scale WHAT JSON`: one measurement of the driver, as JSON; started by `driver.apart`."""

from __future__ import annotations

import json
import sys

from benchmarks.scale.driver import measured

if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], json.loads(sys.argv[2]))))
