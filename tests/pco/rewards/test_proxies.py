"""A judge on this machine is asked directly, whatever proxy the environment names; any other through it."""

from collections import defaultdict

import pytest

from data.errors import StageFailed
from pco.config.reward import JudgeReward
from pco.rewards import endpoint
from tests import chat_server

DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _behind_a_dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, DEAD)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def answers(base_url: str) -> list[str]:
    heard: list[str] = []
    config = JudgeReward(base_url=base_url, model="judge", retries=0)
    endpoint.ask(["q"], config, on_reply=lambda *reply: heard.append(str(reply[1])), counts=defaultdict(float))
    return heard


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_judge_on_this_machine_is_asked_past_the_proxy(host: str) -> None:
    with chat_server.serving(lambda _: "[[A]]") as server:
        assert len(answers(server.url.replace("127.0.0.1", host))) == 1
        assert server.questions == ["q"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.1.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://192.0.2.1/v1", False),
        ("https://judge.example/v1", False),
        ("http://localhost.example/v1", False),
    ],
)
def test_what_is_this_machine(url: str, expected: bool) -> None:
    assert endpoint.is_loopback(url) is expected


def test_another_judge_is_asked_through_the_proxy() -> None:
    with pytest.raises(StageFailed, match="ConnectError"):  # of the proxy: the address itself would time out
        answers("http://192.0.2.1/v1")
