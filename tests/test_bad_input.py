"""Bad input: every flag, every file, from the command and from Python; then thousands of random flags and files."""

import contextlib
import dataclasses
import io
import os
import random
import re
import shlex
import signal
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dslth_jax.study import commands
from dslth_jax.study.config.algorithms import PRESETS, foreign_to
from dslth_jax.study.config.command import parse
from dslth_jax.study.config.resolve import resolve
from dslth_jax.study.config.setting import choices, flag, parts
from dslth_jax.study.config.settings import SETTINGS, Settings
from dslth_jax.study.data import download
from dslth_jax.study.results import folders
from dslth_jax.study.training.plan import plan
from dslth_jax.study.training.prepare import prepare
from experiments import cifar

SAMPLES = 12


def arrays(**changed: Any) -> dict[str, np.ndarray]:
    """A small data set of one's own, with some arrays changed, or left out where None."""
    kept = {
        "train_images": np.zeros((SAMPLES, 6, 5, 1), np.uint8),
        "train_labels": np.arange(SAMPLES) % 3,
        "test_images": np.zeros((6, 6, 5, 1), np.uint8),
        "test_labels": np.arange(6) % 3,
    }
    return {key: np.asarray(value) for key, value in (kept | changed).items() if value is not None}


def npz(**changed: Any) -> bytes:
    """The same as a file's content."""
    file = io.BytesIO()
    np.savez(file, **arrays(**changed))
    return file.getvalue()


