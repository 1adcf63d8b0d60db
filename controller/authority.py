"""The controller's certificate authority: its own, or one below the user's.

Certificates of authority and server are good from 1970 on, since TLS holds them against the clock of a device that may have none.
Devices are given the authority's certificate and believe that one, not what is above it. The controller is known by its key and
`SERVER_NAME`, not by where it is reached: addresses change, and stand behind proxies and NAT.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Union

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgefarm.credentials import DEVICE_SERVER_NAME, SERVER_NAME, fingerprint_of, urn
from edgefarm.digest import atomic_write
from edgefarm.errors import Denied, StorageError, UserError

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LIFE = timedelta(days=20 * 365)
_BACKDATED = timedelta(hours=1)  # clocks of a fleet differ
_KEY, _CERTIFICATE = "key.pem", "certificate.pem"
_SigningKey = Union[ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey]


class Authority:
    """Signs certificates. `certificate_pem` is what devices and users trust.

    Args:
        folder: holds key (mode 0600) and certificate; made at the first start.
        above: certificate and key files of the user's own authority, which then signs this one. Needed at the first start only.

    Raises:
        StorageError: the folder can't be read or written.
        UserError: its content, or the user's, can't be used; with what to do.
    """

    def __init__(self, folder: Path, above: tuple[Path, Path] | None = None) -> None:
        self._folder = folder
        try:
            if not (folder / _CERTIFICATE).exists():
                _found(folder, above)
            key_pem, self.certificate_pem = (folder / _KEY).read_bytes(), (folder / _CERTIFICATE).read_bytes()
        except OSError as error:
            raise StorageError(f"{error.filename or folder}: {error.strerror}: its files must be readable") from error
        self._key = _signing_key(key_pem, folder / _KEY)
        self._certificate = _certificate(self.certificate_pem, folder / _CERTIFICATE)
        if self._certificate.public_key() != self._key.public_key():
            raise UserError(f"{folder}: {_KEY} does not belong to {_CERTIFICATE}: restore both from one backup")
        if above is not None and (issuer := _certificate(_read(above[0]), above[0])).subject != self._certificate.issuer:
            raise UserError(
                f"{folder}: was signed by {self._certificate.issuer.rfc4514_string()!r}, not by {issuer.subject.rfc4514_string()!r} "
                f"({above[0]}): choose another --state; all devices then enroll anew"
            )
        if self._certificate.not_valid_after_utc <= datetime.now(timezone.utc):
            raise UserError(f"{folder / _CERTIFICATE}: has expired: move the folder away; all devices then enroll anew")

    @property
    def fingerprint(self) -> str:
        """What a token tells of this authority."""
        return fingerprint_of(self._certificate.public_bytes(serialization.Encoding.DER))

    def server(self, names: Iterable[str]) -> tuple[bytes, bytes]:
        """A fresh key and its certificate chain for a server that is reached by these names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        known = [x509.DNSName(SERVER_NAME), *map(_general_name, dict.fromkeys(names))]
        end = self._certificate.not_valid_after_utc
        leaf = self._sign(key.public_key(), "edgefarm controller", known, [ExtendedKeyUsageOID.SERVER_AUTH], _EPOCH, end)
        return _key_pem(key), leaf + self.certificate_pem

    def member(self, key: ec.EllipticCurvePublicKey, kind: str, name: str, life: timedelta, now: datetime) -> bytes:
        """A certificate for a device or user."""
        known: list[x509.GeneralName] = [x509.UniformResourceIdentifier(urn(kind, name))]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if kind == "device":  # it serves its metrics page, under a name that no controller has
            known.append(x509.DNSName(DEVICE_SERVER_NAME))
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        end = min(now + life, self._certificate.not_valid_after_utc)
        return self._sign(key, name, known, usages, now - _BACKDATED, end)

    def check_issued(self, certificate: x509.Certificate) -> None:
        """Raises Denied unless this authority signed it, expired or not."""
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            raise Denied("this certificate is not of this controller: enroll here") from None

    def _sign(
        self, key: ec.EllipticCurvePublicKey, name: str, known: Sequence[x509.GeneralName],
        usages: Sequence[x509.ObjectIdentifier], begin: datetime, end: datetime,
    ) -> bytes:  # fmt: skip
        builder = (
            _builder(_name(name), self._certificate.subject, key, begin, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_may(signatures=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(known), critical=False)
            .add_extension(_key_of_issuer(self._certificate), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _found(folder: Path, above: tuple[Path, Path] | None) -> None:
    """Makes the authority. Its certificate is written last: without it the next start begins anew."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    subject, end = _name("edgefarm authority " + os.urandom(4).hex()), datetime.now(timezone.utc) + _LIFE
    issuer: x509.Name = subject
    parent: x509.Certificate | None = None
    signing_key: _SigningKey = key
    if above is not None:
        parent = _certificate(_read(above[0]), above[0])
        signing_key = _signing_key(_read(above[1]), above[1])
        _check_above(parent, signing_key, above)
        issuer, end = parent.subject, min(end, parent.not_valid_after_utc)
    # Path length 0: it signs members and servers, no other authority.
    builder = (
        _builder(subject, issuer, key.public_key(), _EPOCH, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_may(certificates=True), critical=True)
    )
    if parent is not None:
        builder = builder.add_extension(_key_of_issuer(parent), critical=False)
    certificate = builder.sign(signing_key, hashes.SHA256())
    atomic_write(folder / _KEY, _key_pem(key), mode=0o600)
    atomic_write(folder / _CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))


def _check_above(parent: x509.Certificate, key: _SigningKey, files: tuple[Path, Path]) -> None:
    if parent.public_key() != key.public_key():
        raise UserError(f"{files[1]}: is not the key of {files[0]}")
    try:
        constraints = parent.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca:
        raise UserError(f"{files[0]}: is no authority's certificate (CA:TRUE is missing)")
    if constraints.path_length == 0:
        raise UserError(f"{files[0]}: may not sign another authority (path length 0): make one below it that may")
    if parent.not_valid_after_utc <= datetime.now(timezone.utc):
        raise UserError(f"{files[0]}: has expired")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    """What all have; with the identifiers that strict programs ask for (RFC 5280, 4.2.1.1 and 4.2.1.2)."""
    made = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), begin, end)
    return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _key_of_issuer(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        named = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = issuer.public_key()
        assert isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey))
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(named)


def _may(*, signatures: bool = False, certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signatures, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=certificates, crl_sign=certificates, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: the authority's files must be readable") from error


def _certificate(pem: bytes, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise UserError(f"{path}: not a certificate in PEM form: {error}") from error


def _signing_key(pem: bytes, path: Path) -> _SigningKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a private key in PEM form, or an encrypted one: {error}") from error
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise UserError(f"{path}: only keys on elliptic curves and RSA keys are taken")
    return key
