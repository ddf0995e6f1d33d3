"""The server's HTTP side on loopback, with a talker that needs no weights: jobs, limits, who may ask."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from conftest import listen_to_ctrl_c, tone, write_wav
from live_fake import FakeTalker, Running, Viewer, form, wait_until

from imtalker import InputError
from imtalker.cli import main
from imtalker.live.guard import Guard
from imtalker.live.server import serve
from imtalker.live.service import Service
from imtalker.media import VideoReader, load_audio, write_video


@pytest.fixture(scope="module")
def server():
    with Running(jobs=8, upload_bytes=2**20, seconds=5.0, pixels=300_000) as running:
        yield running


@pytest.fixture
def files(picture, speech, driving):
    return {name: (path.name, path.read_bytes()) for name, path in
            (("source", picture), ("audio", speech), ("driving", driving))}  # fmt: skip


def finished(server, job):
    """The last report of a job."""
    status, _, text = server.ask("GET", f"/v1/jobs/{job['id']}/events")
    assert status == 200
    reports = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: ")]
    assert reports[0]["id"] == job["id"]
    return reports[-1]


def left_behind(server):
    return [path for path in server.service.folder.rglob("*") if path.is_file()]


# ---------------------------------------------------------------------------------------------------------------- works


def test_health_page_and_description(server):
    assert server.ask("GET", "/health/live")[0] == server.ask("GET", "/health/ready")[0] == 200
    told = server.ask("GET", "/health")[2]
    assert told["state"] == "ready" and told["model"] == "fake" and told["key"] is False
    status, headers, page = server.ask("GET", "/")
    assert status == 200 and b"<html" in page and "default-src 'none'" in headers["content-security-policy"]
    paths = server.ask("GET", "/openapi.json")[2]["paths"]
    assert {"/v1/animate", "/v1/reenact", "/v1/sources", "/v1/rtc", "/v1/jobs/{name}/events", "/health"} <= set(paths)
    assert "audio" in json.dumps(paths["/v1/animate"]["post"]["requestBody"])
    status, _, told = server.ask("GET", "/nothing")
    assert status == 404 and "/nothing" in told["error"]


def test_metrics(server):
    text = server.ask("GET", "/metrics")[2].decode()
    for name in ("sessions", "frames_total", "answer_seconds_bucket", "jobs_waiting", "refused", "jobs_total"):
        assert f"imtalker_{name}" in text or name in ("refused", "jobs_total")


@pytest.mark.parametrize("kind, name, frames", [("animate", "audio", 33), ("reenact", "driving", 25)])
def test_a_job_from_upload_to_video(server, files, tmp_path, kind, name, frames):
    upload = {"source": files["source"], name: files[name]}
    status, headers, job = server.post(f"/v1/{kind}", upload, {"crop": "false"})
    assert status == 202 and job["state"] in ("waiting", "running") and headers["location"] == f"/v1/jobs/{job['id']}"
    report = finished(server, job)
    assert report["state"] == "done" and report["frames"] == report["of"] == frames
    status, headers, data = server.ask("GET", report["video"])
    assert status == 200 and headers["content-type"] == "video/mp4"
    (tmp_path / "video.mp4").write_bytes(data)
    assert sum(1 for _ in VideoReader(tmp_path / "video.mp4")) == frames
    if kind == "animate":
        assert abs(len(load_audio(tmp_path / "video.mp4")) / 640 - 33) < 1.1
    assert server.ask("DELETE", f"/v1/jobs/{job['id']}")[0] == 204
    assert server.ask("GET", f"/v1/jobs/{job['id']}")[0] == 404
    assert not left_behind(server)


def test_a_source_is_encoded_once_and_used_often(server, files):
    status, _, told = server.post("/v1/sources", {"source": files["source"]}, {"crop": "0"})
    assert status == 201 and told["size"] == [32, 32] and not left_behind(server)
    status, _, job = server.post(f"/v1/animate?source_id={told['id']}", {"audio": files["audio"]}, {"fps": "30"})
    assert status == 202 and finished(server, job)["state"] == "done"
    with server.live(source=told["id"]) as viewer:
        assert viewer.ready["type"] == "ready"
    assert server.ask("DELETE", f"/v1/sources/{told['id']}")[0] == 204
    assert server.ask("DELETE", f"/v1/sources/{told['id']}")[0] == 404
    server.ask("DELETE", f"/v1/jobs/{job['id']}")


def test_the_bundled_picture_is_there_to_try(server, files):
    status, _, job = server.post("/v1/animate?source_id=sample", {"audio": files["audio"]})
    assert status == 202 and finished(server, job)["state"] == "done"
    server.ask("DELETE", f"/v1/jobs/{job['id']}")
    assert server.ask("GET", "/sample.png")[0] == server.ask("GET", "/sample.wav")[0] == 200


# ------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    "change, values, words",
    [
        ({"audio": ("half.wav", b"RIFF\x24\x00\x00\x00WAVEfm")}, {}, "'half.wav'"),  # half a WAV header
        ({"audio": ("noise.wav", os.urandom(5000))}, {}, "'noise.wav'"),
        ({"source": ("page.png", b"<html>")}, {}, "page.png"),
        ({"audio": ("../../etc/passwd", b"")}, {}, "passwd"),
        ({}, {"crop": "true"}, "no face"),
    ],
    ids=["half a header", "noise", "no picture", "empty", "no face"],
)
def test_a_job_that_cannot_be_done_says_why(server, files, change, values, words):
    upload = {"source": files["source"], "audio": files["audio"], **change}
    status, _, job = server.post("/v1/animate", upload, {"crop": "false", **values})
    assert status == 202
    report = finished(server, job)
    assert (
        report["state"] == "failed" and words in report["error"] and str(server.service.folder) not in report["error"]
    )
    assert server.ask("GET", f"/v1/jobs/{job['id']}/video")[0] == 409
    server.ask("DELETE", f"/v1/jobs/{job['id']}")
    wait_until(lambda: not left_behind(server))


@pytest.mark.parametrize(
    "values, words",
    [({"seed": "-1"}, "seed"), ({"nfe": "many"}, "nfe"), ({"fps": "1e9"}, "fps"), ({"crop": "perhaps"}, "crop"),
     ({"colour": "red"}, "'colour'"), ({"seed": "1" * 5000}, "seed")],
    ids=["seed", "nfe", "fps", "crop", "unknown", "long"],
)  # fmt: skip
def test_wrong_options(server, files, values, words):
    upload = {"source": files["source"], "audio": files["audio"]}
    status, _, told = server.post("/v1/animate", upload, {"crop": "false", **values})
    assert status == 400 and words in told["error"]
    wait_until(lambda: not left_behind(server))


def test_wrong_forms(server, files):
    body, kind = form({"source": files["source"], "audio": files["audio"]}, {})
    for sent, its_kind, words in (
        (b"{}", "application/json", "form"),
        (body, "multipart/form-data", "form"),
        (body[: len(body) // 2], kind, "broke off"),
        (b"rubbish", kind, "damaged"),
        (form({"audio": files["audio"]}, {})[0], kind, "source"),
        (form({"virus": files["audio"]}, {})[0], kind, "'virus'"),
        (form({"audio": ("n" * 100_000, b"")}, {})[0], kind, "header"),
    ):
        status, _, told = server.ask("POST", "/v1/animate", sent, {"content-type": its_kind})
        assert status == 400 and words in told["error"], told
    wait_until(lambda: not list(server.service.folder.iterdir()))


def test_too_long_a_sound(server, files, tmp_path):
    long = write_wav(tmp_path / "long.wav", tone(6.0)).read_bytes()
    status, _, job = server.post("/v1/animate", {"source": files["source"], "audio": ("long.wav", long)}, {"crop": "0"})
    assert "5 seconds" in finished(server, job)["error"]
    server.ask("DELETE", f"/v1/jobs/{job['id']}")


def test_too_many_pixels(server):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (600, 600)).save(file, "PNG")
    status, _, told = server.post("/v1/sources", {"source": ("large.png", file.getvalue())}, {"crop": "0"})
    assert status == 400 and "600 x 600" in told["error"]
    assert not left_behind(server)


def test_too_many_pixels_of_a_driving_video(server, files, tmp_path):
    write_video(tmp_path / "large.mp4", [np.zeros((600, 600, 3), np.uint8)] * 3, 25)
    large = "large.mp4", (tmp_path / "large.mp4").read_bytes()
    _, _, job = server.post("/v1/reenact", {"source": files["source"], "driving": large}, {"crop": "0"})
    told = finished(server, job)["error"]
    assert "600 x 600" in told and "0.3 megapixels" in told
    server.ask("DELETE", f"/v1/jobs/{job['id']}")


def stored(server):
    return sum(path.stat().st_size for path in left_behind(server))


def test_a_gigabyte_is_refused_before_it_is_sent(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("POST", "/v1/animate")
    connection.putheader("content-type", "multipart/form-data; boundary=b")
    connection.putheader("content-length", str(2**30))
    connection.endheaders()
    answer = connection.getresponse()  # not a byte of it was sent
    assert answer.status == 413 and "1 MB" in json.loads(answer.read())["error"]
    connection.close()
    assert not left_behind(server)


def test_a_gigabyte_of_unknown_length_is_stored_up_to_the_limit_only(server):
    head = form({"source": ("big.png", b"")}, {})[0].split(b"\r\n\r\n")[0] + b"\r\n\r\n"
    chunk = bytes(2**16)
    most = sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/sources HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n"
            b"content-type: multipart/form-data; boundary=" + b"b" * 32 + b"\r\n\r\n"
        )
        try:
            connection.sendall(b"%x\r\n%b\r\n" % (len(head), head))
            while sent < 2**30:
                connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                sent += len(chunk)
                most = max(most, stored(server))
        except OSError:
            pass  # the server has hung up
        answer = b""
        try:
            answer = connection.recv(1000)
        except OSError:
            pass
    assert sent < 2**26 and most <= 2**20
    assert answer == b"" or b"413" in answer.split(b"\r\n")[0]
    wait_until(lambda: not left_behind(server))


def begin_upload(server, path):
    """A connection over which the beginning of a picture was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000\r\n".encode()
        + b"content-type: multipart/form-data; boundary=b\r\n\r\n"
        + b'--b\r\ncontent-disposition: form-data; name="source"; filename="a.png"\r\n\r\n'
        + bytes(5000)
    )
    wait_until(lambda: left_behind(server))
    return connection