def archive(**members: bytes) -> bytes:
    """A zip archive of files that need be no arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file.getvalue()


HUGE = (
    b"\x93NUMPY\x01\x00\x4c\x00{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }\n" % 10**18
)  # says its header

# What lies in the folder of files while a row is tried; rows name them in braces. None is a folder.
FILES: dict[str, bytes | None] = {
    "good.npz": npz(),
    "text.npz": b"train_images, train_labels\n",
    "empty.npz": b"",
    "torn.npz": npz()[:-40],
    "array.npy": npz()[60:],
    "keyless.npz": npz(train_labels=None, test_images=None),
    "floats.npz": npz(train_images=np.zeros((SAMPLES, 6, 5, 1))),
    "flat.npz": npz(train_images=np.zeros((SAMPLES, 30), np.uint8)),
    "sideless.npz": npz(train_images=np.zeros((SAMPLES, 0, 5, 1), np.uint8)),
    "shapes.npz": npz(test_images=np.zeros((6, 5, 6, 1), np.uint8)),
    "short.npz": npz(train_labels=np.zeros(3, int)),
    "negative.npz": npz(train_labels=np.arange(SAMPLES) - 1, classes=SAMPLES),
    "fractions.npz": npz(train_labels=np.arange(SAMPLES) / 2),
    "times.npz": npz(train_labels=np.arange(SAMPLES).astype("m8[s]")),
    "sampleless.npz": npz(train_images=np.zeros((0, 6, 5, 1), np.uint8), train_labels=np.zeros(0, int)),
    "far.npz": npz(train_labels=np.full(SAMPLES, 100_000), classes=100_001),
    "fewer.npz": npz(classes=2),
    "many.npz": npz(classes=np.full((2, 2), 3)),
    "objects.npz": npz(train_labels=np.array([None] * SAMPLES)),
    "bytes.npz": archive(train_images=b"pixels", train_labels=b"1", test_images=b"pixels", test_labels=b"1"),
    "untested.npz": npz(test_labels=np.zeros(6, int)),
    "huge.npz": archive(**{"train_images.npy": HUGE}),
    "oblong.txt": b"0 1 0\n1 0 1\n",
    "ragged.txt": b"0 1 0\n1 0\n0 1 0\n",
    "minus.txt": b"0 -2\n-2 0\n" + b"0 0\n" * 2,
    "one-way.txt": b"0 1 0 0\n0 0 1 0\n0 0 0 1\n1 0 0 0\n",
    "selfish.txt": b"1 0 0 0\n" + b"0 0 0 0\n" * 3,
    "two.txt": b"0 1\n1 0\n",
    "binary.txt": b"\x93NUMPY\xff\xfe",
    "blank.txt": b" \n\n",
    "class-10.txt": b"0 1\n2 10\n3\n4\n",
    "words.txt": b"0 1\ncat dog\n3\n4\n",
    "twice.txt": b"0 1\n2 2\n3\n4\n",
    "owners.csv": b"0,1\n0,2\n",
    "three.txt": b"0\n1\n2\n",
    "dead.txt": b"0 0\n1 0\n",
    "unsorted.txt": b"2 1\n1 1\n",
    "slow.txt": b"0 1\n1 -2\n",
    "file": b"",
    "folder": None,
    "full/run": b"",
    "torn/cifar10/3.0.2/dataset_info.json": b"{",
}  # fmt: skip
LONG = "n" * 300

# By field: values that its flag does not take, part of the sentence, and flags beside (`--dataset digits --agents 4` is
# said before all). A value of None is the flag alone.
REFUSED: dict[str, list[tuple[str | None, str, str]]] = {
    "dataset": [
        ("imagenet", "--dataset must be one of cifar10, cifar100, fashion_mnist, mnist, svhn_cropped, digits, got", ""),
        ("cifar-10", "got 'cifar-10'; did you mean cifar10?", ""),
    ],
    "data_file": [
        ("{missing.npz}", "must be a readable .npz: No such file or directory", ""),
        ("{folder}", "must be a readable .npz: Is a directory", ""),
        ("{pipe}", "must be a readable .npz: it is no ordinary file", ""),
        ("{text.npz}", "must be a readable .npz: it is torn or something else", ""),
        ("{empty.npz}", "must be a readable .npz: it is torn or something else", ""),
        ("{torn.npz}", "must be a readable .npz: it is torn or something else", ""),
        ("{array.npy}", "must be a readable .npz: it is torn or something else", ""),
        ("{objects.npz}", "train_labels in {objects.npz} must be no Python objects: save it with .astype(str)", ""),
        ("{huge.npz}", "must be a readable .npz: it is torn or something else", ""),
        (LONG, "must be a readable .npz: File name too long", ""),
        ("{keyless.npz}", "it lacks train_labels, test_images", ""),
        ("{floats.npz}", "train_images in {floats.npz} must be uint8 of (samples, height, width, channels), got f", ""),
        ("{flat.npz}", "got uint8 of (12, 30)", ""),
        ("{sideless.npz}", "got uint8 of (12, 0, 5, 1)", ""),
        ("{bytes.npz}", "train_images in {bytes.npz} must be uint8 of (samples, height, width, channels), got |S6", ""),
        ("{shapes.npz}", "must have one shape, got (6, 5, 1) and (5, 6, 1)", ""),
        ("{short.npz}", "train_labels in {short.npz} must be 12 whole numbers, or words, got int64 of (3,)", ""),
        ("{fractions.npz}", "must be 12 whole numbers, or words, got float64 of (12,)", ""),
        ("{times.npz}", "must be 12 whole numbers, or words, got timedelta64[s] of (12,)", ""),
        ("{negative.npz}", "must count from 0 where it gives classes, got -1: leave classes out", ""),
        ("{sampleless.npz}", "train_labels in {sampleless.npz} must not be empty", ""),
        ("{far.npz}", "classes in {far.npz} must be one whole number above every label, of which 100000 is", ""),
        ("{fewer.npz}", "must be one whole number above every label, of which 2 is the largest", ""),
        ("{many.npz}", "of which 2 is the largest, and at most 100000, got int64 of (2, 2)", ""),
        ("{untested.npz}", "has no test samples of its classes", "--classes-per-agent 1"),
        ("{good.npz}", "per_agent must lie in 1..3, the classes that there are, got 4", ""),
        ("{good.npz}", "--data-file and --dataset contradict each other: leave one of them out", "--dataset mnist"),
        ("{good.npz}", "--data-file and --data-dir contradict each other", "--data-dir {folder}"),
    ],
    "data_dir": [
        ("{missing}", "does not exist or is no folder: create it, or leave --data-dir out", "--dataset cifar10"),
        ("{file}", "{file} does not exist or is no folder", "--dataset cifar10"),
        ("~nobody-of-this-name", "~nobody-of-this-name does not exist or is no folder", "--dataset cifar10"),
        (LONG, "does not exist or is no folder", "--dataset cifar10"),
        ("{loop}", "{loop} does not exist or is no folder", "--dataset cifar10"),
        ("{torn}", "must be as tensorflow-datasets prepared it, and cannot be read", "--dataset cifar10"),
        ("{torn/cifar10}", "must be the folder that holds cifar10, got {torn/cifar10} itself", "--dataset cifar10"),
        ("{folder}", "digits needs none: leave it out", ""),
    ],
    "resize": [
        ("3", "of the images' side, got 3: be one of [1, 2, 4, 8]; --resize None leaves them as they are", ""),
        ("0", "--resize must be in 1..2147483647, got 0", ""),
    ],
    "data_fraction": [
        ("half", "--data-fraction must be a number, got 'half'", ""),
        ("0", "--data-fraction must be in (0, 1], got 0.0", ""),
        ("1.01", "--data-fraction must be in (0, 1], got 1.01", ""),
        ("nan", "--data-fraction must be in (0, 1], got nan", ""),
        ("1e-300", "at a data fraction of 1e-300 are too few, each must get one: take fewer agents or more", ""),
    ],
    "validation": [
        ("some", "--validation must be a number, got 'some'", ""),
        ("1", "--validation must be in [0, 1), got 1.0", ""),
        ("-0.1", "--validation must be in [0, 1), got -0.1", ""),
        ("0.9999", "a share of 0.9999 would hold back 360 of the 360 training samples of agent", "--partition iid"),
        ("1e-9", "--validation: a share of 1e-09 would hold back 0 of the ", ""),
    ],
    "partition": [
        ("clases:3", "--partition must be one of classes[:PER_AGENT], overlapping[:OVERLAP[:PER_AGENT]], dirichl", ""),
        ("classes:some", "--partition classes takes a whole number for PER_AGENT, got 'some'", ""),
        ("classes:0", "--partition classes:0: per_agent must lie in 1..10, the classes that there are, got 0", ""),
        ("dirichlet:0", "--partition dirichlet:0: alpha must lie in 1e-06..1e+06, got 0", ""),
        ("quantity:inf", "--partition quantity:inf: alpha must lie in 1e-06..1e+06, got inf", ""),
        ("iid:3", "--partition iid takes no number, got iid:3", ""),
        ("iid", "1437 training samples for 2000 agents at a data fraction of 1 are too few", "--agents 2000"),
        ("iid", "--partition and --classes-per-agent contradict each other", "--classes-per-agent 2"),
        ("iid", "--partition and --dirichlet-alpha contradict each other", "--dirichlet-alpha 1"),
    ],
    "classes_per_agent": [
        ("two", "--classes-per-agent must be a whole number, got 'two'", ""),
        ("0", "--classes-per-agent must be in 1..2147483647, got 0", ""),
        ("11", "--partition classes:11: per_agent must lie in 1..10, the classes that there are, got 11", ""),
    ],
    "class_file": [
        ("{missing.txt}", "and cannot be read: No such file or directory", ""),
        ("{folder}", "and cannot be read: Is a directory", ""),
        ("{pipe}", "and cannot be read: it is no ordinary file", ""),
        ("{binary.txt}", "and cannot be read: it is no text", ""),
        (LONG, "and cannot be read: File name too long", ""),
        ("{blank.txt}", "must hold one line of classes an agent, and it is empty", ""),
        ("{class-10.txt}", "must hold classes in 0..9, separated by blanks, got '10' in line 2", ""),
        ("{words.txt}", "got 'cat' in line 2", ""),
        ("{twice.txt}", "must name a class once a line, got ['2', '2'] in line 2", ""),
        ("{three.txt}", "one line for each of 4 agents, got 3: mend it, or say --agents 3", ""),
        ("{three.txt}", "--class-file and --classes-per-agent contradict each other", "--classes-per-agent 2"),
        ("{three.txt}", "--class-file and --partition contradict each other", "--partition iid"),
        ("{three.txt}", "--class-file and --dirichlet-alpha contradict each other", "--dirichlet-alpha 1"),
    ],
    "owner_file": [
        ("{missing.txt}", "must hold one owner for each training sample, and cannot be read: No such file", ""),
        ("{pipe}", "and cannot be read: it is no ordinary file", ""),
        ("{binary.txt}", "and cannot be read: it is no text", ""),
        ("{torn.npz}", "and cannot be read: it is no text", ""),
        ("{three.txt}", "must hold one owner for each of 1437 training samples, or lines of a sample and its", ""),
        ("{owners.csv}", "must name an owner of each sample once, got two of sample 0", ""),
        ("{three.txt}", "--owner-file and --partition contradict each other", "--partition iid"),
        ("{three.txt}", "--owner-file and --class-file contradict each other", "--class-file {three.txt}"),
    ],
    "dirichlet_alpha": [
        ("much", "--dirichlet-alpha must be a number, got 'much'", ""),
        ("-1", "--partition dirichlet:-1.0: alpha must lie in 1e-06..1e+06, got -1", ""),
        ("nan", "--partition dirichlet takes a number for ALPHA, got 'nan'", ""),
        ("1", "--dirichlet-alpha and --classes-per-agent contradict each other", "--classes-per-agent 2"),
    ],
    "class_overlap": [
        ("half", "--class-overlap must be a number, got 'half'", ""),
        ("1.5", "--class-overlap must be in [0, 1], got 1.5", ""),
        ("0.3", "overlap must be a share of the 4 classes, one of 0, 0.25, 0.5, 0.75, 1, got 0.3", ""),
        ("0", "overlap must be at least 0.3333, as two agents of 6 classes each share", "--classes-per-agent 6"),
        ("0.5", "per_agent must lie in 1..10, the classes that there are, got 11", "--classes-per-agent 11"),
        ("0.5", "--class-overlap and --partition contradict each other", "--partition iid"),
        ("0.5", "--class-overlap and --dirichlet-alpha contradict each other", "--dirichlet-alpha 1"),
        ("0.5", "--class-overlap and --class-file contradict each other", "--class-file {three.txt}"),
    ],
    "feature_skew": [
        ("rotate:3", "--feature-skew must be one of none, rotation:DEGREES, noise:LEVELS, got 'rotate:3'; ", ""),
        ("rotation", "--feature-skew rotation is spelled rotation:DEGREES, got rotation", ""),
        ("noise:256", "--feature-skew noise:256: levels must lie in 0..255, got 256", ""),
        ("none:1", "--feature-skew none takes no number, got none:1", ""),
    ],
    "augment": [
        ("flipcrop", "--augment must be one of none, crop, flip-crop, got 'flipcrop'; did you mean flip-crop?", ""),
        ("by-data", "--augment must be one of none, crop, flip-crop, got 'by-data'", ""),
    ],
    "images": [
        ("mine", "--images must be one of own, pooled, got 'mine'", "--algorithm local"),
        ("pooled", "--images means nothing to --algorithm mce-pl, only to independent, local: leave it out", ""),
    ],
    "agents": [
        ("many", "--agents must be a whole number, got 'many'", ""),
        ("4.0", "--agents must be a whole number, got '4.0'", ""),
        ("None", "--agents must be a whole number, got 'None'", ""),
        ("0", "--agents must be in 1..1000000, got 0", ""),
        ("1000001", "--agents must be in 1..1000000, got 1000001", ""),
        ("9" * 5000, "--agents must be a whole number, got '999", ""),
        ("2000", "1437 training samples for 2000 agents at a data fraction of 1 are too few, each must get one", ""),
        ("1400", "are too few, each must get one: take fewer agents or more data", ""),
        ("1000000", "are too few, each must get one: take fewer agents or more data", "--partition iid"),
        ("1000000", "are too few, each must get one: take fewer agents or more data", "--partition dirichlet:1"),
        ("1000000", "are too few, each must get one: take fewer agents or more data", ""),
    ],
    "topology": [
        ("rings", "'rings'; did you mean ring?", ""),
        ("changing-ring", "or a graph's file that exists, got 'changing-ring'", ""),
        (LONG, "or a graph's file that exists, got 'nnn", ""),
        ("{missing.txt}", "or a graph's file that exists, got '", ""),
        ("{pipe}", "or a graph's file that exists, got '", ""),
        ("erdos-renyi:2", "--topology erdos-renyi:2: probability must lie in [0, 1], got 2", ""),
        ("regular:4", "--topology regular:4: degree must lie in 1..3, below the 4 agents, got 4", ""),
        ("regular:3", "degree 3 needs an even number of agents, or take an even degree, got 5 agents", "--agents 5"),
        ("small-world:3", "--topology small-world:3: degree must be even, half of it on either side, got 3", ""),
        ("torus:3", "--topology torus:3: rows must divide the 4 agents, so be one of [1, 2, 4], got 3", ""),
        ("changing-regular:0", "--topology changing-regular:0: degree must lie in 1..3, below the 4 agents, got 0", ""),
        ("changing-regular:2", "and --topology changing-regular:2 changes neighbours: name a graph that stays",
         "--algorithm fedmrn"),
        ("changing-regular:2", "changes neighbours: name a graph that stays, or say --keep-neighbours",
         "--algorithm score-gossip"),
        ("{oblong.txt}", "must give edges weights above 0, got 0 in line 1", ""),
        ("{ragged.txt}", "must give edges weights above 0, got 0 in line 1", ""),
        ("{minus.txt}", "must name agents in 0..3, got -2 in line 1", ""),
        ("{one-way.txt}", "must be symmetric, and rows 0 and 1 (from 0) disagree: mend it, or say --directed", ""),
        ("{selfish.txt}", "a diagonal of 0 and 1 must be all one of them, and agents 0 and 1 differ in it", ""),
        ("{two.txt}", "has 2 agents, expected 4: say --agents 2", ""),
        ("{binary.txt}", "must hold rows of numbers, or edges, and cannot be read: it is no text", ""),
        ("{blank.txt}", "must hold rows of numbers, or edges, and is empty", ""),
    ],
    "directed": [
        ("True", "--directed takes no value, got 'True': say --directed or --no-directed", ""),
        (None, "star has no directed form: leave --directed out", "--topology star"),
    ],
    "link_drop": [
        ("some", "--link-drop must be a number, got 'some'", ""),
        ("1.5", "--link-drop must be in [0, 1], got 1.5", ""),
        ("nan", "--link-drop must be in [0, 1], got nan", ""),
        ("0.1", "fedmrn adds up all that a neighbour has ever sent, at once, and --link-drop 0.1 loses some of it",
         "--algorithm fedmrn"),
    ],
    "hear": [
        ("0", "--hear must be in 1..2147483647, got 0", ""),
        ("1", "fedmrn adds up all that a neighbour has ever sent, and --hear 1 hears others each time: leave it out",
         "--algorithm fedmrn"),
        ("1", "--hear 1 hears others each time: leave it out, or say --keep-neighbours", "--algorithm score-gossip"),
    ],
    "keep_neighbours": [
        (None, "--keep-neighbours means nothing to --algorithm fedmrn, only to score-gossip: leave it out",
         "--algorithm fedmrn"),
    ],
    "mixing": [
        ("uniformly", "must be one of uniform, metropolis, similarity, overlap, got 'uniformly'; did you mean", ""),
        ("similarity", "--mixing similarity compares masks, and --algorithm dsgd sends 32 bits", "--algorithm dsgd"),
        ("metropolis", "need an undirected graph: take uniform ones, or leave --directed out", "--directed"),
    ],
    "retention": [
        ("half", "--retention must be a number, a comma list such as 0.1,0.3 or 0.1*5,0.3*15, low:high or", ""),
        ("0.1:0.2:0.3", "low:high or dealt:LIST, got '0.1:0.2:0.3'", ""),
        ("0.1*2,0.3", "--retention must give one number for each of 4 agents, got 3", ""),
        ("dealt:0.1,0.2,0.3,0.4,0.5", "--retention must give at most one number for each of 4 agents, got 5", ""),
        ("0", "--retention must be in (0, 1], got 0 for agent 0", ""),
        ("1.3", "--retention must be in (0, 1], got 1.3 for agent 0", ""),
        ("0.3,0.2,1.5,0.1", "--retention must be in (0, 1], got 1.5 for agent 2", ""),
        ("0.5:1.5", "--retention must be in (0, 1], got 1.16667 for agent 2", ""),
        ("inf:inf", "--retention must be in (0, 1], got", ""),
        ("0.3,0.2", "--retention must give one number for each of 4 agents, got 2", ""),
        ("1e-17", "a retention of 1e-17 keeps nothing of a layer: take a larger one", ""),
        ("0.3@cosin", "--retention: schedule must be one of constant, cosine[:END], step:EVERY[:FACTOR], warm-up", ""),
        ("0.6@cosine:2", "--retention must stay in (0, 1], and its schedule raises it to 1.2", ""),
    ],
    "linear_retention": [
        ("shared", "--linear-retention must be a number, or one with a schedule such as 10@cosine, got 'shared'", ""),
        ("2", "--linear-retention must be in (0, 1], got 2", ""),
        ("0.6@cosine:2", "--linear-retention must stay in (0, 1], and its schedule raises it to 1.2", ""),
        ("same", "--linear-retention needs --retention-policy fixed-linear: say it, or leave --linear-retention out",
         "--retention-policy erk"),
    ],
    "retention_policy": [
        ("globe", "must be one of fixed-linear, uniform, erk, global, got 'globe'; did you mean global?", ""),
        ("global", "--retention-policy must be one of fixed-linear, uniform, erk with --algorithm mask-mean, got",
         "--algorithm mask-mean"),
        ("erk", "--retention-policy means nothing to --algorithm fedpm, only to mce-pl,", "--algorithm fedpm"),
    ],
    "algorithm": [
        ("mcepl", "--algorithm must be one of mce-pl, score-gossip, independent,", ""),
        ("mask-means", "got 'mask-means'; did you mean mask-mean?", ""),
        ("dsgd", "--fine-tune-lr means nothing to --algorithm dsgd, only to mce-pl: leave it out", "--fine-tune-lr 1"),
        ("dsgd", "--retention means nothing to --algorithm dsgd, only to mce-pl,", "--retention 0.5"),
        ("fedpm", "--optimizer sgd needs step sizes of its own, and --algorithm fedpm leaves", "--optimizer sgd"),
        ("dis-pfl", "a retention of 1e-05 keeps nothing of a layer: take a larger one", "--retention 1e-5"),
    ],
    "prune_rate": [
        ("1.5", "--prune-rate must be in [0, 1], got 1.5", "--algorithm dis-pfl"),
        ("0.2", "--prune-rate means nothing to --algorithm mce-pl, only to dis-pfl: leave it out", ""),
    ],
    "mask_sent": [
        ("mine", "must be one of own, fused, majority, got 'mine'", ""),
        ("majority", "--mask-sent must be one of fused, own with --algorithm mce-pl, got 'majority'", ""),
    ],
    "fusion": [("mean", "must be one of tensor, force, got 'mean'", "")],
    "force": [
        ("-1", "--force must be in 0..3.4e+38, got -1", "--fusion force"),
        ("2", "--force needs --fusion force: say it, or leave --force out", ""),
    ],
    "force_momentum": [
        ("1", "--force-momentum must be in [0, 1), got 1", "--fusion force"),
        ("0.5", "--force-momentum needs --fusion force: say it, or leave --force-momentum out", ""),
    ],
    "personal_layers": [
        ("conv9", "--personal-layers must be none, last or among conv1, conv2, linear1, linear2, got 'conv9'", ""),
        ("last", "--personal-layers means nothing to --algorithm local", "--algorithm local"),
        ("conv1,conv2,linear1,linear2", "leaves nothing to send: take --algorithm independent or local", ""),
    ],
    "follow": [
        ("1", "--follow must be in [0, 1), got 1", "--algorithm score-gossip"),
        ("0.5@cosine:4", "--follow must stay in [0, 1), and its schedule raises it to ", "--algorithm score-gossip"),
        ("0.2", "--follow means nothing to --algorithm mce-pl, only to score-gossip: leave it out", ""),
    ],
    "mixing_step": [
        ("1.5", "--mixing-step must be in [0, 1], got 1.5", "--algorithm score-gossip"),
        ("0.2", "--mixing-step means nothing to --algorithm mce-pl, only to score-gossip, fedmrn: leave it out", ""),
    ],
    "modulation": [("delta", "must be one of step, adaptive, got 'delta'", "")],
    "regrow": [("gradients", "must be one of random, gradient, got 'gradients'; did you mean gradient?", "")],
    "label_smoothing": [
        ("1", "--label-smoothing must be in [0, 1), got 1", ""),
        ("None", "--label-smoothing must be a number, or one with a schedule such as 10@cosine, got 'None'", ""),
    ],
    "clamp": [
        ("0.5", "--clamp must be in [1e-06, 0.5), got 0.5", "--algorithm fedpm"),
        ("0.1", "--clamp means nothing to --algorithm dsgd, only to fedpm: leave it out", "--algorithm dsgd"),
    ],
    "preset": [("Paper", "--preset must be one of code, paper, tuned, got 'Paper'; did you mean paper?", "")],
    "head_order": [
        ("head", "--head-order must be one of together, head-first, got 'head'", ""),
        ("head-first", "only to dsgd, dis-pfl: leave it out", ""),
        ("head-first", "--personal-layers (such as last) and --local-steps of 2 or more, got none and 2: say both",
         "--algorithm dsgd --local-steps 2"),
        ("head-first", "got last and 1: say both, or leave --head-order out",
         "--algorithm dis-pfl --personal-layers last"),
    ],
    "noise": [
        ("-1", "--noise must be in 0..100, got -1", "--algorithm fedmrn"),
        ("much", "--noise must be a number, got 'much'", ""),
        ("1", "--noise means nothing to --algorithm dsgd, only to fedmrn: leave it out", "--algorithm dsgd"),
    ],
    "order": [("papers", "--order must be one of code, paper, got 'papers'; did you mean paper?", "")],
    "fine_tune_gradient": [("reuse", "must be one of reused, recomputed, got 'reuse'; did you mean reused?", "")],
    "fine_tune_weight": [("means", "must be one of mean, touched, got 'means'; did you mean mean?", "")],
    "optimizer": [("adamw", "must be one of sgd, momentum, adam, got 'adamw'; did you mean adam?", "")],
    "momentum": [
        ("high", "--momentum must be a number, got 'high'", ""),
        ("1", "--momentum must be in [0, 1), got 1.0", "--optimizer momentum"),
        ("0.5", "--momentum needs --optimizer momentum or adam, got sgd: say it, or leave --momentum out", ""),
    ],
    "second_momentum": [
        ("-0.1", "--second-momentum must be in [0, 1), got -0.1", "--optimizer adam"),
        ("0.5", "--second-momentum needs --optimizer adam, got sgd", ""),
    ],
    "lr": [
        ("fast", "--lr must be a number, or one with a schedule such as 10@cosine, got 'fast'", ""),
        ("same", "--lr must be a number, or one with a schedule such as 10@cosine, got 'same'", ""),
        ("-1", "--lr must be in 0..3.4e+38, got -1", ""),
        ("nan", "--lr must be in 0..3.4e+38, got nan", ""),
        ("10@", "--lr must have a schedule behind its @, such as 10@cosine, got none: say one", ""),
        ("10@cosin", "got 'cosin'; did you mean cosine?", ""),
        ("10@cosine@step:0", "--lr: schedule step:0: every must lie in 1..2147483647 rounds, got 0", ""),
        ("10@warm-up", "--lr: schedule warm-up is spelled warm-up:OVER, got warm-up", ""),
        ("10@cosine:fast", "--lr: schedule cosine takes a number for END, got 'fast'", ""),
    ],
    "fine_tune_lr": [("-inf", "--fine-tune-lr must be in 0..3.4e+38, got -inf", "")],
    "weight_decay": [("1e39", "--weight-decay must be in 0..3.4e+38, got 1e+39", "")],
    "amplitude": [
        ("None", "--amplitude must be a number, or one with a schedule such as 10@cosine, got 'None'", ""),
        ("2", "--amplitude needs --fusion tensor: say it, or leave --amplitude out", "--preset tuned"),
    ],
    "group_lasso": [("1e-4@stepp:3", "--group-lasso: schedule must be one of", "")],
    "group_lasso_strength": [
        ("relativ", "got 'relativ'; did you mean relative?", ""),
        ("relative", "--revive gives scores of 0 a meaning, and with", "--group-lasso 0.01 --revive"),
        ("relative", "--mask ternary gives scores of 0 a meaning, and with", "--group-lasso 0.01 --mask ternary"),
        ("relative", "--group-lasso-strength means nothing to --algorithm dsgd", "--algorithm dsgd"),
    ],
    "target_channels": [
        ("0", "--target-channels must be in (0, 1], got 0.0", ""),
        ("0.5,1,2,1", "--target-channels must be in (0, 1], got 2 for agent 2", ""),
        ("half", "--target-channels must be a number, a comma list such as", ""),
        ("0.5", "--target-channels needs --group-lasso-strength relative", "--group-lasso-strength absolute"),
        ("0.5", "--target-channels needs a --group-lasso above 0 to start with, got 0", "--group-lasso 0"),
        ("0.5", "--target-channels needs --group-lasso-form proximal, got penalty", "--group-lasso-form penalty"),
    ],
    "smallest_channels": [
        ("0", "--smallest-channels must be in 1..2147483647, got 0", ""),
        ("4", "--smallest-channels needs --group-lasso-strength relative: say it, or leave", ""),
        ("500", "--smallest-channels must be at most 64, which --target-channels 0.5 leaves of the 128 of the largest",
         "--target-channels 0.5"),
        ("128", "--smallest-channels must be below 128, the channels of the largest layer of --model small, got 128",
         "--group-lasso 0.1 --group-lasso-strength relative"),
    ],
    "group_lasso_form": [("penality", "got 'penality'; did you mean penalty?", "")],
    "penalty_on": [
        ("score", "got 'score'; did you mean scores?", ""),
        ("scores", "--penalty-on needs --group-lasso-form penalty: say it, or leave --penalty-on out", ""),
    ],
    "filter_rule": [
        ("-1", "--filter-rule must be in 0..2147483647, got -1", ""),
        ("few", "--filter-rule must be a whole number, got 'few'", ""),
    ],
    "mask": [
        ("ternry", "--mask must be one of binary, ternary, got 'ternry'; did you mean ternary?", ""),
        ("ternary", "--mask means nothing to --algorithm mask-mean, only to", "--algorithm mask-mean"),
    ],
    "depth": [
        ("many", "--depth must be a number, a comma list", "--model resnet20"),
        ("1", "--model resnet20: depth must be in 3..9 residual blocks, got 1", "--model resnet20"),
        ("2,3", "--depth must give one number for each of", "--model resnet20"),
        ("3", "--depth means nothing to --algorithm dsgd, only to", "--algorithm dsgd"),
    ],
    "bandwidth": [
        ("constant", "--bandwidth constant is spelled constant:MEGABITS, got constant", ""),
        ("constant:0", "--bandwidth constant:0: Mbit/s must be above 0 at some time, got 0 at all times", ""),
        ("constant:-1", "Mbit/s must be finite and at least 0, got [-1.0]", ""),
        ("lognormal:0:1", "megabits must be above 0, got 0", ""),
        ("lognormal:1:11", "spread must lie in 0..10, got 11", ""),
        ("markov:1:0:0:1", "leave must lie in (0, 1], got 0", ""),
        ("markov:0:0:1:1", "good or bad must be above 0, got 0 both", ""),
        ("markov:1:-1:1:1", "bad must be at least 0, got -1", ""),
        ("collapse:1:0:1", "seconds must rise from above 0", ""),
        ("constant:nan", "--bandwidth constant takes a number for MEGABITS, got 'nan'", ""),
        ("constant:1e39", "--bandwidth constant:1e39: bandwidths must send so many Mbit in a period as float32", ""),
        ("lognormal:inf:1", "bandwidths must send so many Mbit in a period as float32 holds, got rates of inf", ""),
        ("{missing}", "must be one of constant:MEGABITS", ""),
        ("{blank.txt}", "of which some is sent at some time, got no line", ""),
        ("{dead.txt}", "of which some is sent at some time, got 0 Mbit/s at all times", ""),
        ("{unsorted.txt}", "must hold rising seconds, got 1 behind 2 in line 2", ""),
        ("{slow.txt}", "must hold Mbit/s of at least 0, got '1 -2' in line 2", ""),
        ("{ragged.txt}", "must hold two numbers a line, seconds and Mbit/s, got '0 1 0' in line 1", ""),
        ("{binary.txt}", "cannot be read: it is no text", ""),
        ("{folder}", "must hold files of two numbers a line, seconds and Mbit/s, got none", ""),
    ],
    "device_speed": [
        ("0", "--device-speed must be in [1, 1e+18], got 0", "--bandwidth constant:1"),
        ("0,1,1,1", "got 0 for agent 0", "--bandwidth constant:1"),
        ("1e9,1e9", "--device-speed must give one number for each of 4 agents, got 2", "--bandwidth constant:1"),
        ("1e9", "--device-speed needs --bandwidth, such as constant:10: say it, or leave --device-speed out", ""),
    ],
    "device_sparse": [
        (None, "--device-sparse needs --bandwidth, such as constant:10: say it", ""),
        (None, "--device-sparse counts what retentions say that a layer keeps, and with --retention-policy global",
         "--bandwidth constant:1 --retention-policy global"),
        (None, "and with --group-lasso-strength relative masks alone say it: leave one of them out",
         "--bandwidth constant:1 --target-channels 0.5"),
    ],
    "deadline": [
        ("1", "--deadline lets neighbours hear again what they were sent before, and with --hear 1 they may never have",
         "--bandwidth constant:1 --hear 1"),
        ("1", "with --link-drop 0.5 they may never have had it: leave one of the two out",
         "--bandwidth constant:1 --link-drop 0.5 --hear 1"),
        ("0", "--deadline must be in (0, 1e+09], got 0", "--bandwidth constant:1"),
        ("1", "--deadline needs --bandwidth", ""),
        ("1", "--deadline lets messages come late, and --algorithm score-gossip adds up",
         "--bandwidth constant:1 --algorithm score-gossip"),
    ],
    "controller": [
        ("bandits", "--controller must be one of deadline, balance, bandit, prunefl, period, depth, got 'bandits'", ""),
        ("deadline", "--controller needs --bandwidth", ""),
        ("bandit", "--controller bandit sets retentions of masks of scores, with --algorithm mce-pl, score-gossip",
         "--bandwidth constant:1 --algorithm dsgd"),
        ("prunefl", "--controller prunefl needs --algorithm mce-pl or independent, got score-gossip",
         "--bandwidth constant:1 --algorithm score-gossip"),
        ("prunefl", "--controller prunefl shares out entries among layers, and with --retention-policy global",
         "--bandwidth constant:1 --retention-policy global"),
        ("prunefl", "follows no schedule of --retention, got 0.5@cosine:0.2: leave out what",
         "--bandwidth constant:1 --retention 0.5@cosine:0.2"),
        ("period", "--controller period lets neighbours hear again what they were sent before, and with --topology "
         "changing-regular:1 they may never have had it", "--bandwidth constant:1 --topology changing-regular:1"),
        ("depth", "--controller depth sets how many residual blocks agents have, and --model small has none that they "
         "may lack: name another, such as resnet20", "--bandwidth constant:1 --model small"),
        ("depth", "--controller depth needs --algorithm mce-pl, independent", "--bandwidth constant:1 "
         "--algorithm dsgd"),
        ("depth", "--controller depth gives agents blocks back, and --group-lasso 0.001 shrinks meanwhile what they "
         "lack, down to scores of 0, which are dead: take --group-lasso 0, or leave the controller out",
         "--bandwidth constant:1 --model resnet20 --group-lasso 1e-3"),
        ("depth", "and --target-channels shrinks meanwhile what they lack, down to scores of 0, which are dead: leave "
         "one of them out", "--bandwidth constant:1 --model resnet20 --target-channels 0.5"),
        ("period", "--controller period needs messages, and --algorithm independent sends none",
         "--bandwidth constant:1 --algorithm independent"),
        ("period", "--controller period lets messages come late, and --algorithm score-gossip adds up",
         "--bandwidth constant:1 --algorithm score-gossip"),
    ],
    "controller_gain": [
        ("0", "--controller-gain must be in (0, 1], got 0", "--bandwidth constant:1 --controller deadline"),
        ("0.1", "--controller-gain needs a --controller that sets retentions, got period: say one, such as deadline",
         "--bandwidth constant:1 --controller period"),
    ],
    "retention_bounds": [
        ("0.5:0.1", "--retention-bounds must be LOW:HIGH in (0, 1], such as 0.05:0.9, got 0.5:0.1",
         "--bandwidth constant:1 --controller deadline"),
        ("0.5", "--retention-bounds must be LOW:HIGH", "--bandwidth constant:1 --controller deadline"),
        ("0.1:0.2", "--retention-bounds needs a --controller that sets retentions, got None", "--bandwidth constant:1"),
    ],
    "retention_jump": [
        ("0", "--retention-jump must be in (0, 1], got 0", "--bandwidth constant:1 --controller deadline"),
        ("0.2", "--retention-jump needs --bandwidth", ""),
    ],
    "exits": [
        ("each", "--exits must be one of last, each-stage, distilled, got 'each'", ""),
        ("each-stage", "exits are behind the stages of resnet18, resnet20, mobilenetv2, and the model small has", ""),
    ],
    "revive": [("yes", "--revive takes no value, got 'yes': say --revive or --no-revive", "")],
    "model": [
        ("alexnte", "must be one of alexnet, small, conv3, plain2, plain4, plain5, plain6, plain7, plain8, conv4, "
            "conv6, vgg11, mlp, resnet18, resnet20, mobilenetv2, vit-tiny, got 'alexnte'; did you mean alexnet?", ""),
        ("alexnet", "the model alexnet needs images of at least 21 pixels a side, got 8x8: choose another model", ""),
    ],
    "width": [
        ("0", "--width must be in (0, 16], got 0", ""),
        ("half", "--width must be a number, got 'half'", ""),
    ],
    "weights": [
        ("signed-const", "got 'signed-const'; did you mean signed-constant?", ""),
        ("self-scaled", "--weights self-scaled is for masks of scores, with --algorithm mce-pl, score-gossip,",
         "--algorithm local"),
    ],
    "biases": [("zeros", "--biases must be one of random, zero, got 'zeros'; did you mean zero?", "")],
    "start_scores": [("sharde", "--start-scores must be one of shared, personal, got 'sharde'; did you mean shar", "")],
    "elu_on_logits": [
        ("maybe", "--elu-on-logits takes no value, got 'maybe': say --elu-on-logits or --no-elu-on-logits", ""),
    ],
    "batch_size": [("0", "--batch-size must be in 1..2147483647, got 0", "")],
    "local_steps": [("-3", "--local-steps must be in 1..2147483647, got -3", "")],
    "exchange_every": [("1.5", "--exchange-every must be a whole number, got '1.5'", "")],
    "exchange_from": [
        ("9", "--exchange-from must be at most --rounds, got 9 and 8: nothing would ever be sent", "--rounds 8"),
        ("7", "--exchange-every 5 leaves no round to exchange from --exchange-from 7 to --rounds 8: exchange more",
         "--rounds 8 --exchange-every 5"),
    ],
    "key_every": [("-1", "--key-every must be in 0..2147483647, got -1", "")],
    "code_every": [
        ("0", "--code-every must be in 1..2147483647, got 0", ""),
        ("4", "--controller period has every message encoded", "--bandwidth constant:1 --controller period"),
    ],
    "rounds": [
        ("1e3", "--rounds must be a whole number, got '1e3'", ""),
        ("99999999999", "--rounds must be in 1..2147483647, got 99999999999", ""),
    ],
    "seed": [
        ("-1", "--seed must be in 0..4294967295, got -1", ""),
        ("4294967296", "--seed must be in 0..4294967295, got 4294967296", ""),
    ],
    "eval_every": [("0", "--eval-every must be in 1..2147483647, got 0", "")],
    "test_samples": [("0", "--test-samples must be in 1..2147483647, got 0", "")],
    "agent_chunk": [("0x10", "--agent-chunk must be a whole number, got '0x10'", "")],
    "precision": [("float16", "--precision must be one of float32, bfloat16, got 'float16'", "")],
    "devices": [
        ("2", "devices must be in 1..1, as many as JAX sees of cpu, got 2", ""),
        ("0", "--devices must be in 1..2147483647, got 0", ""),
        ("all", "--devices must be a whole number, got 'all'", ""),
    ],
    "coordinator": [
        ("here", "--coordinator must be ADDRESS:PORT of process 0, or auto, got 'here'", ""),
        ("here:70000", "--coordinator must be ADDRESS:PORT of process 0, or auto, got 'here:70000'", ""),
        ("here:7000", "--coordinator ADDRESS:PORT needs --processes and --process: say both, or", ""),
    ],
    "processes": [
        ("2", "--processes and --process need --coordinator ADDRESS:PORT: say it, or leave them out", ""),
        ("0", "--processes must be in 1..2147483647, got 0", "--coordinator here:7000 --process 0"),
    ],
    "process": [
        ("2", "--process must be below --processes, got 2 of 2", "--coordinator here:7000 --processes 2"),
        ("-1", "--process must be in 0..2147483647, got -1", "--coordinator here:7000 --processes 2"),
    ],
    "compilation_cache": [
        ("off", "--compilation-cache takes no value, got 'off': say --compilation-cache or --no-compilation-c", ""),
    ],
    "out": [
        ("{file}", "--out {file} must be a new or empty folder, and it is a file: name another", ""),
        ("{full}", "--out {full} must be a new or empty folder, and it holds something: name another", ""),
        ("", "--out must be a path, got ''", ""),
        ("{file}/run", "must be a new or empty folder, and it cannot be one (Not a directory): name another", ""),
        (LONG, "must be a new or empty folder, and it cannot be one (File name too long): name another", ""),
        # Its folders would be made before the last one fails.
        (f"new/{LONG}", "must be a new or empty folder, and its name is too long: name another", ""),
    ],
    "checkpoint_every": [
        ("0", "--checkpoint-every must be in 1..2147483647, got 0", ""),
        ("often", "--checkpoint-every must be a whole number, got 'often'", ""),
    ],
    "track": [
        ("wand", "--track must be one of wandb, mlflow, trackio, tensorboard, got 'wand'; did you mean wandb?", ""),
    ],
    "resume": [
        (None, "--resume needs --out, the run folder to go on in: say it, or leave --resume out", ""),
        (None, "--out {full} must be a new or empty folder, and it holds something: name another", "--out {full}"),
    ],
}  # fmt: skip
ROWS = [(name, *row) for name, rows in REFUSED.items() for row in rows]

# What is wrong with the words themselves.
ILL_FORMED = {
    "unknown flag": ("--agnets 3", "there is no flag --agnets; did you mean --agents?"),
    "unknown flag with a value": ("--agnets=3", "there is no flag --agnets; did you mean --agents?"),
    "unlike any flag": ("--xyz", "there is no flag --xyz; --help lists all"),
    "no to what is no switch": ("--no-agents", "there is no flag --no-agents; did you mean --agents?"),
    "one dash": (
        "-agents 3",
        "a flag was expected, got '-agents': every value stands behind its flag; did you mean --",
    ),
    "a stray word": ("digits", "a flag was expected, got 'digits': every value stands behind its flag; --help lists"),
    "a second value": ("--retention 0.1 0.2", "a flag was expected, got '0.2'"),
    "an empty word": ("''", "a flag was expected, got ''"),
    "two dashes": ("--", "a flag was expected, got '--'"),
    "a flag of the parser's own": ("--tyro-print-completion fish", "there is no flag --tyro-print-completion"),
    "a flag for a value": ("--out --lr 3", "--out needs a value behind it: a path, got the flag --lr"),
    "an unknown flag for a value": ("--lr -x", "--lr needs a value behind it: a number, got the flag -x"),
    "a value for help": ("--help=3", "--help takes no value, got '3': say --help alone"),
    "the last of two counts": ("--agents 4 --agents 0", "--agents must be in 1..1000000, got 0"),
    "underscores": ("--batch_size 0", "--batch-size must be in 1..2147483647, got 0"),
    "no, with a value": ("--no-elu-on-logits True", "--elu-on-logits takes no value, got 'True'"),
}


@pytest.fixture(autouse=True)
def nothing_trains_or_downloads(monkeypatch, tmp_path):
    """A row that is taken by mistake must not cost minutes; the network must not decide what is said."""
    monkeypatch.setattr(commands, "train", lambda *_: pytest.fail("this was taken and would be trained"))
    monkeypatch.setattr(download, "reachable", lambda address: False)
    (tmp_path / "no-data").mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path) -> Path:
    """The folder of `FILES`."""
    folder = tmp_path / "files"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).mkdir() if content is None else (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.fixture
def refuses(tmp_path, monkeypatch, capsys) -> Callable[[list[str], str], None]:
    """Whether the command refuses words as it should: one line, exit code 2, nothing left behind."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def check(words: list[str], said: str) -> None:
        code = cifar.main(words)
        captured = capsys.readouterr()
        assert said in captured.err
        assert captured.err.startswith("experiments.cifar: ")
        assert captured.err.endswith("\n")
        assert captured.err.count("\n") == 1
        assert_is_a_sentence(captured.err.strip())
        assert captured.out == ""
        assert code == 2
        assert list(here.iterdir()) == []
        assert not (tmp_path / "cache").exists()

    return check


