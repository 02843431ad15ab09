"""A run is also recorded in a MongoDB where `mongo` says; pymongo and its server are played by stand-ins."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from sacred.observers import RunObserver

import main_classification

WORDS = ["main_classification.py", "with", "config=digits.RN8", "cuda=False", "evaluate=True"]


class PyMongoError(Exception):
    pass


class InvalidURI(PyMongoError):
    pass


class ConfigurationError(PyMongoError):
    pass


class Client:
    """A server at every address but those of port 1."""

    addresses: list[str]

    def __init__(self, url: str, **options: object):
        self.addresses.append(url)
        self.url, self.admin = url, self
        if not url.startswith("mongodb://"):
            raise InvalidURI("Invalid URI scheme")

    def get_default_database(self) -> SimpleNamespace:
        name = self.url.removeprefix("mongodb://").partition("/")[2]
        if not name:
            raise ConfigurationError("No default database name defined or provided.")
        return SimpleNamespace(name=name.partition("?")[0])

    def command(self, name: str) -> None:
        assert name == "ping"
        if ":1/" in self.url:
            raise PyMongoError("localhost:1: Connection refused (configured timeouts: ...), and much more")


class Observer(RunObserver):
    """Sacred's, but it only remembers."""

    made: list["Observer"]

    def __init__(self, *, client: Client, db_name: str):
        self.url, self.db_name, self.events = client.url, db_name, []
        self.made.append(self)

    def started_event(self, *given: object, **named: object) -> None:
        self.events.append("started")

    def failed_event(self, *given: object, **named: object) -> None:
        self.events.append("failed")


@pytest.fixture
def made(monkeypatch) -> list[Observer]:
    """The observers that are made."""
    pymongo = ModuleType("pymongo")
    pymongo.MongoClient = Client
    pymongo.errors = ModuleType("pymongo.errors")
    for error in (PyMongoError, InvalidURI, ConfigurationError):
        setattr(pymongo.errors, error.__name__, error)
    monkeypatch.setitem(sys.modules, "pymongo", pymongo)
    monkeypatch.setattr("sacred.observers.MongoObserver", Observer)
    monkeypatch.setattr(Client, "addresses", [], raising=False)
    monkeypatch.setattr(Observer, "made", [], raising=False)
    return Observer.made


@pytest.fixture
def command(tmp_path, capsys):
    def run(*words: str) -> str:
        """The last line of the errors of a command that fails: nothing was trained here."""
        assert main_classification.main([*WORDS, f"localpath={tmp_path}", *words]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "Traceback" not in error
        return error

    return run


@pytest.mark.parametrize("address", ["localhost:27017/letkd", "mongodb://localhost:27017/letkd?tls=true"])
def test_a_run_is_recorded_in_the_database_and_in_the_files(address, made, command, tmp_path):
    assert "no weights of digits.RN8" in command(f"mongo={address}")
    (observer,) = made
    assert (observer.db_name, observer.events) == ("letkd", ["started", "failed"])
    assert (tmp_path / "sacred/1/run.json").is_file()


def test_a_password_comes_from_the_environment_and_is_not_recorded(made, command, tmp_path, monkeypatch):
    monkeypatch.setenv("LETKD_TEST_PASSWORD", "secret")
    command("mongo=mongodb://me:$LETKD_TEST_PASSWORD@localhost/letkd")
    assert made[0].url == "mongodb://me:secret@localhost/letkd"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("localhost:1/letkd", "'localhost:1/letkd' does not answer: localhost:1: Connection refused\n"),
        ("localhost", "'localhost' must be host:port/database, like localhost:27017/sacred"),
        ("http://localhost/letkd", "'http://localhost/letkd' must be host:port/database"),
        ("5", "must be host:port/database"),
    ],
)
def test_what_cannot_be_recorded_there_stops_before_any_work(address, problem, made, command, tmp_path):
    assert problem in command(f"mongo={address}")
    assert not made and not any(tmp_path.iterdir())


def test_without_pymongo_the_error_says_what_to_install(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymongo", None)
    assert "pip install pymongo" in command("mongo=localhost/letkd")
    assert not any(tmp_path.iterdir())


def test_looking_at_the_configuration_asks_no_server(made, tmp_path, capsys):
    words = ["main.py", "print_config", "with", "config=digits.RN8", "mongo=localhost:1/letkd", f"localpath={tmp_path}"]
    assert main_classification.main(words) == 0
    assert not made and not Client.addresses
