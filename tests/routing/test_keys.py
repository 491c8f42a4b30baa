"""Keys: made once, stored as hashes, known to every worker, gone when revoked."""

import sqlite3
import time

import pytest

from routing import keys
from routing.errors import Unauthorized
from routing.keys import KeyRing
from routing.ledger import Ledger, Row


@pytest.fixture
def ring(store):
    """A ring over the test's database."""
    made = KeyRing(store)
    yield made
    made._connection.close()


def test_a_key_opens_what_it_was_made_for(store, ring):
    """A new key is known at once, with its caller, tasks and models."""
    key = keys.create(store, "ann", tasks=["chat"], models=[])
    caller = ring.identify(key.encode())
    assert (caller.name, caller.key_id) == ("ann", key[:12])
    assert caller.may_use_task("chat")
    assert not caller.may_use_task("other")
    assert not caller.may_use_model("alpha")


def test_the_key_itself_is_stored_nowhere(store, tmp_path):
    """Neither the database nor a listing has more of a key than its first characters."""
    key = keys.create(store, "ann")
    store.dispose()
    stored = b"".join(file.read_bytes() for file in (tmp_path / "state").iterdir())
    assert key.encode() not in stored
    assert key[:16].encode() not in stored  # its id ends at 12, and what stands behind that in the file is like a sign or two by chance
    (listed,) = keys.listed(store)
    assert listed["id"] == key[:12]
    assert "hash" not in listed
    assert key[12:] not in str(listed)


def test_the_state_is_for_its_owner_alone(store, tmp_path):
    """The folder of the database is closed to other users of the machine."""
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("wrong", [b"", b"x", b"ihk_", b"\xff\xfe", b"a" * 10_000, b"*"])
def test_strangers_are_refused(ring, wrong):
    """No key, half a key and garbage are nobody."""
    with pytest.raises(Unauthorized):
        ring.identify(wrong)


def test_a_prefix_or_a_hash_is_no_key(store, ring):
    """What a listing or a stolen database shows opens nothing."""
    key = keys.create(store, "ann")
    with store.connect() as connection:
        (digest,) = connection.exec_driver_sql("select hash from keys").one()
    for guess in (key[:12], digest, key + " ", key[:-1]):
        with pytest.raises(Unauthorized):
            ring.identify(guess.encode())


def test_a_revoked_key_ends_with_the_next_refresh(store, ring):
    """Revoking takes effect at the refresh that follows, and once only."""
    key = keys.create(store, "ann")
    assert ring.identify(key.encode())
    assert keys.revoke(store, key[:12])
    assert not keys.revoke(store, key[:12])
    assert not keys.revoke(store, "ihk_nobody..")
    ring.refresh()
    with pytest.raises(Unauthorized):
        ring.identify(key.encode())


def test_an_expired_key_ends_by_itself(store, ring):
    """A lifetime ends without anybody doing anything, and says that it has."""
    key = keys.create(store, "ann", lifetime_s=1)
    assert ring.identify(key.encode())
    time.sleep(1)
    with pytest.raises(Unauthorized, match="expired"):
        ring.identify(key.encode())


def test_guessing_does_not_keep_new_keys_waiting(store, ring):
    """A burst of strangers reaches the database a bounded number of times, and a new key is known within a moment all the same."""
    for guess in range(500):
        with pytest.raises(Unauthorized):
            ring.identify(b"guess%d" % guess)
    key = keys.create(store, "ann").encode()
    time.sleep(0.05)
    assert ring.identify(key).name == "ann"


def test_ledger_rows_are_no_reason_to_read_the_keys_again(store, ring):
    """The ledger's writes to the same file leave the known keys as they are: reading thousands anew stops a worker."""
    keys.create(store, "ann")
    ring.refresh()
    known = ring._callers
    ledger = Ledger(store)
    ledger.append(Row(1.0, "r", 1, "k", "c", "/v1", "", "m", "w", 200, "", 1, 1, True, 1.0, 1.0))
    ledger.close()
    ring.refresh()
    assert ring._callers is known
    keys.create(store, "bob")
    ring.refresh()
    assert len(ring._callers) == 2


def test_other_processes_changes_are_seen(store, ring, tmp_path):
    """A row that another process changes by hand counts from the next refresh."""
    key = keys.create(store, "ann").encode()
    assert ring.identify(key)
    other = sqlite3.connect(tmp_path / "state" / "inhouse.db")
    with other:
        other.execute("update keys set revoked_at = 1")
    other.close()
    ring.refresh()
    with pytest.raises(Unauthorized):
        ring.identify(key)
