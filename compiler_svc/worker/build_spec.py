# SPDX-License-Identifier: Apache-2.0
"""What the worker hands to its child process and what comes back, as plain values.

A child gets one directory. The caller puts the files there; `sandbox.run_intake` and `run_build` put a specification
beside them (`spec_file`), start the child (`compiler_svc.worker.child`), which writes its results under `out/` and
says so in `result.json`, and read that back as one of the outcomes below. Nothing here starts a process or touches a
library, so that the service can import it too.

All file names in a specification are relative to that directory and plain (no folders).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compiler_svc.backends.base import Plugin
from compiler_svc.intake.limits import FleetTarget, ModelLimits
from compiler_svc.support import EngineSupport
from compiler_svc.worker.child_failure import ChildFailure
from dovetail.accuracy import AccuracyPolicy
from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.gate import GateReport
from dovetail.program.agreement import ExportFigures
from dovetail.ranges import DimRange
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.tensor import TensorSpec

SPEC_FILE = "spec.json"
RESULT_FILE = "result.json"
LOG_FILE = "child.log"
OUT_DIR = "out"
MAX_GATE_SAMPLES = 1000
"""Samples that a gate runs at most; evenly spaced if there are more."""

MAX_RESULT_BYTES = 4 << 20
"""Refuse larger result documents; a real one is a few KiB."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What a child may use.

    Attributes:
        wall_s: Seconds until its process group is killed.
        cpu_s: CPU seconds of all its threads together (RLIMIT_CPU).
        memory_bytes: Address space of one process (RLIMIT_AS), and resident memory of all together; reserve generously,
            libraries map more than they touch.
        file_bytes: Largest file it may write (RLIMIT_FSIZE).
        open_files: File descriptors (RLIMIT_NOFILE).
        address_space: False lifts RLIMIT_AS: CUDA reserves far more addresses than any GPU has memory. Resident memory
            stays limited.
        processes: Processes at once; 0 for any number. Counted in the child's own process namespace, because the
            kernel's limit (RLIMIT_NPROC) counts all processes of the user and exempts root; not held without one.
    """

    wall_s: float = 900.0
    cpu_s: int = 1800
    memory_bytes: int = 16 << 30
    file_bytes: int = 8 << 30
    open_files: int = 512
    processes: int = 64
    address_space: bool = True


@dataclass(frozen=True, slots=True)
class EmulatedCpu:
    """A kind of CPU whose arithmetic is reproduced; the domain form of Emulation in storage.proto.

    Attributes:
        name: "<emulator>:<cpu>", such as "qemu:Haswell".
        isa_class: Canonical instruction set class, such as "x86-64-v3".
        arch: Its architecture.
        cpu_features: Its features, in the kernel's spelling.
        program: Path of the emulator; "" where none is needed.
        root: Root directory with the Python and the libraries of another architecture; "" takes this process' own.
    """

    name: str
    isa_class: str
    arch: str
    cpu_features: frozenset[str]
    program: str = ""
    root: str = ""


@dataclass(frozen=True, slots=True)
class IntakeSpec:
    """Order to check and normalise a pushed model.

    Attributes:
        model_file: The .onnx file; "" makes it from the program.
        external_files: Location as the model names it ("weights/a.bin") -> file in the directory.
        calibration_file: .npz, or "".
        validation_file: .npz, or "".
        label_array: Name of the label array that was asked for, which must be there; "" is the default, which may be
            absent.
        task: As in AccuracyPolicy; class labels are held against the output.
        output: As in AccuracyPolicy.
        limits: What is accepted.
        ranges: Declared sizes of free dimensions.
        target: Newest stamps that the result may have.
        program_file: The exported program (.pt2), or "".
        reference_file: .npz with outputs of the native module, or "".
    """

    model_file: str = "model.onnx"
    external_files: Mapping[str, str] = field(default_factory=dict)
    calibration_file: str = ""
    validation_file: str = ""
    label_array: str = ""
    task: str = ""
    output: str = ""
    limits: ModelLimits = field(default_factory=ModelLimits)
    ranges: tuple[DimRange, ...] = ()
    target: FleetTarget = field(default_factory=FleetTarget)
    program_file: str = ""
    reference_file: str = ""


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """Order to build, gate and measure one recipe.

    Attributes:
        recipe: What to build.
        contract: Contract as planned; its engine and device say what runs the result.
        inputs: Signature.
        outputs: Signature.
        facts: Opset, operators and the like.
        hardware_class: Key of the class of this machine, for the benchmark record.
        cpu_features: CPU features of this machine, for run-time mitigations.
        threads: Threads for building and for one inference.
        policy: How accuracy is judged.
        model_file: Normalised model.
        calibration_file: .npz, or "".
        validation_file: .npz, or "".
        measure_budget_s: Seconds to spend on measuring, search for settings included; more with a slow model.
        objective: What the search for settings optimises, a value of `dovetail.offer.Objective`.
        known: Figures of other artifacts of this model on this class: what this one has to beat.
        emulation: CPU that the gate runs under; None runs it natively and measures.
        max_gate_samples: Validation samples used by the gate, evenly spaced if there are more.
        ranges: Declared sizes of free dimensions.
        mixed_budget_s: Seconds for tries with some layers in float, if the gate is missed; 0 for none.
        program_file: The exported program (.pt2), or "".
        kept_files: What earlier builds for the same key kept, see `BuildInput.kept`.
        plugins: Native code that the recipe may name; in the worker's own places, not in the directory.
    """

    recipe: Recipe
    contract: Contract
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    facts: ModelFacts
    hardware_class: str
    cpu_features: frozenset[str]
    threads: int
    policy: AccuracyPolicy = field(default_factory=AccuracyPolicy)
    model_file: str = "model.onnx"
    calibration_file: str = ""
    validation_file: str = ""
    measure_budget_s: float = 2.0
    objective: str = "latency"
    known: tuple[BenchmarkRecord, ...] = ()
    emulation: EmulatedCpu | None = None
    max_gate_samples: int = MAX_GATE_SAMPLES
    ranges: tuple[DimRange, ...] = ()
    mixed_budget_s: float = 300.0
    program_file: str = ""
    kept_files: tuple[str, ...] = ()
    plugins: tuple[Plugin, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a child.

    Attributes:
        phase: "intake", "building", "gating" or "measuring".
        fraction: 0 to 1 within the whole task.
        message: What it is doing, for people.
    """

    phase: str
    fraction: float
    message: str


