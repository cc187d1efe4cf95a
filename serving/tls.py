"""TLS: what both ports are served with, checked before a server starts."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc

from models.errors import BadSetting
from serving.keys import read_keys
from serving.settings import Settings

# Of TLS 1.2; those of 1.3 are all sound. uvicorn's own choice is the ciphers of TLS 1.0.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def check_protection(settings: Settings, arguments: Sequence[str] | None = None) -> None:
    """Raise `BadSetting` unless the keys can be read, and TLS is as `check_tls` wants it."""
    if settings.api_keys is not None:
        read_keys(settings.api_keys)
    check_tls(settings, arguments)


def check_tls(settings: Settings, arguments: Sequence[str] | None = None) -> None:
    """Raise `BadSetting` unless certificate, key and client CA can be read and fit each other.

    `arguments` are those of a `bentoml serve`, of which the REST half takes its own.
    """
    certificate, key, ca = settings.tls_certificate, settings.tls_key, settings.client_ca
    if certificate is None or key is None:
        given = [name for name, path in _named(settings) if path is not None]
        if given:
            raise BadSetting(
                "TLS needs a certificate and its key", got=" and ".join(given) + " alone",
                fix="give --tls-certificate and --tls-key",
            )  # fmt: skip
        return
    for name, path in _named(settings):
        if path is not None:
            _read(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A pass phrase would be asked for on a terminal that a server has not.
        context.load_cert_chain(certificate, key, password=_no_pass_phrase)
    except ssl.SSLError as error:
        why = "do not fit each other" if "MISMATCH" in str(error) else "cannot be used"
        raise BadSetting(
            f"certificate {certificate} and key {key} {why}", got=error.reason or str(error),
            expected="PEM, of one key pair",
        ) from error  # fmt: skip
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise BadSetting(
                f"client CA {ca} cannot be used", got=error.reason or str(error),
                expected="PEM certificates",
            ) from error  # fmt: skip
    if arguments is not None and "--ssl-certfile" not in arguments:
        raise BadSetting(
            "REST would be served without TLS beside gRPC with it",
            fix=f"`fucina serve`, or `bentoml serve {' '.join(rest_options(settings))}`",
        )


def rest_options(settings: Settings) -> list[str]:
    """The options of `bentoml serve` that say the same."""
    if settings.tls_certificate is None:
        return []
    options = ["--ssl-certfile", str(settings.tls_certificate)]
    options += ["--ssl-keyfile", str(settings.tls_key), "--ssl-ciphers", CIPHERS]
    if settings.client_ca is not None:
        options += ["--ssl-ca-certs", str(settings.client_ca)]
        options += ["--ssl-cert-reqs", str(int(ssl.CERT_REQUIRED))]
    return options


def grpc_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """What a gRPC port is secured with; None without TLS."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    ca = settings.client_ca
    return grpc.ssl_server_credentials(
        [(settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())],
        root_certificates=ca.read_bytes() if ca else None,
        require_client_auth=ca is not None,
    )


def pinned(certificate: Path) -> ssl.SSLContext:
    """Trust this certificate and nothing else, for whoever holds the server's own file.

    It is asked by address, which a certificate need not name.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def _named(settings: Settings) -> list[tuple[str, Path | None]]:
    return [
        ("--tls-certificate", settings.tls_certificate),
        ("--tls-key", settings.tls_key),
        ("--client-ca", settings.client_ca),
    ]


def _read(name: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise BadSetting(f"{name} {path} cannot be read", got=error.strerror) from error


def _no_pass_phrase() -> str:
    raise BadSetting(
        "the TLS key is encrypted", expected="one without a pass phrase, readable by its owner only"
    )
