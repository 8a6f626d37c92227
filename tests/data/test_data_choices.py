"""Every file of conf/data builds: its leaves are constructor arguments and its seed is the run's."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ouro_lab.data import DialogueData, TaskData, TextData

FILES = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))
CHOICES = [path for path in FILES if path.stem != "questions"]  # a seed is a fold of theirs, of those of a file


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: path.stem)
def test_a_choice_builds_with_the_seed_of_the_run(path: Path, tmp_path: Path) -> None:
    config = OmegaConf.create({"seed": 7, "data": OmegaConf.load(path)})
    if path.stem == "text_file":
        config.data.corpus.path = "some/file.txt"
    if path.stem == "table":
        config.data.task.path = str(tmp_path / "own.csv")
        Path(config.data.task.path).write_text("prompt,answer\n" + "".join(f"{i},{i}\n" for i in range(50)))
    data = instantiate(config.data, _convert_="all")
    assert isinstance(data, TaskData | TextData | DialogueData)
    assert data.seed == 7
    assert data.vocab_size > 4
