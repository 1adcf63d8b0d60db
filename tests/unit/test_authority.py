"""The controller's certificate authority."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from controller.authority import Authority
from edgefarm.credentials import DEVICE_SERVER_NAME, SERVER_NAME, fingerprint_of
from edgefarm.errors import Denied, StorageError, UserError
from tests.fakes.certificates import a_key, write_authority

NOW = datetime.now(timezone.utc).replace(microsecond=0)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def loaded(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_it_is_made_once_and_kept(tmp_path: Path) -> None:
    made = Authority(tmp_path / "authority")
    assert Authority(tmp_path / "authority").certificate_pem == made.certificate_pem
    assert stat.S_IMODE((tmp_path / "authority" / "key.pem").stat().st_mode) == 0o600
    assert len(made.fingerprint) == 32
    assert Authority(tmp_path / "other").fingerprint != made.fingerprint


def test_it_is_good_for_a_clock_of_1970(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    _, chain = authority.server(["farm.example", "10.0.0.1"])
    leaf, own = x509.load_pem_x509_certificates(chain)
    for certificate in (leaf, own):
        assert certificate.not_valid_before_utc == EPOCH
        assert certificate.not_valid_after_utc > NOW + timedelta(days=10 * 365)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SERVER_NAME, "farm.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]


def test_a_member_is_no_controller_and_no_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = loaded(authority.member(a_key().public_key(), "device", "pi", timedelta(days=30), NOW))
    authority.check_issued(certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:edgefarm:device:pi"]
    assert names.get_values_for_type(x509.DNSName) == [DEVICE_SERVER_NAME] != [SERVER_NAME]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ExtendedKeyUsageOID.CLIENT_AUTH in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert certificate.not_valid_after_utc == NOW + timedelta(days=30)


def test_its_certificates_are_what_strict_programs_ask_for(tmp_path: Path) -> None:
    """RFC 5280: key usage, identifiers of the own key and of the issuer's, serial numbers of their own."""
    above = write_authority(tmp_path)
    for made in (Authority(tmp_path / "own"), Authority(tmp_path / "below", above)):
        _, chain = made.server(["farm.example"])
        leaf, own = x509.load_pem_x509_certificates(chain)
        members = [loaded(made.member(a_key().public_key(), kind, "x", timedelta(days=30), NOW)) for kind in ("device", "user")]
        for certificate in (leaf, *members):
            extensions = certificate.extensions
            usage = extensions.get_extension_for_class(x509.KeyUsage)
            assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
            subject = own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
            assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == subject
            assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest != subject
        constraints = own.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
        usage = own.extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, False, True)
        serials = {c.serial_number for c in (leaf, own, *members)}
        assert len(serials) == 4
        assert min(serials).bit_length() > 100


def test_a_user_is_no_server(tmp_path: Path) -> None:
    certificate = loaded(Authority(tmp_path).member(a_key().public_key(), "user", "eve", timedelta(days=30), NOW))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert not names.get_values_for_type(x509.DNSName)
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_certificates_of_others_are_not_its(tmp_path: Path) -> None:
    mine, other = Authority(tmp_path / "mine"), Authority(tmp_path / "other")
    with pytest.raises(Denied, match="not of this controller"):
        mine.check_issued(loaded(other.member(a_key().public_key(), "device", "pi", timedelta(days=30), NOW)))


@pytest.mark.parametrize("key", [None, rsa.generate_private_key(65537, 2048)], ids=["elliptic", "rsa"])
def test_it_may_stand_below_the_users_own(tmp_path: Path, key: rsa.RSAPrivateKey | None) -> None:
    above = write_authority(tmp_path, key=key)
    made = Authority(tmp_path / "authority", above)
    own, company = loaded(made.certificate_pem), loaded(above[0].read_bytes())
    own.verify_directly_issued_by(company)
    assert own.not_valid_before_utc == EPOCH  # devices believe this one, and not what is above it
    assert made.fingerprint == fingerprint_of(own.public_bytes(serialization.Encoding.DER))
    above[1].unlink()  # the company's key may go away again
    assert Authority(tmp_path / "authority", above).fingerprint == made.fingerprint


def test_another_authority_above_is_not_taken_silently(tmp_path: Path) -> None:
    Authority(tmp_path / "authority")
    with pytest.raises(UserError, match="not by 'CN=Example Company Root'"):
        Authority(tmp_path / "authority", write_authority(tmp_path))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ca": False}, "CA:TRUE is missing"),
        ({"path_length": 0}, "may not sign another authority"),
        ({"days": -1}, "has expired"),
    ],
)
def test_an_authority_that_can_not_sign_is_refused(tmp_path: Path, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Authority(tmp_path / "authority", write_authority(tmp_path, **wrong))  # type: ignore[arg-type]
    assert not (tmp_path / "authority" / "certificate.pem").exists()


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    certificate, key = write_authority(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match=r"company-key\.pem: is not the key of"):
        Authority(tmp_path / "a", (certificate, write_authority(other)[1]))
    with pytest.raises(UserError, match=r"company\.pem: not a private key"):
        Authority(tmp_path / "a", (certificate, certificate))
    with pytest.raises(UserError, match=r"company-key\.pem: not a certificate"):
        Authority(tmp_path / "a", (key, key))
    with pytest.raises(UserError, match=r"absent\.pem: No such file"):
        Authority(tmp_path / "a", (tmp_path / "absent.pem", key))


def test_a_damaged_folder_is_said(tmp_path: Path) -> None:
    Authority(tmp_path / "a")
    Authority(tmp_path / "b")
    (tmp_path / "a" / "key.pem").write_bytes((tmp_path / "b" / "key.pem").read_bytes())
    with pytest.raises(UserError, match="does not belong to"):
        Authority(tmp_path / "a")
    (tmp_path / "b" / "key.pem").unlink()
    with pytest.raises(StorageError, match=r"key\.pem: No such file"):
        Authority(tmp_path / "b")
    (tmp_path / "c").write_text("a file")
    with pytest.raises(StorageError, match=r"/c"):
        Authority(tmp_path / "c")