@dataclass(frozen=True, slots=True)
class BuiltFile:
    """A file that a build made.

    Attributes:
        name: File name that the engine expects.
        role: As in the manifest.
        path: Where it is; valid until the caller removes the child's directory.
        size_bytes: Its size.
        digest: sha256 as computed after the child ended.
    """

    name: str
    role: str
    path: Path
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What is known of a sample file.

    Attributes:
        count: Samples; 0 without a file.
        digest: Digest of the samples in order, labels included; "" without a file.
        labelled: True if it holds the label array.
    """

    count: int = 0
    digest: str = ""
    labelled: bool = False


@dataclass(frozen=True, slots=True)
class IntakeOutcome:
    """A model that was accepted.

    Attributes:
        model: The normalised file; self-contained unless there is `weights`.
        model_digest: Digest of the normalised graph; equal however the graph was serialised.
        file_digest: sha256 of `model`.
        size_bytes: Size of `model` and `weights` together.
        opset: Opset of ai.onnx after intake.
        ir_version: ONNX IR version after intake.
        inputs: Signature.
        outputs: Signature.
        operators: Distinct operator names, sorted ("Conv", "com.example::Foo").
        parameter_bytes: Size of the weights as stored.
        notes: What intake changed, and which backends cannot build it, for people.
        calibration: Facts of the calibration samples.
        validation: Facts of the validation samples.
        confined: Rights that the child did not have: "network", "writing" outside its directory, "privileges" …
        weights: The weights of a model that is too large for one protobuf file, else None; an engine finds it beside
            the model under the name "model.onnx.data".
        support: What each engine that intake had can do with it.
        ranges: As declared, and for every other dimension that the graph gives the same name.
        program: The exported program without its sample inputs, or None.
        release: torch release that exported it ("2.13.0"); "" without one.
        export: How far the graph is from the native module, or None.
    """

    model: Path
    model_digest: str
    file_digest: str
    size_bytes: int
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[str, ...]
    parameter_bytes: int
    notes: tuple[str, ...] = ()
    calibration: SampleFacts = field(default_factory=SampleFacts)
    validation: SampleFacts = field(default_factory=SampleFacts)
    confined: tuple[str, ...] = ()
    weights: Path | None = None
    support: tuple[EngineSupport, ...] = ()
    ranges: tuple[DimRange, ...] = ()
    program: Path | None = None
    release: str = ""
    export: ExportFigures | None = None


@dataclass(frozen=True, slots=True)
class BuildResult:
    """An artifact that passed the gate.

    Attributes:
        files: Files of the artifact, goldens included.
        recipe: As built: the ordered one, with the layers that had to stay in float.
        contract: Final contract, measured memory included.
        gate: Report of the gate.
        benchmarks: Figures of this machine, the one to show first; none if the gate ran under emulation.
        verified: "native" or "emulated": what the gate ran on.
        labels: Facts for people.
        max_batch_size: Largest batch that may be formed along the first axis; 0 if requests must not be batched,
            because an input has no free first axis or rows were seen to influence each other.
        toolchain: Exact versions of what touched the bytes, as the backend in the child reports them.
        confined: Rights that the child did not have: "network", "writing" outside its directory, "privileges" …
        keep: What the build keeps for later ones, see `BuildOutput.keep`; or None.
    """

    files: tuple[BuiltFile, ...]
    recipe: Recipe
    contract: Contract
    gate: GateReport
    benchmarks: tuple[BenchmarkRecord, ...]
    verified: str
    labels: Mapping[str, str]
    max_batch_size: int
    toolchain: Mapping[str, str]
    confined: tuple[str, ...] = ()
    keep: Path | None = None


ChildOutcome = IntakeOutcome | BuildResult | ChildFailure
