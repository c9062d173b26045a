"""Where the assets of a STAC catalogue may lie, with which keys they are read, and what to set if that fails.

The hrefs of items are untrusted input: whoever edits a catalogue must not be able to read other files of
this machine or to send requests into its network.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import url2pathname

import pystac
import requests

from cropray.config.imagery import StacCollectionConfig, StacS3Config
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.rasters.scenes import read_scene
from cropray.storage import within
from cropray.types import FloatArray

_STORES = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_HOST = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*")
_AZURE = ".blob.core.windows.net"
# Hosts that serve objects and never send clients elsewhere, so that no request is spent on asking them.
_OBJECT_STORES = re.compile(
    r"(\.blob\.core\.windows\.net|(^|\.)s3(\.[a-z0-9-]+)?\.amazonaws\.com|(^|\.)storage\.googleapis\.com)$"
)
_REDIRECTS = 5
_SIGN_S = 60.0
_HEAD_S = (10, 30)  # to connect, and to wait for an answer


# What GDAL says where another attempt, or other settings, may help. Otherwise the file is gone or damaged.
_NOT_DEAD = re.compile(
    r"response code: (?!404|410)|curl|time[d-]* ?out|denied|forbidden|credential|access ?key|signature|aws|"
    "bucket|could not resolve|connect",
    re.IGNORECASE,
)
# For another attempt: GDAL keeps what it has read, and that a file could not be opened.
_NOT_CACHED = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/"}


class DeadAssetError(InputError):
    """A file that an item names and that cannot be read, now or later."""


class OutsideError(InputError):
    """An href that is refused unless the catalogue is trusted."""


@dataclass(frozen=True)
class Access:
    """How the assets of one catalogue are reached."""

    home: str  # path or URL of the catalogue
    key: str  # its settings, such as source.stac.s2
    config: StacCollectionConfig

    def read(
        self, item: pystac.Item, asset: pystac.Asset, grid: Grid, *, bilinear: bool, nodata: float | None
    ) -> FloatArray:
        """See `read_scene`. Raises InputError that names the item, and what to set where access is denied.

        It is a DeadAssetError for a file that is gone or damaged.
        """
        try:
            href = asset.get_absolute_href() or asset.href
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the STAC item {item.id}: cannot use the href {asset.href!r}: {error}"
            ) from error
        try:
            path = gdal_path(href, self.home, self.config.allow_outside)
            if not self.config.allow_outside:
                _check_redirects(path, self.home)
        except InputError as error:
            trust = f" If you trust the catalogue {self.home}, set {self.key}.allow_outside: true."
            kind = DeadAssetError if isinstance(error, DeadAssetError) else InputError
            raise kind(
                f"the STAC item {item.id}: cannot use the href {_shown(href)!r}: {error}"
                + (trust if isinstance(error, OutsideError) else "")
            ) from error
        options = s3_options(self.config.s3)
        for again in (False, True):
            signed = self._signed(path, renew=again)
            try:
                return read_scene(signed, grid, bilinear=bilinear, nodata=nodata, options=options)
            except InputError as error:
                reason = str(error).replace(_shown(path), _shown(href))
                problem = error
            if _is_dead(path, reason.replace(_shown(href), "")):
                raise DeadAssetError(f"the STAC item {item.id}: {reason}") from problem
            options = options | _NOT_CACHED
        reason = reason.removesuffix(".")
        raise InputError(f"the STAC item {item.id}: {reason}.{self._advice(href, reason)}") from problem

    def _signed(self, path: str, *, renew: bool) -> str:
        """The path with a signature that is valid now. The library keeps tokens until they expire."""
        if not self.config.sign or not path.startswith("/vsicurl/"):
            return path
        import planetary_computer

        if renew:
            planetary_computer.sas.TOKEN_CACHE.clear()
        url = path.removeprefix("/vsicurl/")
        try:
            # The library asks without a time limit.
            return f"/vsicurl/{within(_SIGN_S, lambda: planetary_computer.sign_url(url))}"
        except OSError as error:
            raise InputError(f"cannot get a signature for {url} from Planetary Computer: {error}") from error

    def _advice(self, href: str, text: str) -> str:
        scheme, key = urlsplit(href).scheme.lower(), self.key
        if scheme == "s3":
            return (
                f" Check the keys: set {key}.s3.profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                f"for a public bucket {key}.s3.unsigned: true. Set {key}.s3.endpoint if the bucket is not "
                f"Amazon's, and {key}.s3.requester_pays if you pay for the requests."
            )
        if scheme in _STORES:
            name = "GOOGLE_APPLICATION_CREDENTIALS" if scheme == "gs" else "AZURE_STORAGE_CONNECTION_STRING"
            return f" Check the credentials: set {name}."
        if not re.search(r"HTTP response code: (401|403|409)", text):
            return ""
        if self.config.sign:
            return f" {key}.sign is {self.config.sign}, but the server refused the signature."
        if (urlsplit(href).hostname or "").endswith(_AZURE):
            return f" The server wants signed URLs: set {key}.sign: planetary-computer."
        return (
            " The server wants a login: put it into ~/.netrc, or set GDAL_HTTP_BEARER or GDAL_HTTP_HEADERS. "
            f"Assets of Planetary Computer need {key}.sign: planetary-computer."
        )


def gdal_path(href: str, home: str, allow_outside: bool) -> str:
    """The path by which GDAL reads the asset at `href` of the catalogue at `home` (path or URL).

    Allowed are objects (s3, gs, az), https to public hosts and to the catalogue's own server, and files in
    and below the folder of a catalogue that is a file. With `allow_outside` also other files, http, and
    hosts of private networks. Raises OutsideError for what that would allow, InputError for everything else.
    """
    try:
        parts = urlsplit(href)
        _ = parts.port
    except ValueError as error:
        raise InputError(f"it is no URL: {error}.") from error
    scheme = parts.scheme.lower() if "://" in href else ""
    if scheme in ("", "file"):
        return _file(href if not scheme else url2pathname(parts.path), home, allow_outside)
    if re.search(r"[\s\\\x00-\x1f\x7f]", href):
        raise InputError("it has blanks, control characters or backslashes.")
    if scheme in _STORES:
        if not _BUCKET.fullmatch(parts.netloc) or len(parts.path) < 2:
            raise InputError(f"it names no object. Wanted is {scheme}://BUCKET/NAME.")
        return f"{_STORES[scheme]}{parts.netloc}{href.partition(parts.netloc)[2]}"
    if scheme not in ("https", "http"):
        raise InputError(f"{scheme}:// is not read. Wanted is a file, https, s3, gs or az.")
    # Nothing that one parser of URLs reads in another way than the next, such as %31 for 1.
    host = parts.hostname or ""
    if "@" in parts.netloc or not _HOST.fullmatch(host):
        raise InputError("it has no plain host name.")
    if not allow_outside and _origin(parts) != _origin(urlsplit(home)):
        if scheme == "http":
            raise OutsideError("http is not encrypted, and it is not the server of the catalogue.")
        _check_public(host)
    return f"/vsicurl/{href}"


def _is_dead(path: str, reason: str) -> bool:
    """Whether a file is gone or damaged, by what GDAL says.

    It never says why a request for a part of an open file failed: such a file counts as damaged only where
    its data arrived and cannot be decoded.
    """
    broke_off = path.startswith("/vsi") and "read the pixels" in reason and "Decoding error" not in reason
    return not broke_off and not _NOT_DEAD.search(reason)


@lru_cache(maxsize=4096)
def _check_redirects(path: str, home: str) -> None:
    """Raises InputError for a URL that is redirected to where an href may not point. GDAL follows all."""
    url = path.removeprefix("/vsicurl/")
    if url == path or _OBJECT_STORES.search(urlsplit(url).hostname or ""):
        return
    for _ in range(_REDIRECTS):
        try:
            answer = requests.head(url, allow_redirects=False, timeout=_HEAD_S)
        except requests.RequestException:
            return  # the request for the file tells what is wrong
        if not answer.is_redirect:
            return
        url = urljoin(url, answer.headers["location"])
        try:
            gdal_path(url, home, allow_outside=False)
        except InputError as error:
            raise type(error)(f"it is redirected to {_shown(url)!r}: {error}") from error
    raise InputError(f"it is redirected more than {_REDIRECTS} times.")


def _shown(href: str) -> str:
    """An href without its query, which may be a signature."""
    return href.partition("?")[0][:300]


def s3_options(config: StacS3Config) -> dict[str, str]:
    """GDAL options for s3:// paths. A profile comes before keys in the environment, as it was asked for."""
    options: dict[str, str] = {}
    if config.endpoint:
        url = urlsplit(config.endpoint)
        options |= {
            "AWS_S3_ENDPOINT": url.netloc,
            "AWS_HTTPS": "YES" if url.scheme == "https" else "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",  # few other providers have a host for each bucket
        }
    if config.profile:
        options |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": ""}
        options["AWS_PROFILE"] = config.profile
    if "AWS_SHARED_CREDENTIALS_FILE" in os.environ:  # GDAL has a name of its own for it
        options["CPL_AWS_CREDENTIALS_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"]
    if config.unsigned:
        options["AWS_NO_SIGN_REQUEST"] = "YES"
    if config.requester_pays:
        options["AWS_REQUEST_PAYER"] = "requester"
    return options


