"""The configuration: what is read, what is refused and with which words, and what is shown of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mr.config import Bind, Config, warnings
from mr.errors import InvalidConfig
from mr.urls import parse_servers

HOME = {"HOME": "/home/ada"}


def read(**environ: str) -> Config:
    return Config.read({**HOME, **environ})


def refused(**environ: str) -> InvalidConfig:
    with pytest.raises(InvalidConfig) as caught:
        read(**environ)
    return caught.value


def test_an_empty_environment_runs_embedded_under_the_users_state_directory() -> None:
    config = read()
    assert config.is_embedded
    assert config.data_dir == Path("/home/ada/.local/state/jobx")
    assert config.kv_path == config.data_dir / "kv.sqlite"
    assert config.queue_path == config.data_dir / "queue.sqlite"
    assert config.fs_path == config.data_dir / "files"
    assert config.bind == Bind("127.0.0.1", 8080)
    assert (config.retention_s, config.lease_s, config.max_lost) == (3600, 10.0, 20)
    assert (config.max_body_bytes, config.max_depth, config.max_wait_s) == (1048576, 64, 300.0)
    assert (config.sandbox, config.channel, config.web_processes) == ("process", "general_worker", 1)
    assert config.runners >= 1
    assert config.workflow_names == ()
    assert config.system_capabilities == ("general",)


def test_an_absolute_state_directory_is_used_and_a_relative_one_ignored() -> None:
    assert read(XDG_STATE_HOME="/state").data_dir == Path("/state/jobx")
    assert read(XDG_STATE_HOME="state").data_dir == Path("/home/ada/.local/state/jobx")


def test_an_empty_environment_without_a_home_still_finds_one() -> None:
    assert Config.read({}).data_dir.is_absolute()


def test_paths_follow_the_data_directory_whatever_characters_it_has() -> None:
    config = read(MR_DATA_DIR="/data/größe 50%/#1?")
    assert config.kv_path == Path("/data/größe 50%/#1?/kv.sqlite")
    assert config.fs_path == Path("/data/größe 50%/#1?/files")


def test_a_data_directory_may_begin_with_a_tilde_and_may_be_relative() -> None:
    assert read(MR_DATA_DIR="~/jobx").data_dir == Path("/home/ada/jobx")
    assert read(MR_DATA_DIR="here").data_dir == Path("here").absolute()


def test_an_empty_variable_counts_as_unset() -> None:
    assert read(MR_KV_URL="", MR_RETENTION_S=" ", MR_WORKFLOW_NAMES="") == read()


def test_lists_keep_their_order_and_each_name_once() -> None:
    config = read(MR_WORKFLOW_NAMES="build, deploy,build", MR_SYSTEM_CAPABILITIES="general,licensed_tool")
    assert config.workflow_names == ("build", "deploy")
    assert config.system_capabilities == ("general", "licensed_tool")


@pytest.mark.parametrize(
    ("text", "bind", "is_local"),
    [
        ("127.0.0.1:8080", Bind("127.0.0.1", 8080), True),
        ("127.5.5.5:1", Bind("127.5.5.5", 1), True),
        ("localhost:0", Bind("localhost", 0), True),
        ("[::1]:80", Bind("::1", 80), True),
        ("unix:/run/jobx/gunicorn.sock", Bind(path="/run/jobx/gunicorn.sock"), True),
        ("0.0.0.0:80", Bind("0.0.0.0", 80), False),
        ("[::]:80", Bind("::", 80), False),
        ("build.example.org:80", Bind("build.example.org", 80), False),
    ],
)
def test_an_address_to_bind_is_read_and_shown_alike(text: str, bind: Bind, is_local: bool) -> None:
    config = read(MR_BIND=text)
    assert config.bind == bind
    assert str(config.bind) == text
    assert config.bind.is_local is is_local


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MR_BIND", "8080"),
        ("MR_BIND", ":8080"),
        ("MR_BIND", "127.0.0.1"),
        ("MR_BIND", "127.0.0.1:65536"),
        ("MR_BIND", "::1:80"),
        ("MR_BIND", "unix:gunicorn.sock"),
        ("MR_BIND", "unix:/" + "x" * 107),
        ("MR_RETENTION_S", "-2"),
        ("MR_RETENTION_S", "1h"),
        ("MR_RETENTION_S", "1_0"),
        ("MR_RETENTION_S", "٣"),
        ("MR_LEASE_S", "nan"),
        ("MR_LEASE_S", "inf"),
        ("MR_LEASE_S", "0"),
        ("MR_MAX_WAIT_S", "-1"),
        ("MR_RUNNERS", "0"),
        ("MR_WEB_PROCESSES", "0"),
        ("MR_MAX_BODY_BYTES", "0"),
        ("MR_WORKFLOW_NAMES", "build deploy"),
        ("MR_WORKFLOW_NAMES", "x" * 33),
        ("MR_SYSTEM_CAPABILITIES", "x" * 17),
        ("MR_CHANNEL", "a channel"),
        ("MR_SANDBOX", "none"),
        ("MR_ALLOW_ANONYMOUS", "maybe"),
        ("MR_WORKFLOW_SCOPE_FACTORY_FQ_CLASS", "Factory"),
        ("MR_KV_URL", "etcd"),
        ("MR_KV_URL", "etcd://"),
        ("MR_KV_URL", "etcd://a:0"),
        ("MR_KV_URL", "etcd://a:1,b:x"),
        ("MR_KV_URL", "etcd://a/b"),
        ("MR_KV_URL", "etcd://a?ca=x"),
        ("MR_KV_URL", "nsq://a"),
        ("MR_KV_URL", "sqlite://relative/path"),
        ("MR_KV_URL", "sqlite:///"),
        ("MR_KV_URL", "sqlite:///x?mode=ro"),
        ("MR_KV_URL", "etcd://[::1"),
        ("MR_QUEUE_URL", "etcd://a"),
        ("MR_QUEUE_URL", "nsq://user@a"),
        ("MR_FS_URL", "/srv/files"),
        ("MR_FS_URL", "file://host/path"),
        ("MR_FS_URL", "s3://"),
        ("MR_FS_URL", "memory://"),
        ("MR_FS_URL", "memory://x"),
        ("MR_FS_URL", "sqlite:///x"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_its_name_and_itself(name: str, value: str) -> None:
    error = refused(**{name: value})
    assert error.parameter == name
    assert str(error).startswith(f"{name} is {value!r}: ")


def test_cluster_urls_are_taken_apart() -> None:
    config = read(MR_KV_URL="etcds://user:p%40ss@a:1,[::1],c?ca=/ca.pem", MR_QUEUE_URL="nsqlookup://a,b:1?tls=1")
    assert not config.is_embedded
    servers = parse_servers(config.kv_url)
    assert servers.addresses == (("a", 1), ("::1", 2379), ("c", 2379))
    assert (servers.username, servers.password, servers.options) == ("user", "p@ss", {"ca": "/ca.pem"})
    assert parse_servers(config.queue_url).addresses == (("a", 4161), ("b", 1))


def test_a_cluster_has_no_paths_of_an_embedded_store() -> None:
    config = read(MR_KV_URL="etcd://a", MR_QUEUE_URL="nsq://a", MR_FS_URL="s3://bucket/prefix")
    for attribute in ("kv_path", "queue_path", "fs_path"):
        with pytest.raises(InvalidConfig):
            getattr(config, attribute)


@pytest.mark.parametrize(
    "environ",
    [
        {"MR_KV_URL": "etcd://a"},
        {"MR_QUEUE_URL": "nsq://a"},
        {"MR_NSQD_HOSTS": "a"},
        {"MR_ETCD_HOST": "a", "MR_QUEUE_URL": "sqlite:///q"},
        {"MR_NSQD_HOSTS": "a", "MR_KV_URL": "sqlite:///k"},
    ],
)
def test_embedded_beside_cluster_is_refused(environ: dict[str, str]) -> None:
    error = refused(**environ)
    assert error.parameter in environ
    assert "embedded" in str(error)


def test_store_and_queue_in_one_file_are_refused() -> None:
    assert refused(MR_KV_URL="sqlite:///x", MR_QUEUE_URL="sqlite:///x").parameter == "MR_QUEUE_URL"


@pytest.mark.parametrize(
    ("environ", "kv_url", "queue_url"),
    [
        ({"MR_ETCD_HOST": "etcd"}, "etcd://etcd:2379", "nsq://127.0.0.1:4150"),
        ({"MR_ETCD_HOST": "::1", "MR_ETCD_PORT": "1"}, "etcd://[::1]:1", "nsq://127.0.0.1:4150"),
        ({"MR_ETCD_HOST": "a", "MR_ETCD_IS_SSL": "1"}, "etcds://a:2379", "nsq://127.0.0.1:4150"),
        ({"MR_ETCD_HOST": "a", "MR_NSQD_HOSTS": "b, c:1"}, "etcd://a:2379", "nsq://b:4150,c:1"),
        ({"MR_ETCD_HOST": "a", "MR_QUEUE_URL": "nsqlookup://b"}, "etcd://a:2379", "nsqlookup://b"),
        ({"MR_KV_URL": "etcd://a", "MR_NSQD_HOSTS": "b"}, "etcd://a", "nsq://b:4150"),
    ],
)
def test_classic_names_of_servers_keep_working(environ: dict[str, str], kv_url: str, queue_url: str) -> None:
    config = read(**environ)
    assert (config.kv_url, config.queue_url) == (kv_url, queue_url)


@pytest.mark.parametrize(
    ("blamed", "environ"),
    [
        ("MR_ETCD_HOST", {"MR_ETCD_HOST": "a", "MR_KV_URL": "etcd://a"}),
        ("MR_ETCD_HOST", {"MR_ETCD_HOST": "a:2379"}),
        ("MR_ETCD_HOST", {"MR_ETCD_HOST": "http://a"}),
        ("MR_ETCD_PORT", {"MR_ETCD_PORT": "2379"}),
        ("MR_ETCD_PORT", {"MR_ETCD_HOST": "a", "MR_ETCD_PORT": "x"}),
        ("MR_ETCD_IS_SSL", {"MR_ETCD_HOST": "a", "MR_ETCD_IS_SSL": "x"}),
        ("MR_NSQD_HOSTS", {"MR_ETCD_HOST": "a", "MR_NSQD_HOSTS": "a", "MR_QUEUE_URL": "nsq://a"}),
        ("MR_NSQD_HOSTS", {"MR_ETCD_HOST": "a", "MR_NSQD_HOSTS": "a:x"}),
        ("MR_DO_CLEANUP_REQUESTS", {"MR_DO_CLEANUP_REQUESTS": "0", "MR_RETENTION_S": "60"}),
        ("MR_FS_TAHOE_DIR_URI", {"MR_FS_TAHOE_DIR_URI": "URI:DIR2:x", "MR_FS_URL": "file:///x"}),
        ("MR_FS_TAHOE_WEBAPI_URL_PREFIX", {"MR_FS_TAHOE_WEBAPI_URL_PREFIX": "http://a"}),
    ],
)
def test_classic_names_that_contradict_or_cannot_be_used_are_refused(blamed: str, environ: dict[str, str]) -> None:
    assert refused(**environ).parameter == blamed


def test_requests_that_are_not_cleaned_up_are_kept_for_ever() -> None:
    assert read(MR_DO_CLEANUP_REQUESTS="0").retention_s == -1
    assert read(MR_DO_CLEANUP_REQUESTS="0", MR_RETENTION_S="-1").retention_s == -1
    assert read(MR_DO_CLEANUP_REQUESTS="1").retention_s == 3600
    assert read(MR_DO_CLEANUP_REQUESTS="1", MR_RETENTION_S="60").retention_s == 60


def test_a_tahoe_directory_by_its_classic_names_becomes_a_url_that_is_never_shown() -> None:
    config = read(MR_FS_TAHOE_DIR_URI="URI:DIR2:abc:def")
    assert config.fs_url == "tahoe://127.0.0.1:3456/URI%3ADIR2%3Aabc%3Adef"
    assert "abc" not in repr(config)


def test_a_front_end_that_others_can_reach_needs_tokens_or_a_word_that_it_is_meant() -> None:
    with pytest.raises(InvalidConfig, match="MR_API_TOKENS"):
        read(MR_BIND="0.0.0.0:80").check_exposure()
    read(MR_BIND="0.0.0.0:80", MR_API_TOKENS="abc").check_exposure()
    read(MR_BIND="0.0.0.0:80", MR_ALLOW_ANONYMOUS="1").check_exposure()
    read(MR_BIND="unix:/run/x.sock").check_exposure()
    read().check_exposure()


def test_the_description_has_every_setting_with_its_source() -> None:
    described = {name: (value, source) for name, value, source in read(MR_ETCD_HOST="a", MR_LEASE_S="2").describe()}
    assert described["MR_LEASE_S"] == ("2", "environment")
    assert described["MR_MAX_LOST"] == ("20", "default")
    assert described["MR_KV_URL"] == ("etcd://a:2379", "environment (MR_ETCD_HOST)")
    assert described["MR_SYSTEM_CAPABILITIES"] == ("general", "default")


@pytest.mark.parametrize(
    "environ",
    [
        {"MR_API_TOKENS": "hush,hush2"},
        {"MR_KV_URL": "etcds://user:hush@a", "MR_QUEUE_URL": "nsq://a?secret=hush"},
        {"MR_FS_URL": "s3://key:hush@bucket"},
        {"MR_RESULT_HTTP_WRITER_SERVER_URL": "https://user:hush@host/path"},
    ],
)
def test_secrets_are_shown_nowhere(environ: dict[str, str]) -> None:
    config = read(**environ)
    assert "hush" not in repr(config)
    assert "hush" not in str(config.describe())


@pytest.mark.parametrize(
    "environ",
    [
        {"MR_API_TOKENS": "hush hush"},
        {"MR_KV_URL": "etcds://user:hush@a/path"},
        {"MR_KV_URL": "etcds://user:hu/sh/hush@a"},
        {"MR_KV_URL": "etcd://user:hush@a"},
        {"MR_QUEUE_URL": "nsq://a?secret=hush&other=1"},
    ],
)
def test_secrets_are_not_shown_by_errors_either(environ: dict[str, str]) -> None:
    assert "hush" not in str(refused(**environ))


def test_an_unknown_variable_is_a_warning_with_the_nearest_name() -> None:
    texts = warnings({"MR_RETENTON_S": "1", "MR_RUNNERS": "1", "MR_ETCD_HOST": "a", "PATH": "/", "MR_QQ": "1"})
    assert len(texts) == 2
    assert "MR_QQ" in texts[0]
    assert "`jobx config`" in texts[0]
    assert "MR_RETENTON_S" in texts[1]
    assert "Did you mean MR_RETENTION_S?" in texts[1]
