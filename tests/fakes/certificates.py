"""Keys, requests and authorities for tests, made as a stranger would make them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

YEAR = timedelta(days=365)


def a_name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def a_request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return x509.CertificateSigningRequestBuilder(a_name("x")).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def a_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def write_authority(
    folder: Path,
    *,
    ca: bool = True,
    path_length: int | None = None,
    days: float = 3650,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
) -> tuple[Path, Path]:
    """A company's own authority, which began last year: (certificate, key) as files."""
    key, now = key or a_key(), datetime.now(timezone.utc)
    subject = a_name("Example Company Root")
    builder = x509.CertificateBuilder(
        subject, subject, key.public_key(), x509.random_serial_number(), now - YEAR, now + timedelta(days=days)
    ).add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    files = folder / "company.pem", folder / "company-key.pem"
    files[0].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return files