# What Python, and not this project, calls things.
JARGON = re.compile(
    r"Traceback|Errno|NoneType|codec|object has no|invalid literal|could not convert|embedded null|unpack|out of range|"
    r"not enough values|unsupported operand|not subscriptable|For full helptext|Expected 1 value|PosixPath\(|"
    r"Exceeds the limit|np\.(float|int)"
)


def assert_is_a_sentence(line: str, most: int = 1100) -> None:
    """It says something, in words, and not more than can be read."""
    assert 20 < len(line) < most
    assert not JARGON.search(line), line


@pytest.mark.parametrize(
    ("name", "value", "said", "beside"),
    ROWS,
    ids=[f"{name}={'' if value is None else value[:20].strip('{}')}" for name, value, *_ in ROWS],
)
def test_each_flag_refuses_what_it_cannot_be(name, value, said, beside, files, refuses):
    def filled(text: str) -> str:
        return re.sub(r"\{([^}]*)\}", lambda braced: str(files / braced[1]), text)

    before = sorted(files.rglob("*"))
    start = [] if name == "data_file" else ["--dataset", "digits"]
    own = [flag(name)] if value is None else [f"{flag(name)}={filled(value)}"]
    refuses([*start, "--agents", "4", *shlex.split(filled(beside)), *own], filled(said))
    assert sorted(files.rglob("*")) == before


