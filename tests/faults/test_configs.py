"""Hostile configurations: each ends the command with one line and exit code 2, nothing written."""

import inspect
import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from flows import cli
from flows.session.session import Session
from pipeline.audit.rollout import ROLLOUT_ID
from pipeline.config.field_types import TEMPLATE_NAMES
from pipeline.config.load import load_config
from pipeline.errors import ConfigError

MINIMAL = b'[data]\ntask = "arithmetic"\n[model]\npath = "demo"\n'
LONGEST_LINE = cli.ERROR_LIMIT + 50

Refused = Callable[..., str]

FILES = {
    "not-utf8": (MINIMAL + b"# \xff\xfe", "not valid TOML"),
    "nul": (MINIMAL + b"\x00", "not valid TOML"),
    "arrays": (MINIMAL + b"x = " + b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
    "tables": (MINIMAL + b"x = " + b"{a=" * 10_000 + b"1" + b"}" * 10_000, "nested too deeply"),
    "key": (MINIMAL + b"[run]\nsteps" + b".a" * 10_000 + b" = 1", "a key of more than 100 parts"),
    "section": (MINIMAL + b"[" + b"a." * 20_000 + b"a]", "a key of more than 100 parts"),
    "section-twice": (MINIMAL + b"[data]\n", "Cannot declare ('data',) twice"),
    "key-twice": (MINIMAL + b"[run]\nsteps = 1\nsteps = 2", "Cannot overwrite a value"),
    "digits": (MINIMAL + b"[run]\nsteps = " + b"9" * 5000, "not valid TOML"),
    "unknown-section": (MINIMAL + b"[trainer]\nsteps = 1", "unknown key trainer"),
    "section-as-value": (b"run = 3\n" + MINIMAL, "run is 3"),
    "model-as-list": (b'data = []\n[model]\npath = "demo"', "data is []"),
    "date": (MINIMAL + b"[run]\nseed = 2026-11-23", 'run.seed is "2026-11-23"'),
    "long-text": (MINIMAL.replace(b"demo", b"d" * 9000), "model.path is"),
    "terminal": (MINIMAL + b'[run]\nseed = "\\u001b]0;owned\\u0007\\u202e"', "u001b]0;owned"),
    "unknown-escape": (b'"\\u001b[31mred" = 1\n' + MINIMAL, "unknown key \\x1b[31mred"),
    "empty": (b"", "data is missing"),
}

OVERRIDES = {
    "run.steps=9223372036854775808": "run.steps is 9223372036854775808: input should be less",
    f"run.steps=1{'0' * 400}": "run.steps is 1000",
    f"run.steps=1{'0' * 5000}": "run.steps is",
    "run.steps=1000000000000000000": "less than or equal to 1000000",
    "run.steps=true": "run.steps is true: input should be a valid integer",
    "run.steps=0": "greater than 0",
    "run.steps=1.0": "valid integer",
    "run.steps=" + "[" * 100_000: "valid integer",
    "run.seed=-1": "run.seed is -1",
    "run.seed=18446744073709551616": "less than or equal to 9223372036854775807",
    "run.threads=1000000000": "run.threads is 1000000000: input should be less than or equal",
    "run.max_hours=Infinity": "finite number",
    "generate.questions=1000001": "less than or equal to 1000000",
    "generate.rollouts=-8": "greater than 0",
    "generate.timeout=1e308": "less than or equal to 10000000",
    "generate.top_p=NaN": "generate.top_p is NaN",
    "generate.top_k=1000000000000": "less than or equal to 2147483647",
    "update.learning_rate=NaN": "finite number",
    "update.learning_rate=1e400": "update.learning_rate is Infinity",
    "update.learning_rate=true": "valid number",
    "update.jsd_alpha=NaN": "update.jsd_alpha is NaN",
    "verify.workers=100000": "verify.workers is 100000",
    "route.method=SRPO": "route.method is",
    "model.path=": "model.path is",
    "model.path=a\x1b[2Jb": "control characters",
    "data.path=\udcff": "half a surrogate pair",
    "data.path=a\nb": "control characters",
    "model.chat_template_kwargs.conversation=1": "is ours to set",
    "model.chat_template_kwargs.chat_template={{1}}": "is ours to set",
    "model.chat_template_kwargs.eos_token=x": "is ours to set",
    "model.chat_template_kwargs.a.b=1": "no setting is nested as deeply",
    "model.chat_template_kwargs.n=99999999999": "beyond 2147483647",
    'model.chat_template_kwargs.t="\\ud800"': "half of a surrogate pair",
    'vllm.urls=["file:///etc/passwd"]': "expected http://HOST:PORT",
    'vllm.urls=["http://user:secret@host:1"]': "without user",
    'vllm.urls=["http://host:99999"]': "ort out of range",
    'vllm.urls=["http://[::1"]': "vllm.urls is",
    'vllm.urls=["javascript:alert(1)"]': "expected http://HOST:PORT",
    "vllm.urls=http://host:1": 'expected a list, such as ["http://host:1"]',
    "route.feedback_alone=yes": 'route.feedback_alone is "yes": expected true or false',
    "run=1": "expected section.key=value",
    "=": "expected section.key=value",
    ".=": "unknown key .",
    "run.steps.x=1": "not a table of settings",
    "__class__.x=1": "unknown key __class__.x",
    "run.model_config=1": "unknown key run.model_config",
    f"{'x' * 100_000}.y=1": "unknown key xxx",
    f"data.path{'.a' * 5000}=1": "no setting is nested as deeply",
}

CONTRADICTIONS = [
    (["generate.rollouts=1"], "needs siblings"),
    (["route.method=grpo", "weigh.beta=1"], "only srpo weighs"),
    (["generate.questions=2", "route.mini_batch=3"], "route.mini_batch is 3"),
    (["vllm.servers=1", 'vllm.urls=["http://host:1"]'], "vllm.servers"),
]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Returns what `srpo train` says when it refuses a configuration: one line, nothing written."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def command(source: str, *overrides: str) -> str:
        sets = [part for override in overrides for part in ("--set", override)]
        monkeypatch.setattr(sys, "argv", ["srpo", "train", source, *sets])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, "")
        (line,) = said.err.splitlines()
        assert line.startswith("error: ") and line.isprintable() and len(line) < LONGEST_LINE
        assert list(work.iterdir()) == []
        return line

    return command


