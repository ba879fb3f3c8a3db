"""The gateway's certificate: two PEM files, read anew when they change, so that a renewed Secret needs no restart."""

import asyncio
import hashlib
import logging
import ssl
from pathlib import Path

from quire_api.errors import UserError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0


class BadCertificate(UserError):
    """The certificate or its key cannot be read, or they do not belong together."""


class Certificate:
    """`context` always presents what was read last without fault; connections that exist keep theirs.

    Raises:
        BadCertificate: there is nothing to begin with.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain = chain
        self._key = key
        self._seen = self._digest()
        self.context = _context(chain, key)

    def look(self) -> bool:
        """Take in files that have changed, and say whether there were any.

        Raises:
            BadCertificate: what is there now cannot be used; the former certificate stays.
        """
        found = self._digest()
        if found == self._seen:
            return False
        # Tried aside first: a context that was given half a pair would refuse every client.
        _context(self._chain, self._key)
        self.context.load_cert_chain(self._chain, self._key)
        self._seen = found
        return True

    async def follow(self) -> None:
        """Look for ever. The files of a mounted Secret change together, by a link that is swapped."""
        trouble = ""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                if self.look():
                    log.info("the certificate in %s was renewed", self._chain)
                trouble = ""
            except BadCertificate as error:
                if str(error) != trouble:
                    log.warning("%s The former certificate is still in use.", error)
                trouble = str(error)

    def _digest(self) -> bytes:
        try:
            return hashlib.sha256(self._chain.read_bytes() + b"\0" + self._key.read_bytes()).digest()
        except OSError as error:
            raise BadCertificate(f"{error.filename} cannot be read: {error.strerror}. Check the TLS Secret.") from None


def _context(chain: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A key with a passphrase would be asked for at the terminal.
        context.load_cert_chain(chain, key, password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise BadCertificate(
            f"{chain} and {key} are no certificate with its key ({reason}). Put both into the TLS Secret as PEM."
        ) from None
    return context