def test_the_table_has_rows_for_every_flag():
    """None is left out: even a switch can get a value, and even a free word can mean nothing."""
    assert set(REFUSED) == {field.name for field in dataclasses.fields(Settings)}
    assert all(REFUSED.values())


@pytest.mark.parametrize(("words", "said"), ILL_FORMED.values(), ids=ILL_FORMED)
def test_words_that_are_no_flags_are_refused(words, said, refuses):
    refuses(["--dataset", "digits", *shlex.split(words)], said)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_flag_that_is_misspelled_is_recognised(name, refuses):
    spelled = flag(name)
    refuses([f"{spelled[:-2]}{spelled[-1]}{spelled[-2]}x=3"], f"; did you mean {spelled}?")


@pytest.mark.parametrize("name", [name for name in SETTINGS if bool not in parts(SETTINGS[name].hint)])
@pytest.mark.parametrize("behind", [[], ["--rounds", "3"]], ids=["nothing", "a flag"])
def test_each_flag_misses_its_value(name, behind, refuses):
    refuses([flag(name), *behind], f"{flag(name)} needs a value behind it: ")


@pytest.mark.parametrize("name", [name for name in SETTINGS if choices(SETTINGS[name].hint)])
def test_each_choice_that_is_misspelled_is_recognised(name, refuses):
    for choice in choices(SETTINGS[name].hint):
        misspelled = f"{choice[0]}{choice}"
        refuses([flag(name), misspelled], f"got {misspelled!r}; did you mean {choice}?")


