"""Who may take part."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from controller.authority import Authority
from controller.registry import Registry
from controller.roles import Caller
from controller.store import SqlStore
from edgefarm.credentials import parse_token, proof_of_key
from edgefarm.errors import Denied, NotFound, ProtocolError, UserError
from edgefarm.model import User
from tests.fakes.certificates import a_key, a_request

START_MS = 1_800_000_000_000
DAY_MS = 86_400_000


class Place:
    """A registry with a clock of its own, and what it shut out."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = START_MS
        self.store = SqlStore(folder / "store.db")
        self.authority = Authority(folder / "authority")
        self.barred: list[tuple[str, str]] = []
        self.registry = self.again()

    def again(self) -> Registry:
        """As after a restart."""
        made = Registry(self.store, self.authority, wall=lambda: self.now_ms)
        made.on_barred = lambda device, reason: self.barred.append((device, reason))
        return made

    def enroll(self, name: str, key: ec.EllipticCurvePrivateKey, token: str = "") -> bytes:
        return self.registry.enroll(token or self.registry.create_token("me"), name, a_request(key)).certificate_pem


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()


def renewed(registry: Registry, certificate: bytes, key: ec.EllipticCurvePrivateKey, nonce: bytes = b"") -> bytes:
    nonce = nonce or secrets.token_bytes(32)
    return registry.renew(certificate, nonce, key.sign(proof_of_key(nonce, certificate), ec.ECDSA(hashes.SHA256()))).certificate_pem


# Tokens


def test_a_token_names_the_authority_and_is_kept_as_a_hash_only(place: Place) -> None:
    token = place.registry.create_token("me")
    parsed = parse_token(token)
    assert parsed.fingerprint == place.authority.fingerprint
    kept = place.store.token(parsed.secret_hash)
    assert kept is not None
    assert parsed.secret not in repr(kept)
    assert (kept.uses, kept.expires_unix_ms) == (1, START_MS + 3_600_000)


def test_a_device_joins_and_is_known(place: Place) -> None:
    certificate = place.enroll("pi", a_key())
    assert place.registry.caller(certificate) == Caller("device", "pi", "")
    assert place.again().caller(certificate) == Caller("device", "pi", "")


def test_a_token_is_used_as_often_as_it_says(place: Place) -> None:
    token = place.registry.create_token("me", uses=2)
    place.enroll("pi-1", a_key(), token)
    place.enroll("pi-2", a_key(), token)
    with pytest.raises(Denied, match="used already"):
        place.enroll("pi-3", a_key(), token)
    assert [m.name for m in place.registry.members()] == ["pi-1", "pi-2"]


def test_an_answer_that_got_lost_costs_no_use(place: Place) -> None:
    token, key = place.registry.create_token("me"), a_key()
    place.enroll("pi", key, token)
    assert place.registry.caller(place.enroll("pi", key, token)).name == "pi"
    with pytest.raises(Denied, match="used already"):
        place.enroll("pi", a_key(), token)


def test_a_token_expires(place: Place) -> None:
    token = place.registry.create_token("me", expires_s=60)
    place.now_ms += 60_000
    with pytest.raises(Denied, match="has expired"):
        place.enroll("pi", a_key(), token)


def test_a_wrong_token_is_denied_and_a_broken_one_is_said(place: Place) -> None:
    with pytest.raises(Denied, match="not known here"):
        place.enroll("pi", a_key(), f"edgefarm1.guessed.{place.authority.fingerprint}")
    with pytest.raises(UserError, match="no join token"):
        place.enroll("pi", a_key(), "edgefarm1.cut")


def test_a_token_for_one_name_gives_no_other(place: Place) -> None:
    token = place.registry.create_token("me", name="pi")
    with pytest.raises(Denied, match="good for the device 'pi' only, not for 'po'"):
        place.enroll("po", a_key(), token)
    assert place.registry.enroll(token, "", a_request(a_key())).name == "pi"


