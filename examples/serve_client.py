"""Many requests at once to a running `cee-gym serve`, which batches them.

python examples/serve_client.py http://127.0.0.1:8000
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

url = sys.argv[1].rstrip("/") + "/predict"


def ask(text: str) -> dict:
    """The answer for one text."""
    request = Request(
        url, json.dumps({"text": text}).encode(), {"content-type": "application/json"}
    )
    with urlopen(request, timeout=30) as response:
        return json.load(response)


texts = [f"a good film number {n}" for n in range(64)]
start = time.perf_counter()
with ThreadPoolExecutor(16) as pool:
    answers = list(pool.map(ask, texts))
seconds = time.perf_counter() - start
print(answers[0])
print(f"{len(answers)} requests in {seconds:.2f} s")
