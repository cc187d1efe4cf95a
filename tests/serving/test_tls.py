"""TLS on both ports: who is trusted, who is let in, and what is refused before a start."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from models.errors import BadSetting
from serving.inference_proto import MESSAGES, SERVICE
from serving.keys import add_key
from serving.launch import Server, serve
from serving.settings import Settings
from serving.tls import check_protection, pinned, rest_options

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@dataclass(frozen=True)
class Certificates:
    """Files of one authority, of another, and of those they vouch for."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / f"{name}.pem"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    other.cert_pem.write_to_path(str(folder / "other_ca.pem"))
    old: dict[str, Any] = {"not_before": YESTERDAY - timedelta(days=9), "not_after": YESTERDAY}
    made = {
        "server": authority.issue_cert("127.0.0.1", "models.example"),
        "client": authority.issue_cert("client@models.example"),
        "expired": authority.issue_cert("client@models.example", **old),
        "stranger": other.issue_cert("client@models.example"),
    }
    for name, certificate in made.items():
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{name}.pem"))
    made["server"].private_key_pem.write_to_path(str(folder / "server_key.pem"))
    made["server"].cert_chain_pems[0].write_to_path(str(folder / "server_cert.pem"))
    made["client"].private_key_pem.write_to_path(str(folder / "client_key.pem"))
    return Certificates(folder)


@pytest.fixture(scope="module")
def secured(level: Path, files: Certificates) -> Iterator[Server]:
    with serve(
        [level], port=0, grpc_port=0, tls_certificate=files.server_cert, tls_key=files.server_key,
        client_ca=files.ca,
    ) as running:  # fmt: skip
        yield running


def ask_rest(server: Server, context: ssl.SSLContext) -> Any:
    with urllib.request.urlopen(f"{server.http}/v2", timeout=10, context=context) as answer:
        return json.load(answer)


def ask_grpc(server: Server, ca: Path | None, client: Path | None) -> bool:
    own = client.read_bytes() if client else None
    credentials = grpc.ssl_channel_credentials(ca.read_bytes() if ca else None, own, own)
    with grpc.secure_channel(server.grpc, credentials) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ServerLive",
            request_serializer=MESSAGES["ServerLiveRequest"].SerializeToString,
            response_deserializer=MESSAGES["ServerLiveResponse"].FromString,
        )
        return call(MESSAGES["ServerLiveRequest"](), timeout=10).live


def trusting(ca: Path | None, client: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if client:
        context.load_cert_chain(client)
    return context


def test_who_shows_a_certificate_of_the_authority_is_answered(
    secured: Server, files: Certificates
) -> None:
    assert secured.http.startswith("https://")
    assert ask_rest(secured, trusting(files.ca, files.client))["name"] == "fucina"
    assert ask_grpc(secured, files.ca, files.client)


@pytest.mark.parametrize("shown", [None, "stranger", "expired"])
def test_who_shows_none_or_a_wrong_one_is_not(
    secured: Server, files: Certificates, shown: str | None
) -> None:
    client = getattr(files, shown) if shown else None
    with pytest.raises((ssl.SSLError, urllib.error.URLError, ConnectionError)) as caught:
        ask_rest(secured, trusting(files.ca, client))
    assert not isinstance(caught.value, urllib.error.HTTPError)
    with pytest.raises(grpc.RpcError) as refused:
        ask_grpc(secured, files.ca, client)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE  # pyright: ignore[reportAttributeAccessIssue]
    test_who_shows_a_certificate_of_the_authority_is_answered(secured, files)


@pytest.mark.parametrize("ca", ["other_ca", None])
def test_a_client_that_does_not_know_the_authority_does_not_trust(
    secured: Server, files: Certificates, ca: str | None
) -> None:
    known = getattr(files, ca) if ca else None
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        ask_rest(secured, trusting(known, files.client))
    with pytest.raises(grpc.RpcError):
        ask_grpc(secured, known, files.client)


def test_the_launcher_trusts_this_certificate_only(secured: Server, files: Certificates) -> None:
    context = pinned(files.server_cert)
    context.load_cert_chain(files.client)
    assert ask_rest(secured, context)["name"] == "fucina"
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        ask_rest(secured, pinned(files.stranger))


def weak_clients(files: Certificates) -> Iterator[ssl.SSLContext]:
    """Clients of the versions and ciphers that uvicorn's own choice takes, or any server could."""
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2):
        weak = trusting(files.ca, files.client)
        weak.minimum_version, weak.maximum_version = version, version
        weak.set_ciphers("ECDHE+AES:!AESGCM:!AESCCM:@SECLEVEL=0")
        yield weak


