"""Settings: known by name, refused with the way out, saved and read back the same."""

import pytest
import torch

from evaluator import checkpoint
from search.config import RunConfig, load_config
from search.folder import RunFolder
from search.session import open_dense
from space import BudgetError, Layout, RunFolderError, SettingError
from tests.space.layouts import SMOLLM2_135M
from tests.space.timings import made_up

LEAST = {"model": "pico", "budget": ["parameters=0.8"]}


def test_yaml_round_trip(tmp_path):
    config = load_config(
        None,
        {
            **LEAST,
            "budget": ["parameters=0.8", "weight_bytes=200M"],
            "text.validate": 7,
            "text.source": "garden.txt",
            "space.sparsities": [0.0, 0.5],
            "search.rounds": 2,
            "seed": 3,
        },
    )
    folder = RunFolder(tmp_path / "run")
    folder.prepare(config)
    assert folder.config() == config
    assert load_config(folder.config_file, {}) == config
    assert config.text.validate_ == 7
    assert "validate: 7" in config.to_yaml()


def test_the_default_settings_are_all_written(tmp_path):
    text = RunConfig.model_validate(LEAST).to_yaml()
    for name in ("rounds", "sequence_length", "criterion", "removal", "seed", "finalists"):
        assert f"{name}:" in text


def test_other_text_is_held_to_be_of_another_kind_where_that_is_said():
    settings = [load_config(None, {**LEAST, **text}) for text in ({}, {"text.shift": None}, {"text.shift": 2.0})]
    assert [each.text.shift for each in settings] == [0.0, 0.0, 2.0]
    # Sequences are compared where the shift is to be known, and all there are.
    assert [each.prior_sequences for each in settings] == [1, 1, settings[2].text.search]


def test_overrides_win_over_the_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("model: pico\nbudget: parameters=0.8\nseed: 1\nsearch: {rounds: 2, picks: 5}\n")
    config = load_config(file, {"seed": 9, "search.rounds": 3})
    assert (config.budget, config.seed) == (("parameters=0.8",), 9)
    assert (config.search.rounds, config.search.picks) == (3, 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sead": 1}, "must be one of model, budget, text, .*seed, but 'sead' is none of them; remove or rename it"),
        ({"search.round": 1}, "must be one of strategy, .*rounds.*, but 'search.round' is none of them"),
        ({"text.validate_": 1}, "must be one of .*, validate, .*, but 'text.validate_' is none of them"),
        ({"seed": -1}, "'seed' must be valid, but is -1: .*greater than or equal to 0; change it"),
        ({"search.rounds": "many"}, "'search.rounds' must be valid, but is 'many'"),
        ({"criterion": "guess"}, "'criterion' must be valid, but is 'guess'"),
        ({"budget": []}, "'budget' must be valid"),
        ({"seed.more": 1}, "seed must hold settings by name to set seed.more, but is 0"),
    ],
)
def test_refusals(overrides, message):
    with pytest.raises(SettingError, match=message) as refused:
        load_config(None, {**LEAST, "seed": 0, **overrides})
    assert "\n" not in str(refused.value)


def test_what_is_missing_is_named():
    with pytest.raises(SettingError, match=r"'model' must be given, but is missing; add it, e.g. --model"):
        load_config(None, {"budget": ["parameters=0.8"]})


@pytest.mark.parametrize("budget", ["size=0.8", "parameters", "parameters=0", "parameters=-1", "parameters=much"])
def test_budgets_that_cannot_be_read(budget):
    with pytest.raises(BudgetError, match=r"write for example parameters=0\.8"):
        load_config(None, {**LEAST, "budget": [budget]})


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "must exist"), (b"model: [", "must be YAML"), (b"\xff\xfe\x00", "must be YAML"), (b"- 1\n", "by name")],
)
def test_files_that_are_no_settings(content, message, tmp_path):
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingError, match=message):
        load_config(file, {})