def test_an_upload_that_breaks_off_leaves_nothing(server):
    begin_upload(server, "/v1/sources").close()
    wait_until(lambda: not list(server.service.folder.iterdir()))


def test_an_upload_that_comes_to_a_halt_is_ended_and_keeps_others_out_no_longer(files):
    upload = {"source": files["source"], "audio": files["audio"]}
    with Running(uploads=1, stalled_seconds=0.5) as server, begin_upload(server, "/v1/animate") as halted:
        status, headers, told = server.post("/v1/sources", {"source": files["source"]}, {"crop": "0"})
        assert status == 503 and headers["retry-after"] and "1 uploads" in told["error"]
        assert halted.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert not list(server.service.folder.iterdir())
        assert server.post("/v1/animate", upload, {"crop": "0"})[0] == 202


# --------------------------------------------------------------------------------------------------- the life of a job


def test_jobs_wait_in_turn_are_cancelled_refused_and_expire(files):
    upload = {"source": files["source"], "audio": files["audio"]}
    with Running(FakeTalker(seconds=0.05), jobs=3, keep_seconds=1.5) as server:
        jobs = [server.post("/v1/animate", upload, {"crop": "0"})[2] for _ in range(3)]
        status, headers, told = server.post("/v1/animate", upload, {"crop": "0"})
        assert status == 503 and headers["retry-after"] and "3 clips" in told["error"]
        assert server.ask("GET", f"/v1/jobs/{jobs[2]['id']}")[2]["state"] == "waiting"
        assert "imtalker_jobs_waiting 2.0" in server.ask("GET", "/metrics")[2].decode()  # the first one is being made
        for job in (jobs[0], jobs[2]):  # a running one and a waiting one
            assert server.ask("DELETE", f"/v1/jobs/{job['id']}")[0] == 204
        assert finished(server, jobs[1])["state"] == "done"
        wait_until(lambda: not len(server.service.jobs) and not list(server.service.folder.iterdir()))
        assert server.ask("GET", f"/v1/jobs/{jobs[1]['id']}")[0] == 404
        text = server.ask("GET", "/metrics")[2].decode()
        assert 'imtalker_jobs_total{state="cancelled"} 2.0' in text and "imtalker_jobs_waiting 0.0" in text