def test_a_folder_that_must_not_be_written_to_is_refused(refuses, monkeypatch):
    def refuse(path, *arguments, **settings):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folders.Path, "mkdir", refuse)
    refuses(["--dataset", "digits", "--agents", "2", "--out", "run"], "cannot be written to (Permission denied): name")


def test_a_whole_file_for_a_value_is_shown_by_its_ends(refuses):
    refuses(["--dataset", "digits", "--topology", "0 1\n1 0\n" * 10_000], " ... ")
    refuses(["--dataset", "digits", "--lr", "x" * 100_000], "xxx ... xxx")


def test_open_switches_are_said_in_every_way_that_help_shows():
    for words, wanted in (
        (["--elu-on-logits"], True),
        (["--elu-on-logits", "--revive"], True),
        (["--elu-on-logits", "True"], True),
        (["--elu-on-logits=False"], False),
        (["--elu_on_logits", "None"], None),
        (["--no-elu-on-logits"], False),
        ([], None),
    ):
        assert parse(words, Settings, "experiments.cifar").elu_on_logits is wanted


# Of another type than any field takes, or than a field of that type does.
STRANGE: list[Any] = [object(), [1], (0.5,), {}, b"4", 1j, np.zeros(2), 10**5000, -(10**400)]
OF_NO_FIELD_BUT = {int: 4, float: 0.5, bool: True, str: "no such thing", type(None): None}