def _file(path: str, home: str, allow_outside: bool) -> str:
    try:
        resolved = Path(path).resolve()
        exists = resolved.is_file()  # not so what GDAL takes for more: /vsi…, XML, prefixes, devices
    except (OSError, ValueError) as error:  # too long, or with a null character
        raise DeadAssetError("there is no such file.") from error
    if not allow_outside:
        if "://" in home and not home.startswith("file://"):
            raise OutsideError("it is a file of this machine, but the catalogue is not.")
        folder = Path(home.removeprefix("file://")).resolve().parent
        if not resolved.is_relative_to(folder):
            raise OutsideError(f"it is not below {folder}, the folder of the catalogue.")
    if not exists:
        raise DeadAssetError("there is no such file.")
    return str(resolved)


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    default = {"https": 443, "http": 80}.get(parts.scheme.lower())
    return parts.scheme.lower(), parts.hostname, parts.port or default


def _check_public(host: str) -> None:
    try:
        private = [address for address in _addresses(host) if not address.is_global]
    except OSError:
        return  # a proxy may know the name, and else the request fails too
    if private:
        raise OutsideError(f"{host} is {private[0]}, which is not on the public internet.")


@lru_cache(maxsize=1024)
def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    def found() -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        for *_, (name, *_rest) in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP):
            address = ipaddress.ip_address(str(name).partition("%")[0])
            yield getattr(address, "ipv4_mapped", None) or address

    return list(found())
