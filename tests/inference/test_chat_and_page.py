"""The terminal and the page, on a model of bytes that stands in for a checkpoint."""

import io
import re
from types import SimpleNamespace

import pytest
import torch

from ouro_lab.data.tokenizer import ByteTokenizer
from ouro_lab.inference import chat, page
from ouro_lab.inference.exits import Entropy, HiddenDifference, QExit, RandomExit, StaticDepth
from ouro_lab.inference.generate import generate
from ouro_lab.inference.pieces import pieces
from ouro_lab.inference.rule_text import parse_rule
from ouro_lab.inference.sampling import Sampling


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def trunk(make_model) -> SimpleNamespace:
    model = make_model(vocab_size=257)
    return SimpleNamespace(model=model, tokenizer=ByteTokenizer(), data={"length": 64}, config={})


@pytest.fixture
def opened(trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    from ouro_lab import interop

    monkeypatch.setattr(interop, "open_trunk", lambda source: trunk)


def test_a_character_of_several_tokens_is_one_piece_as_deep_as_its_deepest() -> None:
    tokens = list(zip("aé€b".encode(), [1, 2, 3, 1, 4, 2, 1], strict=True))
    assert list(pieces(ByteTokenizer(), tokens)) == [("a", 1), ("é", 3), ("€", 4), ("b", 1)]
    assert list(pieces(ByteTokenizer(), [(0xC3, 2)])) == [("\N{REPLACEMENT CHARACTER}", 2)]


def test_every_piece_has_its_loops_in_digits_or_colour(trunk) -> None:
    rule = RandomExit(mean=2.2)
    made = generate(trunk.model, [list(b"hello")], 12, rule, stop=[256], max_length=64)[0]
    shown = list(pieces(trunk.tokenizer, zip(made.tokens, made.loops, strict=True)))
    for out in (io.StringIO(), Terminal()):
        chat.Chat(trunk, rule, 12, Sampling(), 0, "last_available").talk(["hello\n"], out)
        legend, text = out.getvalue().split("\n", 1)
        assert f"({len(made.tokens)} tokens, {sum(made.loops) / len(made.loops):.2f} loops of 3 on average)" in text
        if out.isatty():
            assert text.startswith("".join(f"\x1b[38;5;{(39, 42, 196)[n - 1]}m{piece}\x1b[0m" for piece, n in shown))
            assert [f"m{loop}\x1b" in legend for loop in (1, 2, 3)] == [True] * 3
        else:
            assert text.startswith("".join(f"{piece}[{n}]" for piece, n in shown))


def test_a_bad_line_is_said_and_the_next_is_answered(trunk) -> None:
    out = io.StringIO()
    chat.Chat(trunk, None, 4, Sampling(), 0, "last").talk(["", "x" * 61, "ok"], out)
    assert "error: prompts[0] is empty" in out.getvalue()
    assert "error: prompts[0] has 61 tokens: must be at most 60" in out.getvalue()
    assert "(4 tokens, 3.00 loops of 3 on average)" in out.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "QExit(q=2)"], "q = 2: must be"),
        (["--rule", "Exit(1)"], "rule = 'Exit(1)': unknown; must be one of ArgmaxStable, Entropy"),
        (["--rule", "QExit(p=0.1)"], "rule = 'QExit(p=0.1)': "),
        (["--rule", "__import__('os')"], "unknown; must be one of"),
        (["--rule", "q > 1"], "must be a call such as QExit(q=0.5)"),
        (["--temperature", "-1"], "temperature = -1.0: must be a number ≥ 0"),
        (["--decode", "full", "--rule", "StaticDepth(1)"], "decode = full: must be last_available"),
    ],
)
def test_bad_options_are_one_line(opened, capsys: pytest.CaptureFixture[str], arguments: list, message: str) -> None:
    assert chat.main(["somewhere", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_missing_checkpoint_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    assert chat.main([str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


def test_the_command_reads_lines_from_a_pipe(opened, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert chat.main(["trunk", "--tokens", "3", "--rule", "Entropy(h=5.3)", "--temperature", "1"]) == 0
    assert capsys.readouterr().out.count("loops of 3 on average") == 2


def test_rules_are_parsed_with_their_values() -> None:
    assert parse_rule("QExit(0.5)") == QExit(0.5)
    assert parse_rule(" RandomExit(probabilities=[0.5, 0.5], seed=3)") == RandomExit(probabilities=(0.5, 0.5), seed=3)


@pytest.mark.parametrize("rule", [StaticDepth(2), QExit(0.6), HiddenDifference(3.0), Entropy(2.9), QExit(0.6, True)])
def test_teacher_forced_depths_are_the_rule_s_on_full_states(make_model, rule) -> None:
    from ouro_lab.evaluation.trajectory import trajectory  # measured by tables, another way to the same

    model = make_model()
    tokens = torch.randint(23, (1, 17), generator=torch.Generator().manual_seed(1))
    batch = {"tokens": tokens, "targets": tokens}
    loader = {name: lambda: [batch] for name in ("val_dataloader", "test_dataloader")}
    data = SimpleNamespace(groups=(), prepare_data=lambda: None, **loader)
    expected = trajectory(model, data, "test", rules=[rule]).exit_loops(rule).tolist()
    assert page.exit_depths(model, tokens[0].tolist(), rule) == expected


def test_the_page_shows_the_text_and_escapes_it(opened, trunk, tmp_path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.html"
    source.write_text("é <b> & more", "utf-8")
    assert page.main(["trunk", str(source), str(target), "--rule", "RandomExit(mean=1.5)"]) == 0
    html = target.read_text("utf-8")
    body = html[html.index("<p>") :]
    assert "".join(re.findall(r"<span[^>]*>([^<]*)</span>", body)) == "é &lt;b&gt; &amp; more"
    depths = page.exit_depths(trunk.model, list(source.read_bytes()), RandomExit(mean=1.5))
    assert [int(n) for n in re.findall(r'class="l(\d)"', body)] == [max(depths[0], 0), *depths[1:-1]]
    assert "http" not in html and all(f".l{loop}{{" in html for loop in (1, 2, 3))


def test_the_page_refuses_in_one_line(opened, trunk, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.html"
    for text, message in (("", "text is empty"), ("x" * 65, "text has 65 tokens: must be at most 64")):
        source.write_text(text)
        assert page.main(["trunk", str(source), str(target), "--rule", "StaticDepth(1)"]) == 2
        assert message in capsys.readouterr().err
    trunk.model.early_exit_gate = None
    with pytest.raises(ValueError, match="needs an exit gate"):
        page.exit_depths(trunk.model, [1], QExit(0.5))
    assert not target.exists()