@pytest.mark.parametrize("name", SETTINGS)
def test_python_values_of_a_wrong_type_are_refused(name):
    taken = {part if isinstance(part, type) else str for part in parts(SETTINGS[name].hint)}
    taken |= ({int} if float in taken else set()) | ({str} if issubclass(Path, tuple(taken)) else set())
    wrong = [*STRANGE, *(value for kind, value in OF_NO_FIELD_BUT.items() if kind not in taken)]
    assert len(wrong) > len(STRANGE)
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{flag(name)} ") as refused:
            resolve(Settings(**{name: value}))
        assert "\n" not in str(refused.value)
        assert_is_a_sentence(str(refused.value))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"agents": "4"}, "--agents must be a whole number, got '4'"),
        ({"agents": None}, "--agents must be a whole number, got None"),
        ({"agents": True}, "--agents must be a whole number, got True"),
        ({"retention": [0.1, 0.2]}, "--retention must give one number for each of 64 agents, got 2"),
        ({"amplitude": None}, "--amplitude must be a number, got None"),
        ({"directed": "yes"}, "--directed must be True or False, got 'yes'"),
        ({"data_file": 3}, "--data-file must be a path, got 3"),
        ({"model": "mlpp"}, "did you mean mlp?"),
        ({"seed": 10**5000}, "--seed must be in 0..4294967295, got a number of thousands of digits"),
        ({"lr": -(10**5000)}, "--lr must be below 1e+300, got a number of thousands of digits"),
        ({"class_file": "a\0b"}, "no file can have this name"),
        ({"data_file": "a\0b"}, "must be a readable .npz"),
        ({"topology": "a\0b"}, "or a graph's file that exists"),
        ({"out": "a\0b"}, "no folder can have this name"),
        ({"data_dir": "a\0b", "dataset": "mnist"}, "does not exist or is no folder"),
        ({"class_file": "\ud800"}, "no file can have this name"),
        ({"out": "\ud800"}, "no folder can have this name"),
    ],
)
def test_python_values_are_refused_in_the_same_words(settings, said):
    start = {} if "data_file" in settings else {"dataset": "digits"}
    with pytest.raises(ValueError, match=re.escape(said)):
        prepare(Settings(**(start | settings)))


def test_numbers_as_numpy_has_them_are_taken():
    settings = Settings(
        dataset="digits", agents=np.int64(3), seed=np.uint8(3), dirichlet_alpha=np.float64(2), directed=np.True_
    )
    prepared = prepare(settings)
    assert prepared.settings.partition == "dirichlet:2.0"
    assert len(prepared.train.sizes) == 3


