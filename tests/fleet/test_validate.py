"""The validator without a fleet: what it makes of what it finds, what it sees from outside, and how its verdict ends."""

import http.server
import importlib.util
import json
import ssl
import subprocess
import sys
import threading

import pytest
from rehearsal import ANSIBLE, inventory, play

ROLE = ANSIBLE / "roles" / "validate"
GROUPS = {"head": ["n1"], "router": ["n1"], "data": ["n1"], "gpu_nodes": ["n1"]}
CERTIFICATE = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x")
WELL = {
    "__validate_active": {"stdout_lines": ["active"] * 6},
    "__validate_clock": {"stdout": "1000 999"},
    "__validate_chrony": {"rc": 0},
    "__validate_disk": {"stdout_lines": ["Avail Mounted on", f"{9 << 30} /", f"{9 << 30} /", f"{3 << 30} /var/log"]},
    "__validate_database": {"rc": 0},
    "__validate_certificate": {"rc": 0},
    "__validate_rules": {"rc": 0, "stdout": "chain input { policy drop; }"},
    "__validate_links": {"results": [{"stat": {"lnk_source": f"/opt/inhouse/releases/{name}"}} for name in ("1", "2")]},
    "__validate_ray": {"results": [{"stat": {"mtime": 9.0}}, {"stat": {"mtime": 8.0}}, {"stat": {"exists": False}}]},
    "__validate_backups": {"matched": 1},
    "__validate_ready": {"status": 200, "json": {"models": {"m": True}, "ledger": "ok", "audit": "ok"}},
    "__validate_read": {"results": [{"content": "bW9kZWxzOiBbe25hbWU6IG19XQ=="}, {"content": ""}]},
    "__validate_made": {"rc": 0, "stdout": "ihk_x\n"},
    "__validate_seen": {"stdout": json.dumps({"open": [22, 443], "days_left": 300, "models": {"m": "ok"}})},
    "inhouse_ip": "10.0.0.1",
}
ILL = {
    "__validate_active": ({"stdout_lines": ["active", "failed", *["active"] * 5]}, "inhouse-cell not active (failed)"),
    "__validate_clock": ({"stdout": "1000 900"}, "its clock is 100 s from the controller"),
    "__validate_chrony": ({"rc": 1}, "chrony has no time source"),
    "__validate_disk": ({"stdout_lines": ["Avail Mounted on", f"{9 << 30} /", f"{1 << 30} /pg", f"{1 << 30} /pg"]},
                        "the disk at /pg has 1024 MiB free, 2 GiB"),
    "__validate_database": ({"rc": 2, "stdout": "no response"}, "PostgreSQL does not answer (no response)"),
    "__validate_certificate": ({"rc": 1}, "node.crt is missing or ends within 21 days"),
    "__validate_rules": ({"rc": 1, "stdout": ""}, "no table inet inhouse"),
    "__validate_links": ({"results": [{"stat": {"exists": False}}] * 2}, "runs release none"),
    "__validate_ray": ({"results": [{"stat": {"mtime": 7.0}}, {"stat": {"mtime": 8.0}}]}, "run upgrade.yml"),
    "__validate_backups": ({"matched": 0}, "no backup is younger than 26 hours"),
    "__validate_ready": ({"status": 503, "json": {"models": {"m": False}, "ledger": "cannot write", "audit": "ok"}}, "not ready: m"),
    "__validate_made": ({"rc": 1, "stdout": ""}, "no key could be made"),
    "__validate_seen": ({"stdout": json.dumps({"open": [22, 443, 6379], "days_left": None, "models": {"m": "refused"}})}, "m: refused"),
}


@pytest.fixture
def judge(tmp_path):
    """What the role says is wrong, of each of several machines' findings; no machine is asked."""
    def failures(*findings):
        play(tmp_path, [{"vars_files": [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")],
                         "tasks": [{"ansible.builtin.set_fact": found},
                                   {"ansible.builtin.copy": {"content": "{{ __validate_wrong | to_json }}", "dest": f"{tmp_path}/{i}"}}]}
                        for i, found in enumerate(findings)], {"n1": {}}, GROUPS)
        return [json.loads((tmp_path / str(i)).read_text()) for i in range(len(findings))]

    return failures


def test_each_thing_that_is_wrong_is_told(judge):
    """A machine that is as it must be has no failure; each single fault is found and named, and told with what to do."""
    well, *ill = judge(WELL, *(WELL | {name: found} for name, (found, _) in ILL.items()))
    assert well == []
    for (name, (_, said)), found in zip(ILL.items(), ill, strict=True):
        assert any(said in line for line in found), (name, found)
    assert any("can't write its ledger and keeps" in line for found in ill for line in found)
    assert any("port 6379 answers the controller" in line for line in ill[-1]) and any("with no days left" in line for line in ill[-1])


@pytest.fixture(scope="module")
def outside():
    """`outside.py`, which is no package's module."""
    spec = importlib.util.spec_from_file_location("outside", ROLE / "files" / "outside.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Answer(http.server.BaseHTTPRequestHandler):
    """Completes for the model `m` and the right key."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_well = body["model"] == "m" and self.headers["Authorization"] == "Bearer k"
        self.send_response(200 if is_well else 401)
        self.end_headers()
        self.wfile.write(b'{"choices": [{}]}' if is_well else b"no such key")

    def log_message(self, *_):
        """Silent."""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """(port, certificate) of a TLS endpoint with a certificate of 40 days."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run([*CERTIFICATE, "-days", "40", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key",
                    "-out", folder / "crt"], check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "crt", folder / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, (folder / "crt").read_text()
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_look_from_outside_is_a_callers(outside, endpoint):
    """Open ports, days left and completions are those of the real endpoint; a wrong key and an untrusted certificate show."""
    port, certificate = endpoint
    asked = {"address": "127.0.0.1", "ports": [port, 1], "endpoint": "127.0.0.1", "port": port, "authority": certificate, "key": "k",
             "models": ["m", "other"]}
    seen = outside.look(asked)
    assert seen["open"] == [port] and seen["days_left"] in (39, 40)
    assert seen["models"] == {"m": "ok", "other": "401: no such key"}
    elsewhere = subprocess.run([*CERTIFICATE, "-keyout", "/dev/null"], check=True, capture_output=True, text=True).stdout
    distrusted = outside.look(asked | {"authority": elsewhere})
    assert distrusted["days_left"] is None and "certificate verify failed" in distrusted["models"]["m"]


def verdict(name: str, *arguments: str) -> tuple[int, dict]:
    """Exit code and verdict of `verdict.py`."""
    said = subprocess.run([sys.executable, ANSIBLE / "verdict.py", name, *arguments], capture_output=True, text=True, check=False)
    return said.returncode, json.loads(said.stdout)


def test_a_machine_that_does_not_answer_is_a_failure(tmp_path):
    """It is named, and the command ends with 1."""
    code, told = verdict("validate", "-i", str(inventory(tmp_path, {"n1": {"ansible_host": "127.0.0.1", "ansible_port": 1}}, GROUPS)))
    assert (code, told["failures"], told["ok"]) == (1, ["n1: does not answer at 127.0.0.1"], False)


def test_no_verdict_is_no_all_clear(tmp_path):
    """Where Ansible itself could not begin, the command ends with 2, whatever an earlier run wrote."""
    code, told = verdict("validate", "-i", str(tmp_path / "none.yml"))
    assert code == 2 and not told["ok"] and told["failures"] == [] and "no verdict was reached" in told["unchecked"][0]
