"""Models made of run folders again: they label as the run's evaluation did, and what they lack is one sentence."""

import csv
import json
import shlex
import shutil

import numpy as np
import pytest
from fakes import draw_nothing
from tiny import TinyNet, use_tiny_network

import dslth_jax
from dslth_jax.networks.network import network_of
from dslth_jax.study.config.command import help_of
from dslth_jax.study.results import predict
from dslth_jax.study.results.folders import read_config, read_run
from experiments import cifar

FLAGS = ["--dataset", "digits", "--model", "tiny", "--agents", "4", "--topology", "ring", "--rounds", "2"]
RUNS = {
    "mce-pl": ["--preset", "tuned", "--retention", "0.2,0.3,0.5,0.9", "--fusion", "force"],
    "mce-pl, ternary": ["--preset", "tuned", "--mask", "ternary", "--mixing", "similarity"],
    "dsgd": ["--algorithm", "dsgd"],
}
SLOW = {
    "mce-pl, dead scores": ["--group-lasso", "0.01", "--filter-rule", "2"],
    **{name: ["--algorithm", name, "--preset", "tuned"] for name in ("mask-mean", "fedpm", "score-gossip", "dis-pfl")},
}
CASES = [*RUNS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a run by its name; trained once."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        draw_nothing(patch)

        def folder(name):
            if name not in made:
                made[name] = tmp_path_factory.mktemp("run") / name
                assert cifar.main([*FLAGS, *(RUNS | SLOW)[name], "--out", str(made[name])]) == 0
            return made[name]

        yield folder


def table_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_images_that_are_predicted_are_of_no_algorithm():
    """A run's --images is another flag, of those who learn alone."""
    said = help_of(predict.Predict, "dslth predict")
    assert "--images" in said
    assert "independent" not in said


@pytest.mark.parametrize("name", CASES)
def test_models_of_a_folder_label_as_its_run_did(name, folder_of):
    """So each has the accuracies of agents.csv, the one balanced over classes too, and together they have those of
    classes.csv."""
    data, models = dslth_jax.load_data("digits"), dslth_jax.load(folder_of(name))
    rows, of_class = table_of(folder_of(name) / "agents.csv"), {}
    assert models.agents == len(rows) == 4
    for number, row in enumerate(rows):
        model = models.agent(number)
        own = np.isin(data.test_labels, [int(label) for label in row["classes"].split()])
        right = model.predict(data.test_images[own]) == data.test_labels[own]
        assert round(float(right.mean(dtype=np.float32)), 6) == float(row["accuracy"])
        each = {label: right[data.test_labels[own] == label] for label in map(int, row["classes"].split())}
        balanced = np.mean([of_one.mean() for of_one in each.values()])
        assert float(row["balanced_accuracy"]) == pytest.approx(balanced, abs=1e-6)
        for label, of_one in each.items():
            of_class.setdefault(label, []).extend(of_one)
        assert model.logits(data.test_images[:3]).shape == (3, 10)
        if row["density"]:
            kept, sizes = zip(
                *((np.abs(m).sum(), m.size) for layer in leaves(model.masks) for m in [layer]), strict=True
            )
            assert sum(kept) / sum(sizes) == pytest.approx(float(row["density"]), abs=1e-6)
        else:
            assert model.masks is None
    assert [
        (row["class"], int(row["test_samples"]), float(row["accuracy"]))
        for row in table_of(folder_of(name) / "classes.csv")
    ] == [(str(label), len(own), pytest.approx(np.mean(own), abs=1e-6)) for label, own in sorted(of_class.items())]


def leaves(tree):
    return [leaf for own in tree.values() for leaf in (leaves(own) if isinstance(own, dict) else [own])]


def test_a_network_of_ones_own_is_handed_in(folder_of, monkeypatch):
    folder = folder_of("mce-pl")
    own = network_of(TinyNet(classes=10), (8, 8, 1), weights="signed-constant", zero_biases=True)
    images = dslth_jax.load_data("digits").test_images
    found = dslth_jax.load(folder, own).agent(2).logits(images)
    np.testing.assert_array_equal(found, dslth_jax.load(folder).agent(2).logits(images))
    with pytest.raises(ValueError, match=r"must hold masks of .* name the run's network"):
        dslth_jax.load(folder, network_of(TinyNet(classes=9), (8, 8, 1))).agent(0)


def test_what_lacks_a_model_is_one_sentence(folder_of, tmp_path):
    models = dslth_jax.load(folder_of("mce-pl"))
    with pytest.raises(ValueError, match=r"agent must be in 0\.\.3, got 4"):
        models.agent(4)
    with pytest.raises(ValueError, match=r"images must be uint8 of \(images, 8, 8, 1\), got float64 of \(1, 8, 8\)"):
        models.agent(0).predict(np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match=r"a run folder was expected, and .* holds no config\.json"):
        dslth_jax.load(tmp_path)
    folder = tmp_path / "lost"
    shutil.copytree(folder_of("mce-pl"), folder)
    (folder / "masks.npz").unlink()
    with pytest.raises(ValueError, match=r"has lost its masks\.npz"):
        dslth_jax.load(folder).agent(0)
    shutil.copytree(folder_of("dsgd"), tmp_path / "torn")
    (tmp_path / "torn" / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"weights\.safetensors cannot be read"):
        dslth_jax.load(tmp_path / "torn").agent(0)
    config = json.loads((folder / "config.json").read_text())
    x64 = {**config["numerics"], "JAX_ENABLE_X64": "True"}
    for changed, said in (
        ({"images": None}, r"was written by a version before 0\.5"),
        ({"finished": None}, "has not come to its end"),
        ({"numerics": x64}, "was trained with .*'JAX_ENABLE_X64': 'True'.* set the same"),
        ({"numerics": None}, "does not say with which numbers it was trained: put back"),
        ({"settings": {**config["settings"], "warmth": 1}}, "has settings that nobody here knows, warmth: load it in"),
        ({"settings": {**config["settings"], "algorithm": "mine"}}, "--algorithm must be one of .*, got 'mine'"),
    ):
        now = {name: own for name, own in {**config, **changed}.items() if own is not None}
        (folder / "config.json").write_text(json.dumps(now))
        with pytest.raises(ValueError, match=said):
            dslth_jax.load(folder)


def test_models_are_shown_in_a_line(folder_of):
    models = dslth_jax.load(folder_of("dsgd"))
    assert repr(models) == f"Models({folder_of('dsgd')}, agents=4, algorithm='dsgd')"
    assert repr(models.agent(0)) == "Model(image_shape=(8, 8, 1), classes=10)"


def test_no_images_have_no_labels(folder_of):
    model = dslth_jax.load(folder_of("dsgd")).agent(0)
    assert model.predict(np.zeros((0, 8, 8, 1), np.uint8)).shape == (0,)
    assert model.logits(np.zeros((0, 8, 8, 1), np.uint8)).shape == (0, 10)


def test_a_run_speaks_the_datas_own_labels(folder_of, tmp_path, capsys):
    """Of digits by their names it learns what it learns of digits: only the words of tables and predictions differ."""
    data, plain = dslth_jax.load_data("digits"), folder_of("dsgd")
    names = np.array(["a zero", "b", "c", "d", "e", "f's", "g", "h#", "i", "j"])  # in the order of the digits
    arrays = {name: getattr(data, name) for name in ("train_images", "test_images")}
    labels = {f"{part}_labels": names[getattr(data, f"{part}_labels")] for part in ("train", "test")}
    np.savez(tmp_path / "own.npz", **arrays, **labels)
    folder, flags = tmp_path / "run", [word for word in FLAGS if word not in ("--dataset", "digits")]
    flags += [*RUNS["dsgd"], "--data-file", str(tmp_path / "own.npz"), "--out", str(folder)]
    assert cifar.main(flags) == 0
    said = capsys.readouterr().out
    assert "a zero, b, c, d, e, f's, g, h#, i, j" in said
    assert "\ncompiling\n" in said  # where no spinner turns
    assert json.loads((folder / "config.json").read_text())["images"]["labels"] == names.tolist()
    for own, other in zip(table_of(folder / "agents.csv"), table_of(plain / "agents.csv"), strict=True):
        assert shlex.split(own["classes"]) == [names[int(label)] for label in other["classes"].split()]
        assert {**own, "classes": ""} == {**other, "classes": ""}
    for own, other in zip(table_of(folder / "classes.csv"), table_of(plain / "classes.csv"), strict=True):
        assert own == {**other, "class": names[int(other["class"])]}
    found, images = dslth_jax.load(folder).agent(1).predict(data.test_images[:20]), tmp_path / "images.npy"
    np.testing.assert_array_equal(found, names[dslth_jax.load(plain).agent(1).predict(data.test_images[:20])])
    np.save(images, data.test_images[:20])
    out = tmp_path / "labels.csv"
    assert predict.main("dslth predict", [str(folder), "--agent", "1", "--images", str(images), "--out", str(out)]) == 0
    nowhere = ["--images", str(images), "--out", str(tmp_path / "none" / "labels.csv")]
    assert predict.main("dslth predict", [str(folder), *nowhere]) == 2
    assert [row["label"] for row in table_of(out)] == found.tolist()
    assert read_run(folder, "own", read_config(folder)).agents[0]["classes"][0] in names


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_labels_of_images_in_a_file(ending, folder_of, tmp_path, capsys):
    images = dslth_jax.load_data("digits").test_images[:5, ..., 0]  # grey, without an axis of channels
    path, out = tmp_path / f"own.{ending}", tmp_path / "labels.csv"
    np.save(path, images) if ending == "npy" else np.savez(path, images=images, other=np.zeros(3))
    words = [str(folder_of("dsgd")), "--agent", "3", "--images", str(path), "--out", str(out)]
    assert predict.main("dslth predict", words) == 0
    wanted = dslth_jax.load(folder_of("dsgd")).agent(3).predict(images[..., None])
    with out.open() as file:
        assert [(row["image"], int(row["label"])) for row in csv.DictReader(file)] == [
            (str(number), label) for number, label in enumerate(wanted.tolist())
        ]
    assert predict.main("dslth predict", [*words[:-1], str(path)]) == 2
    assert "is the file of the images, which it would replace: name another" in capsys.readouterr().err
    path.write_bytes(b"torn")
    assert predict.main("dslth predict", words) == 2
    said = capsys.readouterr().err
    assert said == f"dslth predict: the images {path} must be a readable .npy or .npz: it is torn or something else\n"