@pytest.mark.parametrize(
    "wrong",
    [
        {"uses": 0},
        {"expires_s": 0.0},
        {"expires_s": float("nan")},
        {"name": "../x"},
        {"labels": {"a b": "c"}},
        {"labels": {"a": "c" * 256}},
    ],
)
def test_senseless_tokens_are_refused(place: Place, wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        place.registry.create_token("me", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a/b", "-x", "a" * 64, "a b", "é"])
def test_names_are_plain(place: Place, name: str) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        place.enroll(name, a_key())


def test_only_requests_with_their_own_key_on_the_right_curve(place: Place) -> None:
    token = place.registry.create_token("me")
    for request in (b"nonsense", a_request(ec.generate_private_key(ec.SECP384R1())), a_request(rsa.generate_private_key(65537, 2048))):
        with pytest.raises(ProtocolError):
            place.registry.enroll(token, "pi", request)
    assert place.registry.caller(place.enroll("pi", a_key(), token)).name == "pi"  # none of these was a use


# Users


def test_a_user_is_logged_in_on_several_machines(place: Place) -> None:
    keys = [a_key(), a_key()]
    certificates = [place.enroll("", key, place.registry.add_user("ann", "viewer")) for key in keys]
    for registry in (place.registry, place.again()):
        assert [registry.caller(c) for c in certificates] == [Caller("user", "ann", "viewer")] * 2
        assert registry.users() == [User("ann", "viewer", "good", 2, START_MS)]
    place.enroll("", keys[0], place.registry.add_user("ann"))  # the first machine once more
    assert place.registry.users()[0].machines == 2
    assert [renewed(place.registry, c, k) != c for c, k in zip(certificates, keys)] == [True, True]


def test_machines_of_a_user_are_limited(place: Place) -> None:
    certificates = [place.enroll("", a_key(), place.registry.add_user("ann")) for _ in range(17)]
    assert place.registry.users()[0].machines == 16
    assert place.registry.caller(certificates[1]).name == "ann"
    with pytest.raises(Denied, match=r"key counts no more; an admin's 'controller user add ann' gives a token for 'controller login'"):
        place.registry.caller(certificates[0])


def test_a_role_counts_at_once_and_stays_where_none_is_named(place: Place) -> None:
    certificate = place.enroll("", a_key(), place.registry.add_user("ann", "admin"))
    second = place.registry.add_user("ann")
    assert place.registry.caller(certificate).role == "admin"
    assert place.registry.caller(place.enroll("", a_key(), second)).role == "admin"
    unused = place.registry.add_user("ann", "viewer")
    for registry in (place.registry, place.again()):
        assert registry.caller(certificate).role == "viewer"
    place.registry.add_user("ann", "operator")
    with pytest.raises(Denied, match="not known here"):
        place.enroll("", a_key(), unused)  # a newer one voids it
    assert place.registry.caller(place.enroll("", a_key(), place.registry.add_user("bob"))).role == "operator"
    with pytest.raises(UserError, match="viewer, operator, admin"):
        place.registry.add_user("bob", "king")


def test_a_revoked_user_is_out_on_all_machines_and_may_be_taken_in_again(place: Place) -> None:
    keys = [a_key(), a_key()]
    certificates = [place.enroll("", key, place.registry.add_user("ann", "admin")) for key in keys]
    unused = place.registry.add_user("ann")
    place.registry.revoke_user("ann")
    for registry in (place.registry, place.again()):
        for certificate, key in zip(certificates, keys):
            with pytest.raises(Denied, match="user 'ann' is revoked; an admin's 'controller user add ann'"):
                registry.caller(certificate)
            with pytest.raises(Denied, match="'ann' is revoked"):
                renewed(registry, certificate, key)
    with pytest.raises(Denied, match="not known here"):
        place.enroll("", a_key(), unused)
    assert place.registry.users()[0].standing == "revoked"
    again = place.registry.add_user("ann")
    with pytest.raises(Denied, match="'ann' is revoked"):
        place.registry.caller(certificates[0])  # until the token is used, and then with another key
    fresh = place.enroll("", a_key(), again)
    assert place.registry.caller(fresh) == Caller("user", "ann", "operator")  # what a revoked one was counts no more
    with pytest.raises(Denied, match="key counts no more"):
        place.registry.caller(certificates[1])
    with pytest.raises(NotFound, match="no user 'bob'"):
        place.registry.revoke_user("bob")


def test_a_token_is_not_used_up_by_who_wants_to_be_something_else(place: Place) -> None:
    place.enroll("pi", a_key())
    tokens = {"device": place.registry.replace("pi"), "user": place.registry.add_user("ann")}
    for kind, token in tokens.items():
        other = "user" if kind == "device" else "device"
        with pytest.raises(Denied, match=f"this token is for a {kind}, not for a {other}: 'controller (token create|user add)' makes"):
            place.registry.enroll(token, "", a_request(a_key()), other)
        assert place.registry.enroll(token, "", a_request(a_key()), kind).kind == kind


def test_a_device_and_a_user_may_have_one_name_but_not_each_others_certificate(place: Place) -> None:
    place.enroll("ann", a_key())
    certificate = place.enroll("ann", a_key(), place.registry.add_user("ann", "viewer"))
    assert place.registry.caller(certificate).kind == "user"
    place.registry.revoke("ann")
    assert place.registry.caller(certificate).kind == "user"


# Renewal


def test_an_expired_certificate_renews_with_its_key(place: Place) -> None:
    key = a_key()
    certificate = place.enroll("pi", key)
    place.now_ms += 400 * DAY_MS
    fresh = renewed(place.registry, certificate, key)
    assert fresh != certificate
    assert place.registry.caller(fresh).name == "pi"
    assert renewed(place.registry, fresh, key) != fresh


def test_a_proof_is_good_for_one_nonce_one_certificate_one_key(place: Place) -> None:
    key = a_key()
    certificate = place.enroll("pi", key)
    signature = key.sign(proof_of_key(b"n" * 32, certificate), ec.ECDSA(hashes.SHA256()))
    assert place.registry.renew(certificate, b"n" * 32, signature).name == "pi"
    with pytest.raises(Denied, match="did not prove"):
        place.registry.renew(certificate, b"m" * 32, signature)
    with pytest.raises(Denied, match="did not prove"):
        renewed(place.registry, certificate, a_key())


def test_nobody_elses_certificate_renews(place: Place, tmp_path: Path) -> None:
    other = Place(tmp_path / "other")
    key = a_key()
    place.enroll("pi", key)
    with pytest.raises(Denied, match="not of this controller"):
        renewed(place.registry, other.enroll("pi", key), key)
    for nonsense in (b"", b"nonsense", place.authority.certificate_pem):
        with pytest.raises(Denied, match="can't be read"):
            place.registry.renew(nonsense, b"n", b"s")
    other.store.close()


# Shutting out


def test_who_is_revoked_is_out_at_once_and_for_good(place: Place) -> None:
    key = a_key()
    certificate = place.enroll("pi", key)
    place.registry.revoke("pi")
    for registry in (place.registry, place.again()):
        with pytest.raises(Denied, match="'pi' is revoked"):
            registry.caller(certificate)
        with pytest.raises(Denied, match="'pi' is revoked"):
            renewed(registry, certificate, key)
        with pytest.raises(Denied, match="'pi' is revoked"):
            registry.attached("pi", "m")
    assert [device for device, _ in place.barred] == ["pi"]
    assert list(place.again().barred()) == ["pi"]
    with pytest.raises(Denied, match="'pi' is taken"):
        place.enroll("pi", a_key())
    with pytest.raises(NotFound, match="no device 'po'"):
        place.registry.revoke("po")


def test_revoking_voids_the_tokens_for_the_name(place: Place) -> None:
    place.enroll("pi", a_key())
    token = place.registry.replace("pi")
    place.registry.revoke("pi")
    with pytest.raises(Denied, match="not known here"):
        place.enroll("pi", a_key(), token)


def test_new_hardware_takes_a_name_over_with_its_labels(place: Place) -> None:
    old = place.enroll("pi", a_key(), place.registry.create_token("me", labels={"site": "lab"}))
    place.registry.label("pi", {"desk": "4"})
    token = place.registry.replace("pi")
    assert place.registry.caller(old).name == "pi"  # until the new one is there
    new = place.enroll("pi", a_key(), token)
    assert place.registry.caller(new).name == "pi"
    with pytest.raises(Denied, match="was replaced"):
        place.registry.caller(old)
    assert place.registry.labels("pi") == {"site": "lab", "desk": "4"}
    with pytest.raises(NotFound):
        place.registry.replace("po")


def test_a_key_in_two_machines_shuts_the_name_out(place: Place) -> None:
    certificate = place.enroll("pi", a_key())
    for machine in ("id/boot-1", "id/boot-1", "id/boot-2", "id/boot-2", "id-2/boot-2"):  # reboots, and an id that was lost
        place.registry.attached("pi", machine)
    with pytest.raises(Denied, match=r"quarantined: two machines use its key in turns \(id/boot-1 and id-2/boot-2\)"):
        place.registry.attached("pi", "id/boot-1")
    for registry in (place.registry, place.again()):
        with pytest.raises(Denied, match="'pi' is quarantined"):
            registry.caller(certificate)
    assert [device for device, _ in place.barred] == ["pi"]
    new = place.enroll("pi", a_key(), place.registry.replace("pi"))
    place.registry.attached("pi", "id/boot-1")
    assert place.registry.caller(new).name == "pi"


def test_machines_are_remembered_over_a_restart(place: Place) -> None:
    place.enroll("pi", a_key())
    place.registry.attached("pi", "a")
    place.registry.attached("pi", "b")
    with pytest.raises(Denied, match="two machines"):
        place.again().attached("pi", "a")


def test_a_key_under_two_names_shuts_both_out(place: Place) -> None:
    key = a_key()
    certificate = place.enroll("pi-1", key)
    with pytest.raises(Denied, match="its key belongs to the device 'pi-1'"):
        place.enroll("pi-2", key)
    reason = "the devices 'pi-1' and 'pi-2' showed the same key: one of them is a copy"
    assert [(m.name, m.standing, m.reason) for m in place.registry.members()] == [
        ("pi-1", "quarantined", reason),
        ("pi-2", "quarantined", reason),
    ]
    with pytest.raises(Denied, match="'pi-1' is quarantined"):
        place.registry.caller(certificate)
    assert place.registry.caller(place.enroll("pi-2", a_key(), place.registry.replace("pi-2"))).name == "pi-2"


def test_a_name_that_is_taken_is_kept(place: Place) -> None:
    certificate = place.enroll("pi", a_key())
    with pytest.raises(Denied, match="'pi' is taken"):
        place.enroll("pi", a_key())
    assert place.registry.caller(certificate).name == "pi"


def test_somebody_who_comes_with_a_taken_name_and_a_third_ones_key_harms_nobody(place: Place) -> None:
    key = a_key()
    certificates = [place.enroll("pi-1", key), place.enroll("pi-2", a_key())]
    with pytest.raises(Denied, match="'pi-2' is taken"):
        place.enroll("pi-2", key)
    assert [place.registry.caller(c).name for c in certificates] == ["pi-1", "pi-2"]


# Labels


def test_labels_are_set_and_taken_away(place: Place) -> None:
    place.enroll("pi", a_key(), place.registry.create_token("me", labels={"site": "lab", "desk": "1"}))
    place.registry.label("pi", {"desk": None, "board": "pi-5", "absent": None})
    assert place.again().labels("pi") == {"site": "lab", "board": "pi-5"}
    assert place.registry.labels("unknown") == {}
    with pytest.raises(UserError, match="label a b"):
        place.registry.label("pi", {"a b": "c"})
    with pytest.raises(NotFound):
        place.registry.label("po", {"a": "b"})
