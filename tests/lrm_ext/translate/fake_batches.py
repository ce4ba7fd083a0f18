"""A chat service with a batch mode, on this machine; jobs are done after a few looks at them."""

from __future__ import annotations

import json
import re
from typing import Any

from fake_chat import Answer, ChatService


class BatchService(ChatService):
    """Keeps files and jobs; `status` decides what becomes of a job after `looks` looks."""

    def __init__(self, table: dict[str, str]) -> None:
        super().__init__(table)
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.looks = 2
        self.status = "completed"
        self.keep = 1.0  # share of a job's lines that are answered
        self.loses_answer = False  # makes the next job, and hangs up
        self.spoils_file = False  # sends a page for the next file

    def request(self, method: str, path: str, data: bytes, headers: dict[str, str]) -> Answer:
        if path.startswith("/v1/chat/"):
            return super().request(method, path, data, headers)
        route = re.sub(r"(?<=/)(file|job)-\d+", "*", path.removeprefix("/v1").partition("?")[0])
        with self.lock:
            answer = getattr(self, f"_{method}{route.replace('/', '_').replace('*', 'one')}")(
                path.rpartition("/")[2] if not path.endswith("/content") else path.split("/")[-2],
                data,
            )
        return answer if isinstance(answer, Answer) else _json(answer)

    def _POST_files(self, name: str, data: bytes) -> Any:
        assert b'name="purpose"\r\n\r\nbatch\r\n' in data
        content = data.split(b"application/jsonl\r\n\r\n")[1].split(b"\r\n--")[0]
        return self._store(content)

    def _GET_files_one_content(self, name: str, data: bytes) -> Any:
        if self.spoils_file:
            self.spoils_file = False
            return Answer(200, b"<html>proxy</html>", {"content-type": "text/html"})
        return Answer(200, self.files[name])

    def _POST_batches(self, name: str, data: bytes) -> Any:
        job = {"id": f"job-{len(self.jobs)}", "status": "validating", **json.loads(data)}
        assert job["endpoint"] == "/v1/chat/completions" and job["completion_window"] == "24h"
        self.jobs[job["id"]] = {**job, "looks": 0}
        if self.loses_answer:
            self.loses_answer = False
            return Answer(hangs_up=True)
        return job

    def _GET_batches(self, name: str, data: bytes) -> Any:
        return {"data": list(self.jobs.values()), "has_more": False}

    def _GET_batches_one(self, name: str, data: bytes) -> Any:
        job = self.jobs.get(name)
        if job is None:
            return Answer(404, b'{"error": "no such batch"}')
        job["looks"] += 1
        if job["status"] in ("validating", "in_progress"):
            job["status"] = "in_progress"
            if job["looks"] >= self.looks:
                self._finish(job)
        return job

    def _finish(self, job: dict[str, Any]) -> None:
        job["status"] = self.status
        if self.status == "failed":
            job["errors"] = {"data": [{"message": "enqueued token limit reached"}]}
            return
        asked = self.files[job["input_file_id"]].splitlines()
        done = asked[: round(len(asked) * self.keep)]
        # in another order than they were asked in
        results = [self._result(json.loads(line)) for line in reversed(done)]
        for name in ("output_file_id", "error_file_id"):
            is_error = name == "error_file_id"
            lines = [r for r in results if (r["response"]["status_code"] != 200) == is_error]
            if lines:
                job[name] = self._store("\n".join(map(json.dumps, lines)).encode())["id"]

    def _result(self, line: dict[str, Any]) -> dict[str, Any]:
        segments = json.loads(line["body"]["messages"][1]["content"])["segments"]
        number = len(self.requests)
        self.requests.append([segment["text"] for segment in segments])
        self.bodies.append(line["body"])
        answer = self.behave(number, segments)
        if answer is None:
            self.answered.update(segment["text"] for segment in segments)
            answer = self.good(segments)
        response = {"status_code": answer.status, "body": json.loads(answer.body)}
        return {"custom_id": line["custom_id"], "response": response, "error": None}

    def _store(self, content: bytes) -> dict[str, str]:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return {"id": name}


def _json(data: Any) -> Answer:
    return Answer(200, json.dumps(data).encode(), {"content-type": "application/json"})