# Now at random. By field, spellings that make sense somewhere, and some that never do.
POOLS: dict[str, tuple[str, str]] = {
    "resize": ("8 4 None", "0 3 16"),
    "data_fraction": ("1 0.5 0.05 1e-2", "0 1.5 -1 1e-9 1e-300"),
    "validation": ("0 0.2 0.5", "1 -0.1 nan 1e-9"),
    "partition": (
        "iid classes:1 classes:2 classes:3 classes overlapping overlapping:1:3 dirichlet:0.5 dirichlet:1e6 "
        "quantity:2 None",
        "classes:0 classes:11 classes:nan clases:2 classes:1:2 dirichlet:0 dirichlet:1e-6 quantity: iid:3 :",
    ),
    "classes_per_agent": ("1 2 3 10", "0 11 -4 2.0"),
    "dirichlet_alpha": ("0.3 5 1e6 None", "0 -1 1e-6 1e9"),
    "class_overlap": ("0.5 1 0 None", "0.3 -1 2 nan"),
    "feature_skew": ("none rotation:90 rotation:0 noise:40", "rotation noise:256 noise:-1 rotations:3 none:1"),
    "augment": ("none crop flip-crop None", "flip by-data"),
    "images": ("own", "pooled mine"),
    "bandwidth": (
        "constant:1 lognormal:1:0.5 markov:2:0.1:0.1:0.5 collapse:1:5:0.1 None",
        "constant:0 constant markov:1 lognormal:-1:1",
    ),
    "device_speed": ("1e10 1e9:1e10", "0 1e30 fast"),
    "device_sparse": ("", "True"),
    "deadline": ("1 0.001 None", "0 -1 nan"),
    "controller": ("None deadline balance bandit prunefl period", "bandits none depth"),
    "controller_gain": ("0.5 1", "0 2"),
    "retention_bounds": ("0.05:0.9 0.3:0.3", "0:1 0.9:0.1 0.5"),
    "retention_jump": ("0.05 1", "0 2"),
    "topology": (
        "ring star complete torus torus:1 regular:2 small-world:2:0.5 small-world:2 erdos-renyi:0.5 erdos-renyi "
        "erdos-renyi:0 changing-regular:1 changing-erdos-renyi:0.3",
        "rings torus:0 torus:7 regular:99 regular:0 regular:x small-world:3 small-world:2:2 erdos-renyi:-1 ring:2 "
        "changing-regular:0 changing-erdos-renyi:nan complete: erdos_renyi torus:1_0 torus:999999999999",
    ),
    "directed": ("", "True 0"),
    "link_drop": ("0 0.2 1", "-0.1 2 nan"),
    "hear": ("None 1 1000", "0 -1 1.5 some"),
    "keep_neighbours": ("", "True"),
    "mixing": ("uniform metropolis", "metro"),
    "retention": (
        "0.3 1 0.05 0.1:0.9 0.9:0.1 0.3@cosine:0.5 0.3@warm-up:5 0.1:0.4@step:10 dealt:0.5 "
        "dealt:0.2@cosine",
        "0 1.01 -0.3 0.1,0.2 0.1,0.2,0.3,0.4 0.1:0.2:0.3 0.1: :0.1 , 0.1,,0.2 inf:inf nan:0.5 inf:1 -inf:inf 1e-17 "
        "1e-9 0.6@cosine:2 0.3@ 0.3@cosine@step:0 0.1:1e308 1e308:-1e308 0.1*99 "
        "0.1*0 0.1*-1 0.1*1e9 0.1* *3 0.1*2*2 dealt: dealt:0.1:0.2 dealt:nan dealt:0.1*99 dealt",
    ),
    "retention_policy": ("fixed-linear uniform erk global", "globe None"),
    "linear_retention": ("0.9 1 same 0.5@cosine:0.1 None", "0 2 0.5,0.6 0.1:0.2 same@cosine 1e-17"),
    "algorithm": ("mce-pl score-gossip independent mask-mean dsgd dis-pfl fedpm fedmrn local", "mcepl"),
    "prune_rate": ("0.5", "0 0.2 1 1.5 -1"),
    "mask_sent": ("own fused None", "majority mine"),
    "fusion": ("tensor force None", "forces"),
    "force": ("1 0 2@cosine", "None -1"),
    "personal_layers": ("none last None linear1 conv1,linear2", "lasts conv9 linear1,,"),
    "mixing_step": ("0.5 0 1", "1.5 -1"),
    "follow": ("0 0.5 0.3@cosine", "1 -0.1"),
    "modulation": ("adaptive", "step steps"),
    "regrow": ("random", "gradient gradients"),
    "head_order": ("together", "head-first head"),
    "noise": ("0.8", "0 1 -1"),
    "clamp": ("0.01", "0.1 0 0.5"),
    "label_smoothing": ("0 0.1 0.2@cosine", "1 -0.1 None"),
    "preset": ("code paper tuned", "Code tune"),
    "order": ("code paper None", "papers"),
    "fine_tune_gradient": ("reused recomputed None", "reuse"),
    "fine_tune_weight": ("mean touched", "means"),
    "optimizer": ("sgd momentum adam None", "adamw SGD"),
    "momentum": ("0.9", "0.5 0 1 -0.1"),
    "second_momentum": ("0.99", "0.5 1"),
    "lr": (
        "10 0 1e-3 3e38 10@cosine 10@cosine:0.1 10@step:100 10@step:100:0.1@warm-up:20 1@constant None",
        "-1 1e39 10@ 10@cosin 10@cosine:11 10@cosine@step:0 10@step 10@step:1:2:3 10@step:0.5 10@warm-up:1e10 @cosine "
        "10@cosine:nan 10@step:inf same 10@@ 10@:",
    ),
    "fine_tune_lr": ("10 same 0 1@step:3 None", "same@cosine -1"),
    "weight_decay": ("0 5e-4 0.1@cosine None", "-1 x"),
    "amplitude": ("1 0 2@warm-up:3", "None -1"),
    "group_lasso": ("0 1e-4 None", "-1e-4 1e-4@"),
    "group_lasso_form": ("proximal penalty", "penality"),
    "group_lasso_strength": ("absolute relative None", "relativ"),
    "target_channels": ("0.5 1 0.25:0.75 None", "0 1.5 nan half 0.5@cosine"),
    "smallest_channels": ("1", "2 0 -1"),
    "penalty_on": ("fused", "scores score"),
    "filter_rule": ("0 5 None", "-1"),
    "mask": ("binary ternary", "signed None"),
    "depth": ("3 None", "0 2.5 many 3,4"),
    "exits": ("last each-stage distilled", "all None"),
    "revive": ("", "yes"),
    "model": ("small mlp conv4 None", "alexnet alexnte"),
    "width": ("1 0.5 2 1e-3", "0 -1 17 nan half None"),
    "weights": ("uniform-by-fan-in signed-constant self-scaled uniform None", "gauss"),
    "biases": ("random zero None", "one"),
    "start_scores": ("shared personal", "private"),
    "elu_on_logits": ("", "maybe"),
    "batch_size": ("1 128 2147483647", "0 -1"),
    "local_steps": ("1 3", "0"),
    "exchange_every": ("1 5", "0"),
    "exchange_from": ("1 2", "0"),
    "force_momentum": ("0 0.5", "1 -0.1 nan"),
    "key_every": ("0 1 50", "-1 0.5"),
    "code_every": ("1 50 None", "0"),
    "rounds": ("1 400 2147483647", "0 -0 2147483648"),
    "seed": ("0 1 4294967295", "-1 4294967296"),
    "eval_every": ("1 1000", "0"),
    "test_samples": ("1 200 None", "0"),
    "agent_chunk": ("1 64 None", "0"),
    "precision": ("float32 bfloat16", "float64"),
    "devices": ("1 None", "0 2"),
    # Nothing that could be an address, for it would be asked.
    "coordinator": ("None", "here here: :0 :99999 :x"),
    "processes": ("None", "0 2"),
    "process": ("None", "-1 0"),
    "compilation_cache": ("", "off"),
    "out": ("new new/deeper", f"{LONG} new/{LONG} .. / /dev/null/x"),
    "checkpoint_every": ("None", "5"),
    "resume": ("", "True"),
    "track": ("None", "None"),  # which `ready` looks at
}  # fmt: skip
MAD = [
    "", " ", "nan", "inf", "-inf", "-Infinity", "-0", "0", "-1", "1e3", "1e400", "-1e-400", "0x10", "1_0", "1.5", "[]",
    "None", "True", "--", "=", "==", "-", "-x", "--x", "\t", "a\nb", "\u00fc" * 50, LONG, "9" * 5000, "\U0001f4a5", "*",
    "\udcff", "\0", "..", "/", ".", "~nobody-of-this-name", "@", ":", ",", ";", "%s", "{}", "\\", "1@", "@1", "1:",
    "\u00bd", "\u0663", "$HOME", "9" * 400, "1" * 310, "-9223372036854775809", "18446744073709551616", "\u2028", "same",
    "\x1b[31m", "null", "/dev/null", "/dev/zero", "/proc/self/mem",
]  # fmt: skip
AGENTS = ["1", "2", "3", "4", "5", "6", "8", "9", "12"]
TOO_MANY_AGENTS = ["2000", "50000", "999999", "1000000", "1000001", "2147483647", "9" * 30]
DTYPES = ["u1", "i1", "i8", "<u4", ">i2", "f4", "f2", "?", "m8[s]", "M8[s]", "S3", "U2", "O", "c8", "V3"]


def some_bytes(chance: random.Random) -> bytes:
    """Random ones, of random length."""
    return chance.randbytes(chance.choice([0, 1, 10, 1000]))


