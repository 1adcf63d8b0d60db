"""Joining a controller with a token, and renewing a certificate: the side of devices and users.

What is sent is sent only after the controller has proved that it is the one that made the token, or the one enrolled at.
Imports the `cryptography` library: a process that idles should not.
"""

from __future__ import annotations

import queue
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgefarm.channels import TLS_OPTIONS, as_error
from edgefarm.credentials import (
    Identity,
    JoinToken,
    fingerprint_of,
    forget_identity,
    load_identity,
    load_key,
    parse_address,
    parse_token,
    proof_of_key,
    save_identity,
    save_key,
)
from edgefarm.errors import Denied, PeerError, ProtocolError, Unreachable, UserError
from edgefarm.v1 import fleet_pb2, fleet_pb2_grpc

_CONNECT_S, _ANSWER_S = 10.0, 30.0
_DER = 2  # `_ssl.ENCODING_DER`


@dataclass(frozen=True)
class Renewed:
    """A renewed identity, and the controller's clock."""

    identity: Identity
    unix_ms: int


def enroll(controller: str, token: str, name: str, folder: Path, kind: str = "") -> Identity:
    """Joins a controller; the identity is kept in `folder`.

    Where there is one already it is renewed, and the token is not used. One that the controller refuses for good makes place for a
    new one, with a new key.

    Args:
        controller: HOST:PORT of its join port.
        name: wished for; empty: the token's.
        kind: device or user, so that a token for the other one is not used up; empty: whatever it is for.

    Raises:
        UserError: the token, the kind or the name is refused, is another controller's, or `folder` holds another identity.
        Unreachable: nobody answers there.
        StorageError: the folder can't be written.
    """
    wanted = parse_token(token)
    host, port = parse_address(controller)
    address = f"{host}:{port}"
    if (known := _known(folder, address, name, wanted)) is not None:
        return known
    authority_pem = _authority(host, port, wanted)
    key = _key(folder)
    request = fleet_pb2.EnrollRequest(token=token.strip(), name=name, csr_pem=_request(key, name), kind=kind)
    with _join_port(address, authority_pem) as channel:
        try:
            reply = fleet_pb2_grpc.FleetStub(channel).Enroll(request, timeout=_ANSWER_S)  # type: ignore[no-untyped-call]
        except grpc.RpcError as status:
            error = as_error(status)
            hint = ": is this its join port? The next one serves those who have joined" if type(error) is Unreachable else ""
            raise (UserError if isinstance(error, PeerError) else type(error))(f"controller {address}: {error}{hint}") from status
    if kind not in ("", reply.kind):  # an older controller does not look at the kind
        raise UserError(f"controller {address}: this token was for a {reply.kind}, not for a {kind}, and is used up: ask for another")
    begin, end = _life(reply.certificate_pem)
    identity = Identity(
        reply.kind, reply.name, address, _main(reply.main_address, host), load_key(folder), reply.certificate_pem, authority_pem, begin, end
    )
    save_identity(folder, identity)
    return identity


def _known(folder: Path, address: str, name: str, token: JoinToken) -> Identity | None:
    """The identity in the folder, renewed; None if there is none, or the controller refuses it for good. Raises UserError for another."""
    known = load_identity(folder)
    if known is None:
        return None
    if known.controller != address or name not in ("", known.name):
        raise UserError(f"{folder}: is {known.kind} {known.name!r} at {known.controller} already: remove the folder to enroll anew")
    if fingerprint_of(ssl.PEM_cert_to_DER_cert(known.authority_pem)) != token.fingerprint:
        raise UserError(
            f"{folder}: is {known.kind} {known.name!r} of another authority than this token's: if the controller at {address} was set up "
            "anew, remove the folder to enroll anew"
        )
    try:
        return renew(folder).identity
    except Denied:
        forget_identity(folder)
        return None


