"""An agent loop as a process of its own: `python agent.py PORT KEY`, requests as a JSON list on stdin; asks them in turn, again and
again, until it was refused three times for its budget. What became of each call is printed as JSON. A call may be left after some bytes.
"""

import http.client
import json
import sys
import time
import uuid


def ask(port: int, key: str, asked: dict) -> dict:
    """One call: its tag, what was asked, the status (0 where the router went away), the refusal, and the headers that tell of money."""
    tag = uuid.uuid4().hex
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "x-request-id": tag}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    told = {"tag": tag, "what": asked["what"], "path": asked["path"], "status": 0, "at": time.time()}
    try:
        connection.request("POST", asked["path"], json.dumps({**asked["body"], "tag": tag}), headers)
        answer = connection.getresponse()
        body = answer.read(asked["leave"]) if asked["leave"] and answer.status == 200 else answer.read()
        told |= {"status": answer.status, "error": json.loads(body)["error"] if answer.status >= 400 else None,
                 "left": answer.headers["inhouse-budget-left"], "most": answer.headers["inhouse-max-tokens"],
                 "cost": answer.headers["inhouse-cost-usd"]}  # fmt: skip
    except (OSError, http.client.HTTPException) as error:
        told["broken"] = type(error).__name__
    finally:
        connection.close()
    return told


if __name__ == "__main__":
    port, key, requests = int(sys.argv[1]), sys.argv[2], json.load(sys.stdin)
    told, end = [], time.monotonic() + 60
    while sum(one["status"] == 402 for one in told) < 3 and time.monotonic() < end:
        told.append(ask(port, key, requests[len(told) % len(requests)]))
        if told[-1]["status"] == 0:
            time.sleep(0.1)
    print(json.dumps(told))