@pytest.mark.parametrize("name", FILES)
def test_hostile_files(refused: Refused, tmp_path: Path, name: str) -> None:
    content, expected = FILES[name]
    path = tmp_path / f"{name}.toml"
    path.write_bytes(content)
    line = refused(str(path))
    assert str(path) in line and expected in line


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda text: ascii(text)[1:40])
def test_hostile_overrides(refused: Refused, override: str) -> None:
    assert OVERRIDES[override] in refused("demo", override)


@pytest.mark.parametrize(("overrides", "expected"), CONTRADICTIONS)
def test_contradictions(refused: Refused, overrides: list[str], expected: str) -> None:
    assert expected in refused("demo", *overrides)


def test_a_file_that_is_too_large_is_not_read(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    assert "over 64 KiB" in refused(str(path))


def test_what_is_no_file(refused: Refused, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "process.toml").symlink_to("/proc/self/mem")
    for name in ("pipe", "folder", "zero"):
        assert "not a regular file" in refused(str(tmp_path / f"{name}.toml"))
    assert "neither a TOML file nor a preset" in refused(str(tmp_path / "loop.toml"))
    assert "can't be read" in refused(str(tmp_path / "process.toml"))
    for source in ("a\0b.toml", "\udcff.toml", "x" * 5000 + ".toml", "", "../../etc/passwd"):
        assert "neither a TOML file nor a preset" in refused(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(MINIMAL)
    path.chmod(0)
    assert "can't be read: Permission denied" in refused(str(path))


def test_tasks_and_data_that_are_not_there(refused: Refused, tmp_path: Path) -> None:
    """Found by the session, before the run's folder is made."""
    os.mkfifo(tmp_path / "pipe.py")
    for task, expected in (
        (str(tmp_path / "pipe.py"), "does not exist"),
        ("../../etc/passwd", "there is no task"),
        ("~nobody-of-this-name/task.py", "does not exist"),
        ("/dev/zero", "there is no task"),
    ):
        with pytest.raises(ValueError, match=expected):
            Session.create(tmp_path / "run", load_config("demo", [f"data.task={task}"]))
    for path in ("~nobody-of-this-name/rows.json", "/dev/zero", "/proc/self/mem"):
        config = load_config("demo", ["data.task=science_qa", f"data.path={path}"])
        with pytest.raises(ValueError, match=r"data\.path|can't be read"):
            Session.create(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_every_argument_of_a_chat_template_is_ours() -> None:
    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    assert parameters.keys() - {"kwargs"} <= TEMPLATE_NAMES


def test_large_groups_keep_ids_unique_and_well_formed(tmp_path: Path) -> None:
    """The widths of a rollout id are the least; a group of more than 100 has longer ones."""
    config = load_config(
        "demo",
        [
            "run.steps=1",
            "run.threads=1",
            "generate.questions=1",
            "generate.rollouts=102",
            "generate.max_response_length=2",
        ],
    )
    with closing(Session.create(tmp_path / "run", config)) as session:
        session.run_stage("generate", 0)
        ids = session.run.read("rollouts", 0)["rollout_id"].to_pylist()
    assert len(set(ids)) == 102 and all(ROLLOUT_ID.fullmatch(name) for name in ids)
    assert (ids[99], ids[101]) == ("000000-0000-99", "000000-0000-101")
    for largest in ("999999-9999-99", "000000-999999-999999", "e1000000-999999-999999"):
        assert ROLLOUT_ID.fullmatch(largest)


def test_the_library_says_the_same_as_the_command() -> None:
    with pytest.raises(ConfigError, match=r"run\.steps is true"):
        load_config("demo", ["run.steps=true"])