def damaged(chance: random.Random, content: bytes) -> bytes:
    """Cut off, changed in places, or something else altogether."""
    kind = chance.randrange(4)
    if kind == 0:
        return content[: chance.randrange(len(content) + 1)]
    if kind == 1:
        changed = bytearray(content)
        for _ in range(chance.randrange(1, 20)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    return content + some_bytes(chance) if kind == 2 else some_bytes(chance)


def random_array(chance: random.Random, largest: int = 9) -> np.ndarray:
    """Of any type, of few entries, of up to five axes, some of which may be empty."""
    shape = tuple(chance.choice([0, 1, 2, 3, 6, SAMPLES]) for _ in range(chance.randrange(6)))
    rng = np.random.default_rng(chance.randrange(2**32))
    numbers = rng.integers(0, largest, shape if np.prod(shape) < 5000 else 3)
    dtype = chance.choice(DTYPES)
    return np.zeros(numbers.shape, dtype) if dtype == "V3" else numbers.astype(dtype)


def data_file(chance: random.Random) -> bytes:
    """A data set, sound in two of five cases."""
    sides = chance.choice([(8, 8, 1), (6, 5, 3), (21, 30, 1), (1, 1, 1), (4, 4), (2, 9, 2)])
    samples, classes = chance.choice([12, 40, 300]), chance.choice([1, 2, 3, 10])
    rng = np.random.default_rng(chance.randrange(2**32))
    made: dict[str, np.ndarray] = {}
    for split, count in (("train", samples), ("test", max(samples // 3, classes))):
        made[f"{split}_images"] = rng.integers(0, 256, (count, *sides), np.uint8)
        made[f"{split}_labels"] = rng.permutation(np.arange(count) % classes).astype(chance.choice(["i8", "u1", ">i4"]))
    kind = chance.randrange(10)
    if kind == 0:
        del made[chance.choice(list(made))]
    elif kind == 1:
        made[chance.choice([*made, "classes"])] = random_array(chance)
    elif kind == 2:
        labels = made[chance.choice(["train_labels", "test_labels"])] = np.arange(samples) % classes
        labels[chance.randrange(samples)] = chance.choice([-1, classes, 99_999, 100_000, 2**31, 2**62, -(2**63)])
    elif kind == 3:
        made["classes"] = np.array(chance.choice([0, 1, 5, 11, 100, 100_000, 100_001, 2**62, -3]))
    file = io.BytesIO()
    # A million zeros are a thousand bytes: a bomb, but a small one.
    extra = {"more": np.zeros(1_000_000, np.uint8)} if kind == 4 else {}
    chance.choice([np.savez, np.savez_compressed])(file, **made, **extra)
    if kind == 5:
        return archive(**{key: chance.choice([b"", b"\x93NUMPY", some_bytes(chance)]) for key in made})
    return damaged(chance, file.getvalue()) if kind == 6 else file.getvalue()


def text_file(chance: random.Random, agents: int, sound: Callable[[int], list[list[Any]]]) -> bytes:
    """A table of words, `sound` in half of the cases."""
    rows = [[str(entry) for entry in row] for row in sound(agents)]
    kind = chance.randrange(10)
    if kind == 0:
        chance.choice(rows).append(chance.choice(["0", "1", "2", "9"]))
    elif kind == 1:
        row = chance.choice(rows)
        row[chance.randrange(len(row))] = chance.choice(
            ["2", "-1", "x", "nan", "1e3", "9" * 5000, "\u0663", "10", "0.0"]
        )
    elif kind == 2:
        rows = chance.choice([[], rows[1:], rows * 2, [[]] * 5])
    text = "\n".join(chance.choice([" ", "\t", "  "]).join(row) for row in rows).encode()
    return damaged(chance, text or b"0") if kind in (3, 4) else text


def adjacency_rows(agents: int, chance: random.Random) -> list[list[int]]:
    """A graph, most often undirected."""
    rows = [[int(chance.random() < 0.5 and i != j) for j in range(agents)] for i in range(agents)]
    if chance.random() < 0.7:
        rows = [[rows[min(i, j)][max(i, j)] for j in range(agents)] for i in range(agents)]
    return rows


def file_among(chance: random.Random, folder: Path, kind: str, agents: int) -> str:
    """A new file of some kind, or now and then a folder, a pipe, a device, or nothing."""
    path = folder / f"{kind}-{chance.randrange(10**9)}"
    strange = chance.randrange(20)
    if strange == 0:
        return str(path)
    if strange == 1:
        path.mkdir()
    elif strange == 2:
        os.mkfifo(path)
    elif strange == 3:
        return chance.choice(["/dev/null", "/dev/zero", "/proc/self/mem", LONG, "~nobody-of-this-name", "."])
    elif kind == "data":
        path.write_bytes(data_file(chance))
    elif kind == "graph":
        path.write_bytes(text_file(chance, agents, lambda number: adjacency_rows(number, chance)))
    else:
        path.write_bytes(text_file(chance, agents, lambda number: [[i % 3, 3 + i % 2] for i in range(number)]))
    return str(path)


def random_words(number: int, folder: Path) -> list[str]:
    """The words of case `number`: flags with values that make sense or do not, files that are sound or not."""
    chance = random.Random(number)
    flags: dict[str, str | None] = {}
    sense = chance.choice([1.0, 0.95, 0.5])  # the share of values that make sense
    agents = chance.choice(AGENTS)
    source = chance.randrange(20)
    if source < 12:
        flags["dataset"] = "digits"
    elif source < 18:
        flags["data_file"] = file_among(chance, folder, "data", int(agents))
        if chance.random() < 0.8:
            flags["classes_per_agent"] = chance.choice(["1", "1", "2", "3"])
    elif source < 19:
        flags["dataset"] = chance.choice(["mnist", "cifar10", "imagenet", "Digits", "digits "])
        flags["data_dir"] = chance.choice([str(folder), *MAD])
    flags["agents"] = agents if chance.random() < 0.9 else chance.choice([*TOO_MANY_AGENTS, *MAD])
    for name in chance.sample(list(POOLS), chance.choice([0, 1, 2, 3, 5, 8])):
        good, bad = (pool.split() for pool in POOLS[name])
        if chance.random() < sense:
            flags[name] = chance.choice(good) if good else None
        else:
            flags[name] = chance.choice([*bad, *chance.sample(MAD, 3)])
    if chance.random() < 0.1:
        flags["topology"] = file_among(chance, folder, "graph", int(agents))
    if chance.random() < 0.1:
        flags["class_file"] = file_among(chance, folder, "class", int(agents))
    words: list[str] = []
    for name, value in chance.sample(list(flags.items()), len(flags)):
        spelled = flag(name) if chance.random() < 0.95 else f"--{name}"
        if value is None:
            words.append(spelled if chance.random() < 0.8 else f"--no-{spelled[2:]}")
        else:
            words += [f"{spelled}={value}"] if chance.random() < 0.3 else [spelled, value]
    if sense < 0.96 and chance.random() < 0.15:
        place = chance.randrange(len(words) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            words.insert(
                place, chance.choice([*MAD, "-h", "--help", "--help=1", "--no-agents", "--agnets", "--tyro-x"])
            )
        elif kind == 1:
            del words[place : place + 1]
        elif kind == 2:
            words += chance.choices(words, k=2)
        elif kind == 3:
            chance.shuffle(words)
        else:
            words = ["--tyro-print-completion", "fishy", *words]
    return words


class HangError(BaseException):
    """A case took too long; no handler of ordinary errors may swallow it."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer, a read of a pipe that nobody writes to included."""

    def interrupt(*_: Any) -> None:
        raise HangError(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(words: list[str]) -> str:
    """What became of words: "taken", "refused" in a sentence, or "helped"; anything else raises."""
    refusal: Exception | None = None
    try:
        with limited(20), contextlib.redirect_stdout(io.StringIO()):
            prepared = prepare(parse(words, Settings, "experiments.cifar"))
            plan([prepared])
    except (ValueError, OSError) as error:
        refusal = error
    except SystemExit as stop:
        return "helped" if not stop.code and {"-h", "--help"} & set(words) else f"left with {stop.code}"
    if refusal is not None:
        assert_is_a_sentence(said := " ".join(str(refusal).split()), most=40_000)
        assert "\n" not in str(refusal) or any("\n" in word for word in words), f"of two lines: {said}"
        return "refused"
    settings = prepared.settings
    idle = {name for name, own in SETTINGS.items() if own.needs and getattr(settings, own.needs[0]) != own.needs[1]}
    for name in {*PRESETS["code"], "model"} - foreign_to(settings.algorithm) - idle:
        assert getattr(settings, name) is not None, f"{name} is left open"
    assert prepared.train.sizes.min() > 0
    assert prepared.tests.sizes.min() > 0
    return "taken"


def try_cases(numbers: range, folder: Path) -> Counter[str]:
    """How many of the cases were taken, refused, helped."""
    counts: Counter[str] = Counter()
    for number in numbers:
        own = folder / str(number)
        own.mkdir()
        words = random_words(number, own)
        try:
            counts[outcome(words)] += 1
        except (Exception, HangError) as error:
            raise AssertionError(f"case {number}, {words}: {type(error).__name__}: {error}") from error
    return counts


@pytest.mark.parametrize("cases", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_flags_and_files_are_taken_or_refused(cases, tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    counts = try_cases(range(cases), tmp_path / "files")
    print(f"\n{cases} cases: {dict(counts)}")
    assert list(Path.cwd().iterdir()) == []
    assert set(counts) <= {"taken", "refused", "helped"}
    assert counts["taken"] > cases / 10
    assert counts["refused"] > cases / 10