def test_uploads_count_and_fetched_clips_make_room(files):
    upload = {"source": files["source"], "audio": files["audio"]}
    with Running(jobs=2) as server:
        first, second = (server.post("/v1/animate", upload, {"crop": "0"})[2] for _ in range(2))
        assert finished(server, first)["state"] == finished(server, second)["state"] == "done"
        assert server.post("/v1/animate", upload, {"crop": "0"})[0] == 503  # both may still be wanted
        assert server.ask("GET", f"/v1/jobs/{second['id']}/video")[0] == 200
        with begin_upload(server, "/v1/animate"):
            wait_until(lambda: server.ask("GET", f"/v1/jobs/{second['id']}")[0] == 404)
            assert server.post("/v1/animate", upload, {"crop": "0"})[0] == 503
        assert server.ask("GET", f"/v1/jobs/{first['id']}/video")[0] == 200
        wait_until(lambda: server.post("/v1/animate", upload, {"crop": "0"})[0] == 202)


def test_a_picture_is_kept_while_its_face_is_live(files):
    with Running(keep_seconds=0.3) as server:
        keep = lambda: server.post("/v1/sources", {"source": files["source"]}, {"crop": "0"})[2]["id"]
        shown, other = keep(), keep()
        status = lambda name: server.ask("GET", f"/v1/sources/{name}/picture")[0]
        with server.live(source=shown):
            wait_until(lambda: other not in server.service.sources._kept)
            time.sleep(0.5)
            assert status(shown) == 200 and status(other) == 404
        wait_until(lambda: shown not in server.service.sources._kept)