@pytest.mark.parametrize(
    ("budget", "more", "widths", "sparse", "removed"),
    [
        ("parameters=0.8", {}, True, False, True),
        ("nonzero_parameters=0.5", {}, False, True, False),
        ("nonzero_parameters=0.5", {"space.widths": True}, True, True, True),
        ("parameters=0.8", {"space.removal": False}, True, False, False),
        ("parameters=0.8", {"space.sparsities": [0.0, 0.5]}, True, True, True),
    ],
)
def test_the_budget_decides_what_is_searched(budget, more, widths, sparse, removed):
    space = load_config(None, {**LEAST, "budget": [budget], **more}).search_space(SMOLLM2_135M)
    mlp = space.choices[1]
    assert (len({choice.width for choice in mlp} - {0, 1536}) > 0) == widths
    assert any(choice.sparsity for choice in mlp) == sparse
    assert any(choice.width == 0 for choice in mlp) == removed


def test_a_budget_on_latency_asks_for_widths_beside_zeros():
    config = load_config(None, {**LEAST, "budget": ["nonzero_parameters=0.5", "latency=0.8"]})
    mlp = config.search_space(SMOLLM2_135M, made_up(SMOLLM2_135M)).choices[1]
    assert {choice.width for choice in mlp} > {0, 128, 1536}
    assert any(choice.sparsity for choice in mlp)
    with pytest.raises(BudgetError, match="must have a table of timings"):
        config.search_space(SMOLLM2_135M)


@pytest.mark.parametrize(("key", "value"), [("phase", "training"), ("batch", 0), ("repeats", 0), ("tokens", 3)])
def test_what_is_timed_is_checked(key, value):
    with pytest.raises(SettingError, match=f"latency.{key}"):
        load_config(None, {**LEAST, f"latency.{key}": value})


@pytest.mark.parametrize("written", ["2:4", 124, "'2:4'"])
def test_a_pattern_is_read_with_and_without_quotes(written, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(f"model: pico\nbudget: nonzero_parameters=0.8\ncriterion: {{pattern: {written}}}\n")
    config = load_config(file, {})
    assert config.criterion.pattern == "2:4"
    assert {choice.sparsity for choice in config.search_space(SMOLLM2_135M).choices[0]} == {0.0, 0.5}
    file.write_text(config.to_yaml())
    assert load_config(file, {}) == config


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"criterion.pattern": "4:2"}, r"must be N:M with 0 < N < M, but is '4:2'"),
        ({"criterion.pattern": True}, r"must be N:M .*but is"),
        ({"criterion.pattern": "2:4", "budget": ["parameters=0.8"]}, r"its sparsities are 0; give a budget on nonzero"),
        ({"criterion.pattern": "2:4", "space.sparsities": [0, 0.3]}, r"one way to make zeros .*sparsities are 0, 0.3"),
        ({"criterion.pattern": "1:3"}, r"a share of at most 4 decimals, .* 1:3 keeps 0\.333"),
        ({"criterion.pattern": "2:5"}, r"must divide the features of every projection, but the hidden size is 576"),
        (
            {"criterion.pattern": "2:4", "space.widths": True, "space.width_step": 6},
            r"but the space.width_step is 6; choose another",
        ),
    ],
)
def test_patterns_that_a_run_cannot_keep(more, message):
    with pytest.raises(SettingError, match=message):
        load_config(None, {**LEAST, "budget": ["nonzero_parameters=0.8"], **more}).search_space(SMOLLM2_135M)


def test_a_budget_that_no_architecture_meets():
    config = load_config(None, {**LEAST, "space.removal": False, "budget": ["parameters=0.01"]})
    with pytest.raises(BudgetError, match=r"must be met by some architecture .*raise the budget or allow smaller"):
        config.search_space(SMOLLM2_135M)


