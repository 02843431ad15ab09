"""A run is also recorded in a MongoDB where `mongo` says: by sacred and pymongo as they are, in a server of our own."""

import contextlib
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any

import bson
import pytest
from digits_tools import fewer_digits

import main_classification

WORDS = ["main_classification.py", "with", "config=digits.RN8", "cuda=False", "evaluate=True"]
TRAINING = [*WORDS[:-1], "image_size=8", "epochs=1", "milestones=[]"]
HEADER = struct.Struct("<iiii")  # of a message: length, number, number of the message it answers, kind
QUERY, REPLY, MESSAGE = 2004, 1, 2013  # kinds; the first two are for the first word of a client


class Server(socketserver.ThreadingTCPServer):
    """As much of a MongoDB as recording needs: it takes everything, keeps the commands, and finds nothing."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Connection)
        self.commands: list[dict[str, Any]] = []

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.server_address)

    def written(self, collection: str) -> list[dict[str, Any]]:
        """The documents that were inserted, then what was changed in them."""
        inserted = [command for command in self.commands if command.get("insert") == collection]
        updates = [command for command in self.commands if command.get("update") == collection]
        assert all(command["$db"] == "letkd" for command in inserted + updates)
        documents = [document for command in inserted for document in command["documents"]]
        return documents + [update["q"] | update["u"]["$set"] for command in updates for update in command["updates"]]


class Connection(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):  # of a client that has gone
            self.answer()

    def answer(self) -> None:
        while header := self.rfile.read(HEADER.size):
            length, number, _, kind = HEADER.unpack(header)
            body = self.rfile.read(length - HEADER.size)
            command = read_query(body) if kind == QUERY else read_message(body)
            self.server.commands.append(command)
            answer = bson.encode(reply(command))
            content = struct.pack("<iqii", 8, 0, 0, 1) if kind == QUERY else bytes(5)
            kind = REPLY if kind == QUERY else MESSAGE
            self.wfile.write(HEADER.pack(HEADER.size + len(content + answer), 0, number, kind) + content + answer)


def read_query(body: bytes) -> dict[str, Any]:
    """Flags (4 bytes), a name with a zero behind it, two numbers, and the command."""
    return bson.decode(body[body.index(b"\0", 4) + 9 :])


def read_message(body: bytes) -> dict[str, Any]:
    """Flags (4 bytes), and sections: a byte 0 and the command, or a byte 1, a size, a key, and the documents for it."""
    command, lists, place = {}, {}, 4
    while place < len(body):
        (size,) = struct.unpack_from("<i", body, place + 1)
        section = body[place + 1 : place + 1 + size]
        if body[place] == 0:
            command = bson.decode(section)
        else:
            key, _, documents = section[4:].partition(b"\0")
            lists[key.decode()] = bson.decode_all(documents)
        place += 1 + size
    return command | lists


def reply(command: dict[str, Any]) -> dict[str, Any]:
    nothing = {"id": bson.Int64(0), "ns": "letkd.any", "firstBatch": []}
    facts = {"ismaster": True, "maxWireVersion": 21, "maxBsonObjectSize": 2**24, "maxWriteBatchSize": 1000}
    return facts | {"ok": 1.0, "n": 1, "nModified": 1, "cursor": nothing}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main_classification, "MONGO_TIMEOUT_MS", 300)

    def run(*words: str) -> str:
        """The last line of the errors of a command that fails: nothing was trained here."""
        assert main_classification.main([*WORDS, f"localpath={tmp_path}", *words]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "Traceback" not in error
        return error

    return run


@pytest.mark.parametrize("address", ["{}/letkd", "mongodb://{}/letkd?w=1"])
def test_a_run_is_recorded_in_the_database_and_in_the_files(address, server, tmp_path):
    address = address.format(server.address)
    words = [*TRAINING, f"localpath={tmp_path}", f"mongo={address}"]
    with fewer_digits():
        assert main_classification.main(words) == 0
    started, *_, ended = server.written("runs")
    assert (started["status"], started["config"]["mongo"], started["config"]["epochs"]) == ("RUNNING", address, 1)
    assert (ended["_id"], ended["status"]) == (started["_id"], "COMPLETED")
    assert (tmp_path / "sacred/1/run.json").is_file()


def test_a_mistake_that_leaves_no_files_is_recorded_in_the_database(server, command, tmp_path):
    assert "no weights of digits.RN8" in command(f"mongo={server.address}/letkd")
    started, *_, ended = server.written("runs")
    assert (ended["_id"], ended["status"]) == (started["_id"], "FAILED")
    assert any("no weights of digits.RN8" in line for line in ended["fail_trace"])
    assert not any(tmp_path.iterdir())


def test_a_variable_in_the_address_is_replaced_and_its_value_not_recorded(server, command, tmp_path, monkeypatch):
    """As a password is written; here it is the name that the client tells the server."""
    monkeypatch.setenv("LETKD_TEST_PASSWORD", "secret")
    command(f"mongo=mongodb://{server.address}/letkd?appName=$LETKD_TEST_PASSWORD")
    assert server.commands[0]["client"]["application"]["name"] == "secret"
    assert server.written("runs") and "secret" not in str(server.written("runs"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:1/letkd", "'127.0.0.1:1/letkd' does not answer: 127.0.0.1:1: [Errno 111] Connection refused\n"),
        ("localhost", "'localhost' must be host:port/database, like localhost:27017/sacred"),
        ("http://localhost/letkd", "'http://localhost/letkd' must be host:port/database"),
        ("5", "mongo=5 must be of type str, or None"),
    ],
)
def test_what_cannot_be_recorded_there_stops_before_any_work(address, problem, command, tmp_path):
    assert problem in command(f"mongo={address}")
    assert not any(tmp_path.iterdir())


def test_without_pymongo_the_error_says_what_to_install(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymongo", None)
    assert "pip install pymongo" in command("mongo=localhost/letkd")
    assert not any(tmp_path.iterdir())


def test_looking_at_the_configuration_asks_no_server(server, tmp_path):
    address = f"mongo={server.address}/letkd"
    words = ["main.py", "print_config", "with", "config=digits.RN8", address, f"localpath={tmp_path}"]
    assert main_classification.main(words) == 0
    assert not server.commands