def test_a_picture_that_is_not_there_is_told_before_anything_is_sent(server, files):
    status, _, told = server.post("/v1/animate?source_id=nobody", {"audio": files["audio"]})
    assert status == 404 and "source" in told["error"]


def test_a_live_face_keeps_its_pace_beside_a_job(files):
    upload = {"source": files["source"], "audio": files["audio"]}
    with Running(FakeTalker(seconds=0.005)) as server, server.live() as viewer:
        job = server.post("/v1/animate", upload, {"crop": "0"})[2]
        viewer.take_until(lambda: len(viewer.pictures) >= 40)
        assert len(viewer.pictures) >= 0.9 * len(viewer.sounds)
        assert finished(server, job)["state"] == "done"


def test_stopping_in_the_middle_of_a_job_leaves_nothing(files):
    server = Running(FakeTalker(seconds=0.1)).__enter__()
    server.post("/v1/animate", {"source": files["source"], "audio": files["audio"]}, {"crop": "0"})
    server.post("/v1/animate", {"source": files["source"], "audio": files["audio"]}, {"crop": "0"})
    wait_until(lambda: len(server.service.scheduler) > 1)
    folder = server.service.folder
    server.stop()
    assert not folder.exists() and server.service.state == "stopping"


# ------------------------------------------------------------------------------------------------------- who may ask


def test_headers_that_are_no_addresses_and_endless_boundaries_are_refused(server):
    for headers in ({"host": "[::1"}, {"origin": "http://["}):
        assert server.ask("GET", "/health", headers=headers)[0] == 400
    endless = {"content-type": "multipart/form-data; boundary=" + "b" * 300}
    assert server.ask("POST", "/v1/animate", b"--", headers=endless)[0] == 400


