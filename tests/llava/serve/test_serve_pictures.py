import asyncio
import base64
import io

import httpx
import pytest
from PIL import Image

from llava.errors import DataError
from llava.serve import web
from llava.serve.web import ImageLimits, fetch, is_public, read_image, rewrite

HOSTS = ImageLimits(url_hosts=frozenset({"pictures.example"}), fetch_timeout_s=2)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def file(picture):
    return png(picture)


def fetched(url, handler, limits=HOSTS, addresses=("93.184.216.34",)):
    async def resolver(host, port):
        return list(addresses)

    transport = httpx.MockTransport(handler)
    return asyncio.run(fetch(url, limits, resolver=resolver, transport=transport))


def test_fetch_goes_to_the_address_that_was_checked(file):
    seen = []

    def handler(request):
        seen.append(request)
        return httpx.Response(200, content=file)

    assert fetched("https://Pictures.example/a.png?x=1", handler) == file
    assert str(seen[0].url) == "https://93.184.216.34/a.png?x=1"
    assert seen[0].headers["host"] == "pictures.example"
    assert seen[0].extensions["sni_hostname"] == "pictures.example"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0",
        "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b:1::1",
        "64:ff9b::7f00:1", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_private_addresses_are_never_connected_to(address):
    assert not is_public(address)
    with pytest.raises(DataError, match="private"):
        fetched("http://pictures.example/", unreachable, addresses=("93.184.216.34", address))


def unreachable(request):
    raise AssertionError("nothing may be fetched")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://other.example/", "not on the list"),
        ("http://pictures.example.evil.example/", "not on the list"),
        ("http://127.0.0.1/", "not on the list"),
        ("http://2130706433/", "not on the list"),
        ("http://pictures.example:22/", "port 22"),
        ("http://pictures.example:99999/", "not a URL"),
        ("http://user:pw@pictures.example/", "without a user"),
        ("http://pictures.example@127.0.0.1/", "without a user"),
        ("ftp://pictures.example/", "must be http"),
        ("http://[::1/", "not a URL"),
        ("http:///etc/passwd", "not on the list"),
    ],
)
def test_hosts_outside_the_list_are_refused(url, reason):
    with pytest.raises(DataError, match=reason):
        fetched(url, unreachable)


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1/", "http://localhost/", "file:///etc/passwd", "//other.example/", "/again"],
)
def test_redirects_are_checked_and_bounded(target):
    def handler(request):
        assert request.url.host == "93.184.216.34"
        return httpx.Response(302, headers={"Location": target})

    with pytest.raises(DataError):
        fetched("http://pictures.example/", handler)


def test_urls_are_off_unless_there_is_a_list():
    with pytest.raises(DataError, match="switched off"):
        fetched("http://pictures.example/", unreachable, ImageLimits())


def test_what_is_fetched_is_bounded():
    def large(request):
        return httpx.Response(200, content=b"x" * 2000)

    def missing(request):
        return httpx.Response(404)

    async def slow(request):
        await asyncio.sleep(30)

    small = ImageLimits(max_bytes=1000, url_hosts=HOSTS.url_hosts)
    with pytest.raises(DataError, match=r"larger than 1,000 bytes"):
        fetched("http://pictures.example/", large, small)
    with pytest.raises(DataError, match="answers 404"):
        fetched("http://pictures.example/", missing)
    quick = ImageLimits(url_hosts=HOSTS.url_hosts, fetch_timeout_s=0.05)
    with pytest.raises(DataError, match="longer than 0.05 s"):
        fetched("http://pictures.example/", slow, quick)


def test_a_picture_is_written_anew_without_metadata(picture):
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", exif=exif, comment=b"another secret")
    again = base64.b64decode(rewrite(buffer.getvalue(), ImageLimits()))
    assert b"secret" in buffer.getvalue()
    assert b"secret" not in again
    with Image.open(io.BytesIO(again)) as image:
        assert (image.format, image.size, len(image.getexif())) == ("PNG", (8, 6), 0)


def test_large_pictures_are_shrunk():
    raw = png(Image.new("L", (4000, 1000)))
    with Image.open(io.BytesIO(base64.b64decode(rewrite(raw, ImageLimits())))) as image:
        assert image.size == (2048, 512)


def bomb():
    """A PNG that claims 60,000 x 60,000 pixels."""
    raw = bytearray(png(Image.new("1", (1, 1))))
    raw[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a" + b"\xff" * 30,
        b"RIFF\0\0\0\0WEBP",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 1000,
    ],
)  # fmt: skip
def test_corrupt_and_foreign_files_are_refused(raw):
    with pytest.raises(DataError, match="cannot be read"):
        rewrite(raw, ImageLimits())


def test_hostile_sizes_are_refused_before_decoding(file):
    with pytest.raises(DataError, match="60000 x 60000|cannot be read"):
        rewrite(bomb(), ImageLimits())
    with pytest.raises(DataError, match="cannot be read"):
        rewrite(file[: len(file) // 2], ImageLimits())


def test_refusals_never_repeat_the_picture(file):
    encoded = base64.b64encode(file).decode()
    with pytest.raises(DataError) as caught:
        asyncio.run(read_image("data:image/png;base64,!" + encoded, ImageLimits()))
    assert encoded[:20] not in str(caught.value)


def test_names_are_resolved_by_the_system():
    assert "127.0.0.1" in asyncio.run(web.resolve("localhost", 80))


def test_public_addresses_are_public():
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1::1")