class TestFolder:
    CONFIG = RunConfig.model_validate(LEAST)

    def test_of_another_run(self, tmp_path):
        folder = RunFolder(tmp_path / "run")
        folder.prepare(self.CONFIG)
        before = folder.config_file.read_bytes()
        with pytest.raises(RunFolderError, match=r"its own settings, but .* has seed 0 and this command says 1;"):
            folder.prepare(self.CONFIG.model_copy(update={"seed": 1}))
        assert folder.config_file.read_bytes() == before

    def test_of_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(RunFolderError, match=r"holds other files and no config.yaml; choose another with --out"):
            RunFolder(tmp_path).prepare(self.CONFIG)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
        with pytest.raises(RunFolderError, match=r"must be a folder, but .* is a file"):
            RunFolder(tmp_path / "thesis.tex").prepare(self.CONFIG)

    def test_killed_while_it_wrote_its_first_file(self, tmp_path):
        (tmp_path / ".lock").touch()
        (tmp_path / ".config.yaml.partial").write_text("model: pi")
        folder = RunFolder(tmp_path)
        folder.prepare(self.CONFIG)
        assert folder.config() == self.CONFIG

    def test_held_by_another_process(self, tmp_path):
        folder = RunFolder(tmp_path / "run")
        with folder.locked(), pytest.raises(RunFolderError, match="by one process, but another one holds"):  # noqa: SIM117
            with RunFolder(tmp_path / "run").locked():
                pass
        with folder.locked():
            pass

    def test_of_another_model(self, tmp_path):
        folder = RunFolder(tmp_path / "run")
        folder.prepare(self.CONFIG)
        folder.keep_layout("pico", "aaaa", SMOLLM2_135M, "float32")
        # The same weights elsewhere are the same model.
        folder.keep_layout("moved/pico", "aaaa", SMOLLM2_135M, "float32")
        with pytest.raises(RunFolderError, match="was written by weights aaaa and 'pico' now has bbbb; choose another"):
            folder.keep_layout("pico", "bbbb", SMOLLM2_135M, "float32")
        assert folder.layout() == SMOLLM2_135M

    def test_goes_on_in_the_dtype_that_it_began_in(self, pico_folder, tmp_path, monkeypatch):
        folder = RunFolder(tmp_path / "run")
        config = load_config(None, {"model": str(pico_folder), "budget": "parameters=0.7"})
        assert folder.dtype() == "auto"
        folder.prepare(config)
        for began, now in (("float32", torch.bfloat16), ("bfloat16", torch.float32)):
            folder.layout_file.unlink(missing_ok=True)
            folder.keep_layout("pico", "aaaa", SMOLLM2_135M, began)
            monkeypatch.setattr(checkpoint, "choose_dtype", lambda name, _, now=now: getattr(torch, name, now))
            assert open_dense(config, folder).dtype == began
            assert open_dense(config).dtype != began

    def test_of_an_unknown_dtype(self, tmp_path):
        folder = RunFolder(tmp_path)
        folder.keep_layout("pico", "aaaa", SMOLLM2_135M, "int3")
        with pytest.raises(RunFolderError, match="must be one of auto, float32, bfloat16, float16, but is 'int3'"):
            folder.dtype()

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"layout": {"layers": 3}}', '{"layout": 3}'])
    def test_a_damaged_layout(self, content, tmp_path):
        folder = RunFolder(tmp_path)
        folder.layout_file.write_text(content)
        with pytest.raises(RunFolderError, match=r"layout\.json of a run folder must be intact"):
            folder.layout()

    @pytest.mark.parametrize("content", ["", "model: [", "- 1", "model: pico\n", "model: pico\nbudget: [nonsense]\n"])
    def test_damaged_settings(self, content, tmp_path):
        folder = RunFolder(tmp_path)
        folder.config_file.write_text(content)
        with pytest.raises(RunFolderError, match=r"The config\.yaml of a run folder must be intact"):
            folder.config()

    def test_an_unused_layout_is_the_same_read_back(self, tmp_path):
        folder = RunFolder(tmp_path)
        folder.keep_layout("pico", "aaaa", SMOLLM2_135M, "float32")
        assert isinstance(folder.layout(), Layout)