def connects(client: ssl.SSLContext, server: ssl.SSLContext) -> bool:
    """Whether a handshake ends well, in memory."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(5):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return ours.version() is not None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_versions_and_weak_ciphers_are_refused(secured: Server, files: Certificates) -> None:
    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lax.minimum_version = ssl.TLSVersion.TLSv1
    lax.set_ciphers("ALL:@SECLEVEL=0")
    lax.load_cert_chain(files.server_cert, files.server_key)
    for weak in weak_clients(files):
        assert connects(weak, lax)  # so that what follows is the server's doing
        with pytest.raises(urllib.error.URLError) as caught:
            ask_rest(secured, weak)
        assert isinstance(caught.value.reason, (ssl.SSLError, ConnectionError))


def test_new_versions_are_taken(secured: Server, files: Certificates) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        new = trusting(files.ca, files.client)
        new.minimum_version, new.maximum_version = version, version
        assert ask_rest(secured, new)["name"] == "fucina"


def test_plain_requests_get_no_answer(secured: Server) -> None:
    with pytest.raises(OSError):  # noqa: PT011  # closed or reset, as the machine will
        urllib.request.urlopen(secured.http.replace("https", "http") + "/v2", timeout=5)
    with grpc.insecure_channel(secured.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ServerLive")
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=5)


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "key alone": ({"tls_key": "server_key"}, "--tls-key alone.*give --tls-certificate and"),
    "certificate alone": ({"tls_certificate": "server_cert"}, "--tls-certificate alone"),
    "client CA alone": ({"client_ca": "ca"}, "--client-ca alone"),
    "another's key": (
        {"tls_certificate": "server_cert", "tls_key": "client_key"}, "do not fit each other",
    ),
    "swapped": ({"tls_certificate": "server_key", "tls_key": "server_cert"}, "cannot be used"),
    "no file": (
        {"tls_certificate": "nowhere", "tls_key": "server_key"},
        "--tls-certificate .*nowhere.pem cannot be read: got No such file",
    ),
    "a key for a CA": (
        {"tls_certificate": "server_cert", "tls_key": "server_key", "client_ca": "server_key"},
        "client CA .* cannot be used",
    ),
    "pass phrase": (
        {"tls_certificate": "server_cert", "tls_key": "encrypted"}, "key is encrypted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_in_one_line_before_the_start(
    level: Path, files: Certificates, case: str
) -> None:
    from cryptography.hazmat.primitives import serialization

    if not files.encrypted.exists():
        key = serialization.load_pem_private_key(files.server_key.read_bytes(), None)
        files.encrypted.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )  # fmt: skip
    names, said = REFUSED[case]
    given: dict[str, Any] = {field: getattr(files, name) for field, name in names.items()}
    with pytest.raises(BadSetting, match=said) as caught, serve([level], port=0, **given):
        pass
    assert "\n" not in str(caught.value)


def test_rest_is_not_served_plain_beside_grpc_with_tls(files: Certificates) -> None:
    settings = Settings(tls_certificate=files.server_cert, tls_key=files.server_key)
    with pytest.raises(BadSetting, match="REST would be served without TLS"):
        check_protection(settings, ["bentoml", "serve"])
    check_protection(settings, ["bentoml", "serve", *rest_options(settings)])
    check_protection(Settings(), ["bentoml", "serve"])


def test_a_check_goes_over_tls_with_keys(level: Path, files: Certificates, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    add_key(keys, "ada")
    before = keys.read_bytes()
    options = {
        "--port": 0, "--grpc-port": 0, "--tls-certificate": files.server_cert,
        "--tls-key": files.server_key, "--client-ca": files.ca, "--api-keys": keys,
    }  # fmt: skip
    command = [sys.executable, "-m", "flows", "serve", str(level), "--check"]
    command += [str(word) for option in options.items() for word in option]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "give --check-certificate" in refused.stderr
    command += ["--check-certificate", str(files.client)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "recorded answers reproduced over REST" in done.stdout
    assert "served at https://" in done.stdout
    assert keys.read_bytes() == before
    assert "fucina_" not in done.stdout + done.stderr