def renew(folder: Path) -> Renewed:
    """Gets a fresh certificate for the same key, also after the old one has expired, and keeps it.

    Raises:
        UserError: nothing has enrolled here.
        Denied: the controller has shut this device or user out.
        Unreachable: it can't be reached, or is not the one that was enrolled at.
    """
    identity = load_identity(folder)
    if identity is None:
        raise UserError(f"{folder}: no identity: enroll first")
    answers: queue.SimpleQueue[fleet_pb2.RenewRequest] = queue.SimpleQueue()

    def steps() -> Iterator[fleet_pb2.RenewRequest]:
        yield fleet_pb2.RenewRequest(certificate_pem=identity.certificate_pem)
        yield answers.get(timeout=_ANSWER_S)

    with _join_port(identity.controller, identity.authority_pem) as channel:
        call = fleet_pb2_grpc.FleetStub(channel).Renew(steps(), timeout=_ANSWER_S)  # type: ignore[no-untyped-call]
        challenge = _next(call, identity)
        key = serialization.load_pem_private_key(identity.key_pem.encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        proof = proof_of_key(challenge.nonce, identity.certificate_pem.encode())
        answers.put(fleet_pb2.RenewRequest(signature=key.sign(proof, ec.ECDSA(hashes.SHA256()))))
        reply = _next(call, identity)
    begin, end = _life(reply.certificate_pem)
    main = _main(reply.main_address, parse_address(identity.controller)[0])
    renewed = replace(identity, certificate_pem=reply.certificate_pem, main=main, not_before_unix_ms=begin, not_after_unix_ms=end)
    save_identity(folder, renewed)
    return Renewed(renewed, reply.unix_ms)


def _next(call: Any, identity: Identity) -> Any:
    try:
        reply = next(call, None)
    except grpc.RpcError as status:
        error = as_error(status)
        raise type(error)(f"controller {identity.controller}: {error}") from status
    if reply is None:
        raise ProtocolError(f"controller {identity.controller}: ended the renewal half way")
    return reply


def _join_port(address: str, authority_pem: str) -> grpc.Channel:
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority_pem.encode()), options=list(TLS_OPTIONS))


def _main(told: str, host: str) -> str:
    """The main address: as told, on the host that we called where none is said."""
    return f"{host}{told}" if told.startswith(":") else told


def _authority(host: str, port: int, token: JoinToken) -> str:
    """The certificate that the token's fingerprint means, out of the chain that the server shows. Nothing is sent.

    That chain is not believed yet: the channel that is opened next does, to this certificate alone.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host.strip("[]"), port), _CONNECT_S) as raw, context.wrap_socket(raw) as connection:
            chain = _chain(connection)
    except OSError as error:
        raise Unreachable(f"controller {host}:{port}: {error}: is it running, and is this its join port?") from error
    for der in chain:
        if fingerprint_of(der) == token.fingerprint:
            return ssl.DER_cert_to_PEM_cert(der)
    raise UserError(
        f"controller {host}:{port}: is not the one that made this token (its authority has another fingerprint): nothing was sent; "
        "check the address, and make a token there"
    )


def _chain(connection: ssl.SSLSocket) -> list[bytes]:
    """The certificates that the server showed, DER. Public from Python 3.13 on; before, the same function of the object below."""
    if hasattr(connection, "get_unverified_chain"):
        return list(connection.get_unverified_chain())
    inner: Any = getattr(connection, "_sslobj")  # noqa: B009  (unknown to the type stubs)
    return [certificate.public_bytes(_DER) for certificate in inner.get_unverified_chain()]


def _key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """The folder's key, which is kept before anything is sent: a repeated try shows the same one."""
    pem = load_key(folder)
    if not pem:
        fresh = ec.generate_private_key(ec.SECP256R1())
        plain = serialization.NoEncryption()
        pem = fresh.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
        save_key(folder, pem)
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
    except ValueError as error:
        raise UserError(f"{folder}: its key is damaged: remove the folder and enroll anew") from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name or "edgefarm")])
    request = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _life(certificate_pem: str) -> tuple[int, int]:
    """UTC milliseconds."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    except ValueError as error:
        raise ProtocolError(f"the controller's answer holds no certificate: {error}") from error
    return int(certificate.not_valid_before_utc.timestamp() * 1000), int(certificate.not_valid_after_utc.timestamp() * 1000)
