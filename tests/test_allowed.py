"""What a file may build, what YAML is read at all, and which values are never written down."""

import importlib
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tests_support import TINY

from ouro_lab import records, run
from ouro_lab.allowed import RefusedError, allowed_object, check_targets
from ouro_lab.config import CONF, ROOT, ConfigError, build, load_config, plain_unresolved
from ouro_lab.secrets import redact
from ouro_lab.study import Study
from ouro_lab.yaml_file import check_yaml

REFUSED = [
    "os.system",
    "posix.system",
    "subprocess.run",
    "builtins.eval",
    "ouro_lab.provenance.os.system",
    "ouro_lab.provenance.subprocess.run",
    "ouro_lab.provenance._git",
    "ouro_lab.metrics_log.replace_file",
    "ouro_lab.records.write_json",
    "ouro_lab.run.main",
    "analysis.figures.plt",
    "torch.load",
    "torch.hub.load",
    "torch.utils.cpp_extension.load_inline",
    "torch.cuda.memory.CUDAPluggableAllocator",
    "torch.nn.functional.os",
    "torch.nn.modules.module.torch.load",
    "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.strategies.strategy.os.system",
    "hydra.utils.get_method",
    "cloudpickle.loads",
    "pandas.read_pickle",
    "antigravity.webbrowser",
    "no_such_module.thing",
    "",
    "..",
    "os",
    None,
    ["os.system"],
]


@pytest.mark.parametrize("target", REFUSED)
def test_what_is_not_allowed_is_refused_in_one_line_before_its_module_is_imported(target) -> None:
    sys.modules.pop("antigravity", None)
    with pytest.raises(RefusedError) as caught:
        check_targets({"deep": [{"er": {"_target_": target}}]})
    assert "\n" not in str(caught.value)
    assert "antigravity" not in sys.modules


def test_every_choice_of_the_project_is_allowed() -> None:
    found = [node for path in CONF.rglob("*.yaml") for node in [plain_unresolved(OmegaConf.load(path))]]
    assert len(found) > 40
    for node in found:
        check_targets(node)
    assert allowed_object("torch.nn.Linear") is importlib.import_module("torch.nn").Linear


def test_modules_under_the_working_directory_and_named_packages_are_allowed(tmp_path, monkeypatch) -> None:
    for name, folder in (("mine_here", tmp_path / "here"), ("mine_elsewhere", tmp_path / "elsewhere")):
        folder.mkdir()
        (folder / f"{name}.py").write_text("import os\nclass Thing:\n    pass\ndef make():\n    return Thing()\n")
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path / "here")
    assert build(OmegaConf.create({"_target_": "mine_here.make"}), "backbone").__class__.__name__ == "Thing"
    with pytest.raises(ConfigError, match="OURO_ALLOW=mine_elsewhere"):
        build(OmegaConf.create({"_target_": "mine_elsewhere.make"}), "backbone")
    for target in ("mine_here.os.system", "mine_here.os"):
        with pytest.raises(RefusedError):
            allowed_object(target)
    monkeypatch.setenv("OURO_ALLOW", "first, mine_elsewhere")
    build(OmegaConf.create({"_target_": "mine_elsewhere.make"}), "backbone")


def test_a_module_that_fails_is_one_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine_broken.py").write_text("raise SystemError('first\\nsecond')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedError, match=r"mine_broken.thing: cannot be imported .*first") as caught:
        allowed_object("mine_broken.thing")
    assert "\n" not in str(caught.value)


def test_a_study_that_names_a_system_call_is_refused_by_the_real_entry(capsys) -> None:
    bad = ["objective._target_=os.system", "objective.command=touch"]
    arguments = ["study=p_hop", "arm=looped", "lr=1e-2", *TINY, *bad]
    assert run.main(arguments) == 2
    assert "error: _target_ = os.system: not built from a file" in capsys.readouterr().err
    assert not Path("x").exists()


def test_looking_at_a_config_costs_little_beside_composing_it() -> None:
    content = Study("p_hop", TINY).run("looped", 1e-2, 0).config
    check_targets(content)
    began = time.process_time()
    for _ in range(100):
        check_targets(content)
    assert time.process_time() - began < 1.0  # composing takes 0.5 s once


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "none inside an anchor's value"),
        ("x: " + "[" * 100_000, "levels deep"),
        ("a: {b: [1, 2}", "not YAML"),
        ("\x00", "not YAML"),
        ("a: " + "b" * (1 << 20), "must be at most 1,048,576"),
        ("[1, 2]", "must hold a mapping"),
        ("a: ${b", "config.yaml: "),
        ("a: !!python/object/apply:os.system ['touch x']", "must be one of str"),
    ],
)
def test_yaml_that_is_malformed_or_multiplies_is_one_line(tmp_path, text: str, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("x").exists()


def test_every_study_and_choice_is_yaml_that_is_read() -> None:
    for path in [*CONF.rglob("*.yaml"), *(ROOT / "experiments").rglob("*.yaml")]:
        check_yaml(path)


SECRET = "Zq7-not-for-anyone's-eyes"


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("http://me:pass-word@host:5000/x", "http://me:***@host:5000/x"),
        ("HF hf_abcdefghijklmnopqrstuv!", "HF ***!"),
        ("key sk-abcdefghijklmnopqrstuv", "key ***"),
        ("data.train_tokens=65536 eos_token_id=0", "data.train_tokens=65536 eos_token_id=0"),
        (f"x={SECRET};", "x=***;"),
    ],
)
def test_credentials_are_taken_out_of_text(text: str, without: str, monkeypatch) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    monkeypatch.setenv("TOKEN_COUNT", "65536000")
    assert redact(text) == without


def test_no_file_of_a_run_holds_a_credential(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET.replace("'", ""))
    secret, login = SECRET.replace("'", ""), "http://me:hunter2hunter2@127.0.0.1:9"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ouro_lab.run", f"tracking.uri={login}", secret])
    one = Study("p_hop", [*TINY, f"tracking.uri={login}"]).run("looped", 1e-2, 0)
    records.begin(one.directory, one.identity() | {"overrides": [*one.overrides, f"x={secret}"]}, one.config)
    written = [path.read_text() for path in one.directory.rglob("*") if path.is_file()]
    assert sum("***" in text for text in written) >= 2
    assert not any(secret in text or "hunter2" in text for text in written)


def test_a_config_cannot_read_a_credential_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("PLAIN", "3")
    content = OmegaConf.create({"a": "${oc.env:PLAIN}", "b": "${oc.env:HF_TOKEN}", "c": "${oc.env:NONE_SUCH,4}"})
    assert (content.a, content.c) == ("3", 4) or (content.a, content.c) == ("3", "4")
    with pytest.raises(Exception, match="looks like a credential"):
        _ = content.b