def test_json_that_comes_to_a_halt_is_given_up():
    with Running(stalled_seconds=0.3) as slow:
        with socket.create_connection(("127.0.0.1", slow.port), timeout=5) as client:
            client.sendall(b"POST /v1/rtc HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            assert b" 408 " in client.recv(100)


def test_an_empty_key_lets_nobody_in():
    with pytest.raises(ValueError, match="empty API key"):
        Guard(None, key="")


def test_pages_of_others_and_other_names_are_refused(server):
    own = f"http://127.0.0.1:{server.port}"
    ask = lambda **headers: server.ask("GET", "/health", headers=headers)
    assert ask(origin=own)[0] == 200
    for origin in (
        "https://evil.example",
        "null",
        f"http://localhost.evil.example:{server.port}",
        "http://127.0.0.1:1",
    ):
        status, _, told = ask(origin=origin)
        assert status == 403 and origin in told["error"]
    assert ask(host="evil.example")[0] == 403  # a name of theirs that leads here
    assert ask(host=f"localhost:{server.port}")[0] == 200
    with pytest.raises(Exception, match="403"):
        Viewer(server.port, {}, origin="https://evil.example")


def test_a_page_that_is_allowed(files):
    origin = "https://friend.example"
    with Running(key="secret", origins=(origin,)) as server:
        status, headers, _ = server.ask(
            "GET", "/v1/jobs/x", headers={"origin": origin, "authorization": "Bearer secret"}
        )
        assert status == 404 and headers["access-control-allow-origin"] == origin
        preflight = {"origin": origin, "access-control-request-method": "POST",
                     "access-control-request-headers": "authorization"}  # fmt: skip
        assert server.ask("OPTIONS", "/v1/animate", headers=preflight)[0] == 200
        status, headers, _ = server.ask("GET", "/v1/jobs/x", headers={"origin": origin})
        assert status == 401 and headers["access-control-allow-origin"] == origin  # the page can read why
        status, headers, _ = server.ask("GET", "/v1/jobs/x", headers={"origin": "https://evil.example"})
        assert status == 403 and "access-control-allow-origin" not in headers


def test_the_key():
    with Running(key="secret") as server:
        assert server.ask("GET", "/health")[2]["key"] is True and server.ask("GET", "/")[0] == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            for path in ("/v1/jobs/x", "/metrics"):
                status, _, told = server.ask("GET", path, headers=headers)
                assert status == 401 and "Bearer" in told["error"]
        assert server.ask("GET", "/metrics", headers={"authorization": "Bearer secret"})[0] == 200
        assert "key" in Viewer(server.port, {}).ready["error"]
        with server.live(key="secret") as viewer:
            assert viewer.ready["type"] == "ready"
        with Viewer(server.port, {}, additional_headers={"authorization": "Bearer secret"}) as viewer:
            assert viewer.ready["type"] == "ready"


# ---------------------------------------------------------------------------------------------------------- the command


def test_another_host_needs_a_key(capsys, monkeypatch):
    monkeypatch.delenv("IMTALKER_API_KEY", raising=False)
    assert main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "--api-key" in capsys.readouterr().err


def test_a_port_in_use(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    err = capsys.readouterr().err
    assert "--port" in err and err.count("\n") == 1


def test_a_model_that_is_not_there_ends_it(capsys):
    assert main(["serve", "--port", "0", "--model", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_a_speaker_that_is_not_there(capsys):
    assert main(["serve", "--port", "0", "--speaker", "nobody:speaks"]) == 2
    assert "nobody:speaks" in capsys.readouterr().err


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_it_cleanly(tiny_model, tmp_path, sent, status):
    """The command itself, with a tiny model in a process of its own, in the middle of a session."""
    process = subprocess.Popen(
        [sys.executable, "-m", "imtalker", "serve", "--port", "0", "--model", str(tiny_model), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=listen_to_ctrl_c,
    )  # fmt: skip
    try:
        told = json.loads(process.stdout.readline())
        viewer = Viewer(int(told["address"].rsplit(":", 1)[1]), {})
        assert viewer.ready["type"] == "ready"
        viewer.take_until(lambda: viewer.pictures)
        process.send_signal(sent)
        with pytest.raises(Exception, match="1012"):
            while True:
                viewer.take()
        begun = time.monotonic()
        assert process.wait(15) == status and time.monotonic() - begun < 10
        err = process.stderr.read()
        assert err.count("\n") == 1 and "Traceback" not in err
        assert not list(tmp_path.iterdir())
    finally:
        process.kill()
        process.communicate()


def test_loading_that_fails_is_told(tmp_path):
    def load():
        raise InputError("no such model")

    with pytest.raises(InputError, match="no such model"):
        serve(Service(load), "127.0.0.1", 0, None, (), lambda address: None)


def test_the_video_is_h264_with_aac(server, files, tmp_path):
    job = server.post("/v1/animate", {"source": files["source"], "audio": files["audio"]}, {"crop": "0"})[2]
    (tmp_path / "video.mp4").write_bytes(server.ask("GET", finished(server, job)["video"])[2])
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
    server.ask("DELETE", f"/v1/jobs/{job['id']}")
