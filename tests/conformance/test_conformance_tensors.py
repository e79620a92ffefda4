# SPDX-License-Identifier: Apache-2.0
"""Every datatype, in every form, both ways of asking: what goes in comes back."""

from __future__ import annotations

import numpy as np
import pytest

from dovetail.tensor import NUMPY_DTYPES
from tests.conformance.dialogue import CONTENTS, WAYS, Asker, identity_request, request_for, same, sample
from tests.conformance.models import DATATYPES, MAX_BATCH_SIZE, identity_name

FORMS = [
    (datatype, form) for datatype in DATATYPES for form in ("raw", "typed") if form == "raw" or datatype in CONTENTS
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, MAX_BATCH_SIZE])
@pytest.mark.parametrize(("datatype", "form"), FORMS)
def test_values_come_back_bit_by_bit(asker: Asker, datatype: str, form: str, rows: int, way: str) -> None:
    asker.need(identity_name(datatype))
    values = sample(datatype, rows)

    answer = asker.ask(identity_request(datatype, values, form=form, request_id="7"), way)

    assert same(answer.array("y"), values)
    assert (answer.response.id, answer.response.model_name) == ("7", identity_name(datatype))
    (output,) = answer.response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", datatype, [rows, 4])
    assert not output.HasField("contents")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_tensor_without_elements_is_a_tensor(asker: Asker, datatype: str, way: str) -> None:
    asker.need(identity_name(datatype))
    values = np.empty((2, 0), dtype=NUMPY_DTYPES[datatype])

    answer = asker.ask(identity_request(datatype, values), way)

    assert same(answer.array("y"), values)
    assert list(answer.response.raw_output_contents) == [b""]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_no_typed_form(asker: Asker, datatype: str, way: str) -> None:
    asker.need(identity_name(datatype))
    request = identity_request(datatype, sample(datatype))
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([1.0] * 4)

    answer = asker.ask(request, way)

    assert "unexpected explicit tensor data for input tensor 'x'" in answer.text
    assert f"of type 'FP32', expected datatype '{datatype}'" in answer.text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "elements", [[b""], [b"a\x00b", b""], [b"x" * 1_000_000], [chr(n).encode() for n in range(1, 300)]]
)
def test_text_elements_of_any_content_and_length(asker: Asker, elements: list[bytes], way: str) -> None:
    asker.need(identity_name("BYTES"))
    values = np.array(elements, dtype=object).reshape(1, -1)

    answer = asker.ask(identity_request("BYTES", values), way)

    assert same(answer.array("y"), values)


@pytest.mark.parametrize("way", WAYS)
def test_messages_beyond_grpcs_own_limit(asker: Asker, way: str) -> None:
    asker.need(identity_name("FP32"))
    values = np.arange(3_000_000, dtype=np.float32).reshape(1, -1)  # 12 MB; gRPC's own limit is 4 MiB

    answer = asker.ask(identity_request("FP32", values), way)

    assert same(answer.array("y"), values)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["raw", "typed"])
def test_two_inputs_and_two_outputs(asker: Asker, form: str, way: str) -> None:
    asker.need("add_sub")
    a, b = np.array([[5, 6, 7, 8]], np.float32), np.array([[1, 2, 3, 4]], np.float32)

    answer = asker.ask(request_for("add_sub", {"a": ("FP32", a), "b": ("FP32", b)}, form=form), way)

    assert same(answer.array("sum"), a + b)
    assert same(answer.array("difference"), a - b)


@pytest.mark.parametrize("way", WAYS)
def test_inputs_are_known_by_name_not_by_place(asker: Asker, way: str) -> None:
    asker.need("add_sub")
    a, b = np.array([[5, 6, 7, 8]], np.float32), np.array([[1, 2, 3, 4]], np.float32)

    answer = asker.ask(request_for("add_sub", {"b": ("FP32", b), "a": ("FP32", a)}), way)

    assert same(answer.array("difference"), a - b)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("outputs", [["sum"], ["difference"], ["sum", "difference"], []])
def test_only_the_outputs_that_were_asked_for_are_sent(asker: Asker, outputs: list[str], way: str) -> None:
    asker.need("add_sub")
    ones = np.ones((2, 4), np.float32)

    answer = asker.ask(request_for("add_sub", {"a": ("FP32", ones), "b": ("FP32", ones)}, outputs=outputs), way)

    assert sorted(item.name for item in answer.response.outputs) == sorted(outputs or ["sum", "difference"])
    assert len(answer.response.raw_output_contents) == len(outputs or ["sum", "difference"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (0, 4), (20, 2)])
def test_a_model_that_is_not_batched_takes_shapes_as_they_are(asker: Asker, shape: tuple[int, ...], way: str) -> None:
    asker.need("whole")
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    answer = asker.ask(request_for("whole", {"x": ("FP32", values)}), way)

    assert same(answer.array("y"), values)
