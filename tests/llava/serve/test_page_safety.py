"""What the started page lets in and gives out, over HTTP as a stranger would try it."""

import contextlib
import io
import json
import os
import socket
import time

import pytest
import requests
from PIL import Image, PngImagePlugin

from llava.errors import ConfigError
from llava.serve import gradio_web_server, web
from llava.serve.chat import (
    DAY_S,
    ENGLISH_TEXT,
    PageSettings,
    PageText,
    save_images,
    start_sweeper,
    sweep_images,
)
from llava.serve.gradio_web_server import terms
from llava.serve.web import ImageLimits, clean

ORIENTATION, GPS = 0x0112, 0x8825
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


def jpeg_with_metadata(size=(40, 20)):
    """A picture as a phone takes it: lying on its side, with the place where it was taken."""
    image = Image.new("RGB", size, (200, 10, 10))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010E] = "secret description"
    exif.get_ifd(GPS)[1] = "N"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, icc_profile=b"secret profile", comment=b"secret comment")
    return buffer.getvalue()


def png(size=(8, 6), **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (250, 30, 30)).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.fixture
def open_page(tmp_path, monkeypatch):
    """Start the page with its guard; return its address and its log folder."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    log_dir = tmp_path / "logs"
    log_dir.mkdir()
    with contextlib.ExitStack() as stack:

        def start(proxies="", **limits):
            monkeypatch.setenv("FORWARDED_ALLOW_IPS", proxies)
            settings = PageSettings("http://127.0.0.1:9", log_dir=log_dir, **limits)
            demo = gradio_web_server.build_demo(False, tmp_path / "shown", settings=settings)
            stack.callback(demo.close, verbose=False)
            _, url, _ = demo.queue(api_open=False).launch(
                server_name="127.0.0.1",
                prevent_thread_lock=True,
                **gradio_web_server.launch_options(settings),
            )
            return url + "gradio_api/"

        yield start, log_dir


def upload(api, *files, **options):
    parts = [("files", (name, raw)) for name, raw in files]
    return requests.post(api + "upload", files=parts, timeout=20, **options)


def stored(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_upload_is_turned_and_stored_without_metadata_under_its_hash(open_page, tmp_path):
    start, _ = open_page
    api = start()
    given = upload(api, ("../../../etc/cron.d/evil name.jpg", jpeg_with_metadata()))
    assert given.status_code == 200, given.text
    (path,) = given.json()
    assert os.path.realpath(path).startswith(str(tmp_path / "cache"))
    assert "evil" not in path
    # examples aside, what was uploaded is the only file, and it holds pixels alone
    raw = open(path, "rb").read()
    assert b"secret" not in raw
    with Image.open(io.BytesIO(raw)) as image:
        assert image.format == "PNG"
        assert image.size == (20, 40)
        assert not image.getexif()
        assert "icc_profile" not in image.info
    served = requests.get(api + "file=" + path, timeout=20)
    assert served.content == raw


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (SVG, "cannot be read"),
        (b"", "cannot be read"),
        (b"GIF89a", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 100, "cannot be read"),
        (png()[:50], "cannot be read"),
        (png((101, 100)), "101 x 100 pixels"),
        (b"x" * 5000, "5,000 bytes"),
    ],
    ids=["svg", "empty", "gif head", "no png", "cut", "pixels", "bytes"],
)
def test_hostile_uploads_are_refused_with_the_reason(open_page, tmp_path, raw, reason):
    start, _ = open_page
    api = start(images=ImageLimits(max_bytes=4000, max_pixels=10_000, max_images=2))
    before = stored(tmp_path)
    refused = upload(api, ("a.png", raw))
    assert refused.status_code == 400
    assert "files[0]" in refused.text
    assert reason in refused.text
    assert "Traceback" not in refused.text
    assert stored(tmp_path) == before


def test_number_and_size_of_an_upload(open_page, tmp_path):
    start, _ = open_page
    api = start(images=ImageLimits(max_bytes=4000, max_images=2))
    assert upload(api, *[("a.png", png())] * 2).status_code == 200
    before = stored(tmp_path)
    refused = upload(api, *[("a.png", png())] * 3)
    assert refused.status_code == 400
    assert refused.text.startswith("Pictures in one question: 2 at most.")
    assert upload(api, ("a.png", b"x" * 200_000)).status_code == 413
    assert upload(api).status_code == 400
    raw = requests.post(api + "upload", data=b"--x", timeout=20)
    assert raw.status_code == 400
    cut = {"Content-Type": "multipart/form-data; boundary=x"}
    raw = requests.post(api + "upload", data=b"--x\r\nnonsense", headers=cut, timeout=20)
    assert raw.status_code == 400
    assert stored(tmp_path) == before


def test_a_slow_upload_is_given_up(open_page, monkeypatch):
    start, _ = open_page
    api = start()
    monkeypatch.setattr(web, "BODY_TIMEOUT_S", 0.2)
    host, port = api.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
        )
        assert b" 408 " in line.recv(1000)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "README.md",
        "http://example.com/",
        "https:%2f%2fexample.com",
        "//example.com/",
        "file:///etc/passwd",
        "%00",
        "\\\\host\\share",
        "{logs}/2020-01-01-conv.json",
        "{cache}/../logs/2020-01-01-conv.json",
        "{cache}/x/..%2f..%2flogs/2020-01-01-conv.json",
        "{cache}/link/2020-01-01-conv.json",
    ],
)
def test_no_file_but_uploads_is_given_out(open_page, tmp_path, path):
    start, log_dir = open_page
    (log_dir / "2020-01-01-conv.json").write_text("secret votes", "utf-8")
    api = start()
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "link").symlink_to(log_dir)
    path = path.format(logs=log_dir, cache=tmp_path / "cache")
    host, port = api.split("/")[2].split(":")
    for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/gradio_api/proxy="):
        # not with `requests`, which would resolve the dots itself
        with socket.create_connection((host, int(port)), timeout=20) as line:
            line.sendall(f"GET {route}{path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda line=line: line.recv(65536), b""))
        status = int(answer.split(b" ", 2)[1])
        assert 400 <= status < 500, answer[:200]
        assert b"secret votes" not in answer
        assert b"root:" not in answer


def join(api, data, **extra):
    body = {"fn_index": 1, "session_hash": "s", "data": data, **extra}
    return requests.post(api + "queue/join", json=body, timeout=20)


@pytest.mark.parametrize(
    "picture",
    [
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "../../etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}},
        {"path": "https://example.com/a.png", "meta": {"_type": "gradio.FileData"}},
        {"path": 7},
        {"url": "http://169.254.169.254/latest", "meta": {"_type": "gradio.FileData"}},
        {"url": "data:image/png;base64,AAAA"},
        [[{"a": {"path": "/etc/shadow"}}]],
    ],
)
def test_a_question_may_only_name_pictures_that_were_uploaded(open_page, picture):
    start, _ = open_page
    refused = join(start(), [None, "Q", picture, "Default"])
    assert refused.status_code in (400, 403), refused.text
    assert "body.data[2]" in refused.json()["detail"]


def test_malformed_questions(open_page):
    start, _ = open_page
    api = start(max_body_bytes=10_000)
    for body in (b"{", b"[]", b"\xff", b'"x"', b"[" * 5000, b'{"data": [NaN]}'):
        refused = requests.post(api + "queue/join", data=body, timeout=20)
        assert refused.status_code == 400, body
        assert "JSON" in refused.json()["detail"]
    assert join(api, ["x" * 20_000]).status_code == 413
    for body in ({}, {"data": "x"}, {"fn_index": "x", "data": []}, {"fn_index": 999, "data": []}):
        refused = requests.post(api + "queue/join", json=body, timeout=20)
        assert 400 <= refused.status_code < 500, (body, refused.status_code, refused.text)
        assert "Traceback" not in refused.text


def ask_page(api, index, data):
    """Press a button; return the last event."""
    joined = join(api, data, fn_index=index)
    assert joined.status_code == 200, joined.text
    with requests.get(api + "queue/data?session_hash=s", stream=True, timeout=20) as events:
        for line in events.iter_lines():
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if event["msg"] == "process_completed":
                    return event
    raise AssertionError("no answer")


def sent(text, picture=None):
    """What the page sends with a question: language, both sides, comparing, the question."""
    return [ENGLISH_TEXT.code, None, None, False, text, picture, "Default"]


def handler_index(api, name):
    config = requests.get(api.replace("gradio_api/", "config"), timeout=20).json()
    return next(d["id"] for d in config["dependencies"] if d["api_name"] == name)


def shown_files(event):
    """The files that an event asks the browser to show."""
    found = []

    def walk(value):
        if isinstance(value, dict):
            found.extend([value["path"]] if isinstance(value.get("path"), str) else [])
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                walk(each)

    walk(event["output"])
    return found


def test_uploads_and_examples_can_be_asked_about(open_page, tmp_path):
    start, _ = open_page
    (tmp_path / "shown" / "examples").mkdir(parents=True)
    (tmp_path / "shown" / "examples" / "a.png").write_bytes(png())
    api = start()
    (uploaded,) = upload(api, ("a.jpg", jpeg_with_metadata())).json()
    example = shown_files(ask_page(api, handler_index(api, "choose"), [0, "en"]))[0]
    for path in (uploaded, example):
        assert requests.get(api + "file=" + path, timeout=20).ok
        picture = {"path": path, "url": api + "file=" + path, "meta": {"_type": "gradio.FileData"}}
        shown = [{"image": picture, "caption": None}]
        index = handler_index(api, "send")
        event = ask_page(api, index, ["en", None, None, False, "What?", shown, "Default"])
        assert event["success"], event
        (thumbnail,) = shown_files(event)
        assert requests.get(api + "file=" + thumbnail, timeout=20).ok


@pytest.mark.parametrize("value", [-1, 10**30, "x", None, [1], {"a": 1}])
def test_wrong_parameters_never_give_a_traceback(open_page, value):
    start, _ = open_page
    api = start()
    assert ask_page(
        api, handler_index(api, "send"), ["en", None, None, False, "Q", None, "Default"]
    )["success"]
    event = ask_page(api, handler_index(api, "answer"), ["en", None, value, value, value, value])
    text = json.dumps(event)
    assert "Traceback" not in text
    assert 'File "' not in text


def test_routes_that_the_page_does_not_need_are_closed(open_page):
    start, _ = open_page
    api = start()
    root = api.removesuffix("gradio_api/")
    for path in ("monitoring", "monitoring/summary", "login/", "gradio_api/proxy=http://x/"):
        assert requests.get(root + path, timeout=20).status_code == 404, path
    for path in ("component_server", "run/add_text", "call/add_text", "stream/x"):
        assert requests.post(api + path, json={"data": []}, timeout=20).status_code == 404, path
    assert requests.get(api + "info", timeout=20).ok
    assert requests.get(root, timeout=20).ok


def test_a_client_may_ask_only_so_often(open_page):
    start, _ = open_page
    api = start(per_minute=3)
    ask = [join(api, sent("Q")).status_code for _ in range(3)]
    assert ask == [200] * 3
    refused = join(api, sent("Q"))
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert "Too many requests" in refused.json()["detail"]
    # what a client says of its own address is not believed
    assert upload(api, ("a.png", png()), headers={"X-Forwarded-For": "9.9.9.9"}).status_code == 429


def test_refusals_are_in_the_browsers_language(open_page):
    start, _ = open_page
    texts = {"picture_refused": "Slika do {mib} MiB.", "too_often": "Pokušajte za {seconds} s."}
    languages = {"en": ENGLISH_TEXT, "hr": PageText("hr", "hrvatski", texts)}
    api = start(per_minute=1, languages=languages)
    croatian = {"Accept-Language": "hr-HR,hr;q=0.9,en;q=0.8"}
    refused = upload(api, ("a.svg", SVG), headers=croatian)
    assert refused.status_code == 400
    assert refused.text.startswith("Slika do 10 MiB. (files[0]")
    again = upload(api, ("a.svg", SVG), headers=croatian)
    assert again.status_code == 429
    assert again.text.startswith("Pokušajte za ")


def test_a_trusted_proxy_says_who_the_client_is(open_page):
    start, _ = open_page
    api = start("127.0.0.1", per_minute=1)
    clients = [{"X-Forwarded-For": f"9.9.9.{number}"} for number in (1, 2, 2)]
    codes = [upload(api, ("a.png", png()), headers=client).status_code for client in clients]
    assert codes == [200, 200, 429]


def test_stored_pictures_are_deleted_in_time(tmp_path):
    save_images(tmp_path, [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9))])
    old, new = sorted((tmp_path / "serve_images").rglob("*.jpg"))
    (tmp_path / "2020-01-01-conv.json").write_text("{}", "utf-8")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep.jpg").write_bytes(b"x")
    (tmp_path / "serve_images" / "link").symlink_to(outside)
    now = time.time()
    for path in (old, outside / "keep.jpg"):
        os.utime(path, (now - 31 * DAY_S,) * 2)
    assert sweep_images(tmp_path, 30 * DAY_S, now) == 1
    assert not old.exists()
    assert new.exists()
    assert (outside / "keep.jpg").exists()
    assert sweep_images(tmp_path, 30 * DAY_S, now + 31 * DAY_S) == 1
    assert not new.parent.exists()
    assert (tmp_path / "2020-01-01-conv.json").exists()


def test_the_sweep_begins_with_the_page(tmp_path, wait_for):
    save_images(tmp_path, [Image.new("RGB", (8, 8))])
    (path,) = (tmp_path / "serve_images").rglob("*.jpg")
    os.utime(path, (0, 0))
    start_sweeper(tmp_path, 0).set()
    assert path.exists()
    stop = start_sweeper(tmp_path, DAY_S)
    wait_for(lambda: not path.exists())
    stop.set()


def test_the_notice_says_how_long(tmp_path):
    assert "deleted: 30." in terms(ENGLISH_TEXT, 30)
    assert "deleted: 7." in str(
        gradio_web_server.build_demo(False, settings=PageSettings(keep_days=7)).get_config_file()
    )


@pytest.mark.parametrize(
    "flags", [["--max-images=0"], ["--keep-days=-1"], ["--keep-days=nan"], ["--rate-limit=-1"]]
)
def test_flags_out_of_range_are_refused(flags):
    with pytest.raises(ConfigError, match=flags[0].partition("=")[0]):
        gradio_web_server.settings_from(gradio_web_server.build_parser().parse_args(flags))


def test_nothing_but_pixels_is_left():
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "secret")
    for raw in (png(pnginfo=info, icc_profile=b"secret"), jpeg_with_metadata()):
        assert b"secret" in raw
        assert b"secret" not in clean(raw, ImageLimits())
