"""`Registry`: who may take part. It gives out tokens and certificates, knows every key by its name, and shuts out.

A certificate says a name; whether that still counts is asked here at every call, in memory. So nothing has to be sent around to
revoke one, and a copied key is found: two machines that show it shut its name out, until other hardware replaces it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.authority import Authority
from controller.roles import OPERATOR, ROLES, Caller
from controller.store import Identities, Member, Token
from edgefarm.credentials import NAME_PATTERN, JoinToken, hash_of_secret, parse_token, proof_of_key, urn
from edgefarm.errors import Denied, NotFound, ProtocolError, UserError
from edgefarm.model import User

_LOG = logging.getLogger(__name__)
DEVICE, USER = KINDS = ("device", "user")
GOOD, REVOKED, QUARANTINED = "good", "revoked", "quarantined"
TOKEN_S = 3600.0
_SECRET_BYTES = 16
_MACHINES = 16  # that are remembered of a device's key; from which a user may be logged in
_MAKES = {"": "'controller token create'", DEVICE: "'controller token create'", USER: "'controller user add'"}
_AGAIN = {
    DEVICE: "'controller device replace {}' gives a token with which the right one takes its name back, with a new key",
    USER: "an admin's 'controller user add {}' gives a token for 'controller login'",
}


@dataclass(frozen=True)
class Certified:
    """A fresh certificate, and whom it names."""

    kind: str
    name: str
    certificate_pem: bytes


def _utc_ms() -> int:
    return time.time_ns() // 1_000_000


class Registry:
    """Devices and users of one controller. Safe from any thread; the only writer of its part of the store.

    Members are replaced whole, so that looking one up needs no lock: who looks must not wait for a disk.

    Args:
        life_s: of a certificate.
        wall: UTC milliseconds.
    """

    def __init__(self, store: Identities, authority: Authority, *, life_s: float = 30 * 86400.0, wall: Callable[[], int] = _utc_ms) -> None:
        self.authority = authority
        self._store, self._life, self._wall = store, timedelta(seconds=life_s), wall
        self._lock = threading.RLock()
        self._members = {(m.kind, m.name): m for m in store.members()}
        self.on_barred: Callable[[str, str], object] = lambda device, reason: None

    # Tokens

    def create_token(
        self, by: str, *, uses: int = 1, expires_s: float = TOKEN_S, labels: Mapping[str, str] | None = None,
        kind: str = DEVICE, name: str = "",
    ) -> str:  # fmt: skip
        """A token with which devices (or a user) join, for `name` only if one is given. It is not kept and can't be shown again."""
        if not 1 <= uses <= 100_000:
            raise UserError(f"a token may be used 1 to 100000 times, not {uses}")
        if not 0 < expires_s <= 366 * 86400:
            raise UserError(f"a token lasts up to a year, not {expires_s:g} s")
        return self._token(Token("", kind, name and _checked_name(name), "", _checked_labels(labels or {}), uses, 0, False, by), expires_s)

    def add_user(self, name: str, role: str = "", by: str = "") -> str:
        """A token with which a user logs in on one machine, also on a further one: those before stay logged in. Raises UserError.

        Args:
            role: counts at once, on all machines; empty: the one that the user has, operator for a new one.
        """
        if role not in ("", *ROLES):
            raise UserError(f"role {role!r}: there are {', '.join(ROLES)}")
        with self._lock:
            known = self._members.get((USER, _checked_name(name)))
            if known is not None and known.standing == GOOD:
                role = role or known.role
                self._save(replace(known, role=role))
            return self._token(Token("", USER, name, role or OPERATOR, {}, 1, 0, True, by), TOKEN_S)

    def replace(self, device: str, by: str = "") -> str:
        """A token with which other hardware takes the name over, with its labels; then the old key counts no more. Raises NotFound."""
        self._member(DEVICE, device)
        return self._token(Token("", DEVICE, device, "", {}, 1, 0, True, by), 24 * TOKEN_S)

    def _token(self, token: Token, expires_s: float) -> str:
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        now = self._wall()
        self._store.add_token(replace(token, secret_hash=hash_of_secret(secret), expires_unix_ms=now + round(expires_s * 1000)), now)
        return str(JoinToken(secret, self.authority.fingerprint))

    # Certificates

    def enroll(self, token: str, name: str, csr_pem: bytes, kind: str = "") -> Certified:
        """Takes a device or user in.

        Args:
            name: that it wishes for; empty: the token's.
            csr_pem: certificate request, signed with the key that it shall be known by. Only the key counts.
            kind: that it wants to be; empty: the token's.

        Raises:
            Denied: the token is wrong, used up or over, or not good for this name; another one has the name or the key.
            ProtocolError: the request is none.
        """
        key = _requested_key(csr_pem)
        with self._lock:
            found = self._store.token(parse_token(token).secret_hash)
            if found is None or found.expires_unix_ms <= self._wall():
                raise Denied(f"this token is not known here, was replaced, or has expired: {_MAKES[kind]} makes another")
            if kind not in ("", found.kind):
                raise Denied(f"this token is for a {found.kind}, not for a {kind}: {_MAKES[kind]} makes one for that")
            member = self._admitted(found, _checked_name(name or found.name), _fingerprint(key))
            return self._certified(member, key)

    def _admitted(self, token: Token, name: str, key: str) -> Member:
        if token.name not in ("", name):
            raise Denied(f"this token is good for the {token.kind} {token.name!r} only, not for {name!r}")
        known = self._members.get((token.kind, name))
        good = known is not None and known.standing == GOOD
        if known is not None and good and key in known.keys and known.token == token.secret_hash:
            return known  # once more: the answer got lost
        if token.uses < 1:
            raise Denied(f"this token was used already: {_MAKES[token.kind]} makes another")
        if known is not None and not token.replaces:
            raise Denied(f"the name {name!r} is taken: choose another one, or replace it: {_again(known)}")
        self._check_own_key(token, name, key)
        labels = {**(known.labels if known else {}), **token.labels}
        before = known.keys if known is not None and good and token.kind == USER else ()
        keys = tuple(dict.fromkeys((*before, key)))[-_MACHINES:]
        member = Member(token.kind, name, token.role, keys, token.secret_hash, labels, enrolled_unix_ms=self._wall())
        self._save(member, token.secret_hash)
        _LOG.info("%s %r enrolled with a token of %s", token.kind, name, token.created_by or "this controller")
        return member

    def _check_own_key(self, token: Token, name: str, key: str) -> None:
        """A key names one member. Whoever comes with that of another one was copied, or is the copy: neither is believed."""
        other = next((m for m in self._members.values() if key in m.keys), None)
        if other is None or ((other.kind, other.name) == (token.kind, name) and other.standing == GOOD):
            return
        if other.kind == DEVICE and token.kind == DEVICE and other.name != name:
            reason = f"the devices {other.name!r} and {name!r} showed the same key: one of them is a copy"
            self._quarantine(other, reason)
            self._quarantine(Member(DEVICE, name, labels=token.labels, enrolled_unix_ms=self._wall()), reason)
        raise Denied(
            f"{name!r}: its key belongs to the {other.kind} {other.name!r}: remove its identity folder, so that it makes one of its own"
        )

    def renew(self, certificate_pem: bytes, nonce: bytes, signature: bytes) -> Certified:
        """A fresh certificate for the same key, also after the old one has expired.

        Args:
            nonce: that this controller chose for this call.
            signature: with the certificate's key, over `edgefarm.credentials.proof_of_key`.

        Raises:
            Denied: the certificate is not ours, its key is not the member's any more, or the proof is wrong.
        """
        shown = _parse(certificate_pem)
        self.authority.check_issued(shown.certificate)
        try:
            shown.key.verify(signature, proof_of_key(nonce, certificate_pem), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise Denied(f"{shown.kind} {shown.name!r} did not prove that it has the key of its certificate") from None
        with self._lock:
            return self._certified(self._standing(shown), shown.key)

    def _certified(self, member: Member, key: ec.EllipticCurvePublicKey) -> Certified:
        now = datetime.fromtimestamp(self._wall() / 1000, timezone.utc)
        return Certified(member.kind, member.name, self.authority.member(key, member.kind, member.name, self._life, now))

    # Who is it

    def caller(self, certificate_pem: bytes) -> Caller:
        """Who shows this certificate, of which TLS has proved that it is ours and shown by its owner. Raises Denied."""
        member = self._standing(_parsed(certificate_pem))
        return Caller(member.kind, member.name, member.role)

    def _standing(self, shown: _Shown) -> Member:
        member = self._members.get((shown.kind, shown.name))
        if member is None:
            raise Denied(f"{shown.kind} {shown.name!r} is not registered here: {_MAKES[shown.kind]} gives a token with which to join anew")
        if member.standing != GOOD:
            raise Denied(_barred(member))
        if shown.fingerprint not in member.keys:
            raise Denied(f"{shown.kind} {shown.name!r} was replaced: this key counts no more; {_again(member)}")
        return member

    def attached(self, device: str, machine: str) -> None:
        """Notes on which machine (its id and boot) a device's key is used. Raises Denied where that shows that the key was copied.

        A boot never comes back: one that does, after another one was seen, runs beside it.
        """
        with self._lock:
            member = self._member(DEVICE, device)
            if member.standing != GOOD:
                raise Denied(_barred(member))
            if member.machines[-1:] == (machine,):
                return
            if machine in member.machines:
                self._quarantine(member, f"two machines use its key in turns ({machine} and {member.machines[-1]})")
                raise Denied(_barred(self._member(DEVICE, device)))
            self._save(replace(member, machines=(*member.machines, machine)[-_MACHINES:]))

    # What becomes of them

    def label(self, device: str, labels: Mapping[str, str | None]) -> None:
        """Sets labels of a device, on top of those that it has found itself; None takes one away. Raises NotFound, UserError."""
        with self._lock:
            member = self._member(DEVICE, device)
            _checked_labels({k: v or "" for k, v in labels.items()})
            merged = {**member.labels, **labels}
            self._save(replace(member, labels={k: v for k, v in merged.items() if v is not None}))

    def labels(self, device: str) -> Mapping[str, str]:
        """Labels that were set for a device."""
        member = self._members.get((DEVICE, device))
        return member.labels if member else {}

    def revoke(self, name: str, kind: str = DEVICE) -> None:
        """Shuts a device (or user) out: its session ends, every later call and renewal is refused. Raises NotFound."""
        with self._lock:
            member = self._member(kind, name)
            self._store.drop_tokens(kind, name)
            self._bar(replace(member, standing=REVOKED, reason=""))

    def revoke_user(self, name: str) -> None:
        """Shuts a user out, on all machines. Raises NotFound."""
        self.revoke(name, USER)

    def users(self) -> list[User]:
        """Users, by name."""
        found = [m for m in self.members() if m.kind == USER]
        return [User(m.name, m.role, m.standing, len(m.keys), m.enrolled_unix_ms) for m in found]

    def members(self) -> list[Member]:
        """Devices and users, by kind and name."""
        return [member for _, member in sorted(self._members.copy().items())]

    def barred(self) -> dict[str, str]:
        """Devices that are shut out, with the reason."""
        return {m.name: _barred(m) for m in self.members() if m.kind == DEVICE and m.standing != GOOD}

    def revoked(self) -> set[str]:
        """Devices that were revoked: nobody misses them."""
        return {m.name for m in self.members() if m.kind == DEVICE and m.standing == REVOKED}

    def _quarantine(self, member: Member, reason: str) -> None:
        self._bar(replace(member, standing=QUARANTINED, reason=reason))

    def _bar(self, member: Member) -> None:
        self._save(member)
        _LOG.warning("%s", _barred(member))
        if member.kind == DEVICE:
            self.on_barred(member.name, _barred(member))

    def _save(self, member: Member, uses_token: str = "") -> None:
        self._store.save_member(member, uses_token)
        self._members[member.kind, member.name] = member

    def _member(self, kind: str, name: str) -> Member:
        member = self._members.get((kind, name))
        if member is None:
            raise NotFound(f"no {kind} {name!r} has enrolled")
        return member


@dataclass(frozen=True)
class _Shown:
    """What a certificate says."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePublicKey
    kind: str
    name: str
    fingerprint: str


def _parse(pem: bytes) -> _Shown:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = certificate.public_key()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise Denied(f"this certificate can't be read: {error}") from error
    known = [(kind, uri.removeprefix(urn(kind, ""))) for uri in found for kind in KINDS if uri.startswith(urn(kind, ""))]
    if len(known) != 1 or not isinstance(key, ec.EllipticCurvePublicKey):
        raise Denied("this certificate names neither a device nor a user")
    return _Shown(certificate, key, *known[0], _fingerprint(key))


_parsed = functools.lru_cache(maxsize=4096)(_parse)  # of certificates that TLS has checked: others could fill it


def _requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key, proved = request.public_key(), request.is_signature_valid
    except ValueError as error:
        raise ProtocolError(f"not a certificate request in PEM form: {error}") from error
    if not proved or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ProtocolError("a certificate request must be signed by its own key, on the curve P-256")
    return key


def _fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _barred(member: Member) -> str:
    return f"{member.kind} {member.name!r} is {member.standing}{': ' + member.reason if member.reason else ''}; {_again(member)}"


def _again(member: Member) -> str:
    return _AGAIN[member.kind].format(member.name)


def _checked_name(name: str) -> str:
    if not NAME_PATTERN.fullmatch(name):
        raise UserError(f"name {name[:80]!r}: up to 63 letters, digits, '.', '_' and '-', the first one a letter or digit")
    return name


def _checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in labels.items():
        if not NAME_PATTERN.fullmatch(key) or len(value) > 255:
            raise UserError(f"label {key}={value!r}: a key is up to 63 letters, digits, '.', '_' and '-'; a value up to 255 characters")
    return labels
