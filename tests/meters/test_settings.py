"""The agent's file: strict, and helpful about mistakes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from meters.settings import AgentSettings, BadSettings, MeterSettings, load

GOOD = """\
node: gpu-1
proxy_url: https://joulegate.example:4000
token: secret-token
meter: nvml
devices: [0, GPU-abc]
engine_url: http://127.0.0.1:8000/metrics
"""


def write(path: Path, text: str) -> Path:
    file = path / "meter.yaml"
    file.write_text(text)
    return file


def test_a_file_is_read(tmp_path: Path) -> None:
    settings = load(write(tmp_path, GOOD), AgentSettings)
    assert settings.node_name == "gpu-1"
    assert settings.devices == [0, "GPU-abc"]
    assert (settings.window_s, settings.host, settings.engine_dialect) == (1.0, "auto", "auto")
    assert settings.read_token() == "secret-token"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("windows_s: 2\n", r"line 7: unknown key 'windows_s'. Did you mean 'window_s'?"),
        ("window_s: fast\n", r"line 7: window_s: Expected `float`, got `str`"),
        ("window_s: 0.1\n", r"line 7: window_s must be between 0.5 and 3600 seconds"),
        ("send_s: 0\n", r"line 7: send_s must be between 0.05 and 3600 seconds"),
        ("host: maybe\n", r"line 7: host must be auto, rapl or none"),
        ("zebra: 1\n", r"unknown key 'zebra'. Known keys: node, meter"),
        ("a: [1\n", r"not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(BadSettings) as caught:
        load(write(tmp_path, GOOD + change), AgentSettings)
    assert said in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="proxy_url"):
        load(write(tmp_path, "node: x\ntoken: t\n"), AgentSettings)
    with pytest.raises(BadSettings, match="token or token_file"):
        load(write(tmp_path, "node: x\nproxy_url: http://p\n"), AgentSettings)
    with pytest.raises(BadSettings, match="expected keys"):
        load(write(tmp_path, "- 1\n"), AgentSettings)
    with pytest.raises(BadSettings, match="readable"):
        load(tmp_path / "nothing.yaml", AgentSettings)


def test_a_token_may_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("from-file\n")
    file = AgentSettings(proxy_url="http://p", token_file=str(tmp_path / "token"))
    assert file.read_token() == "from-file"
    monkeypatch.setenv("METER_TOKEN", "from-env")
    named = AgentSettings(proxy_url="http://p", token="os.environ/METER_TOKEN")
    assert named.read_token() == "from-env"
    monkeypatch.delenv("METER_TOKEN")
    with pytest.raises(BadSettings, match="METER_TOKEN"):
        named.read_token()
    with pytest.raises(BadSettings, match="gone"):
        AgentSettings(proxy_url="http://p", token_file=str(tmp_path / "gone")).read_token()


def test_a_token_is_never_printed() -> None:
    settings = AgentSettings(proxy_url="http://p", token="very-secret")
    assert "very-secret" not in repr(settings)


def test_the_example_file_is_right() -> None:
    example = Path(__file__).parent.parent.parent / "deploy" / "meter.yaml"
    settings = load(example, AgentSettings)
    assert settings.meter == "nvml"
    assert settings.engine_url


def test_every_key_is_in_the_documents() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "meters.md").read_text()
    for field in msgspec.structs.fields(AgentSettings):
        assert f"`{field.encode_name}`" in page, field.encode_name


def test_a_nameless_node_takes_the_machines_name() -> None:
    assert MeterSettings().node_name
