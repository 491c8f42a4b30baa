"""What a machine looks like from outside: which ports answer, which certificate it shows, whether models complete. Runs on the controller.

Reads JSON on stdin, so that the key is no argument: {"address", "ports", and for a router "endpoint", "port", "authority", "key",
"models"}. Prints JSON: {"open": [...], "days_left": 90 or null, "models": {"name": "ok" or what is wrong}}. Changes nothing.
"""

import json
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor


def is_open(address: str, port: int) -> bool:
    """Whether a port takes a connection within two seconds."""
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def days_left(endpoint: str, port: int, trusted: ssl.SSLContext) -> float:
    """Days until the certificate that is shown ends. Raises OSError where it isn't trusted or nobody answers."""
    with socket.create_connection((endpoint, port), timeout=10) as plain, trusted.wrap_socket(plain, server_hostname=endpoint) as secure:
        shown = secure.getpeercert() or {}
        return (ssl.cert_time_to_seconds(str(shown["notAfter"])) - time.time()) / 86400


def completes(url: str, model: str, key: str, trusted: ssl.SSLContext) -> str:
    """`ok`, or why a model did not complete a prompt."""
    body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 1}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/v1/completions", body, headers)  # noqa: S310 (https, written in `look`)
    try:
        with urllib.request.urlopen(request, context=trusted, timeout=60) as answer:  # noqa: S310
            return "ok" if json.load(answer).get("choices") else "answered without a choice"
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code}: {error.read(300).decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return str(error)


def look(asked: dict) -> dict:
    """All of it. A certificate that isn't trusted is told for each model."""
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda port: is_open(asked["address"], port), asked["ports"]))
    told = {"open": [port for port, answer in zip(asked["ports"], answers, strict=True) if answer], "days_left": None, "models": {}}
    if "endpoint" in asked:
        trusted = ssl.create_default_context()
        trusted.load_verify_locations(cadata=asked["authority"])
        url = f"https://{asked['endpoint']}:{asked['port']}"
        told["models"] = {model: completes(url, model, asked["key"], trusted) for model in asked["models"]}
        try:
            told["days_left"] = int(days_left(asked["endpoint"], asked["port"], trusted))
        except OSError as error:
            told["models"] = dict.fromkeys(asked["models"], str(error))
    return told


if __name__ == "__main__":
    print(json.dumps(look(json.load(sys.stdin))))
