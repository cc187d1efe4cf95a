"""The private descriptors are field by field those of the stock client."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from serving.inference_proto import HEALTH_MESSAGES, MESSAGES, POOL, SERVICE

# Of a model's configuration the messages hold what is answered, of dozens of fields.
PARTIAL = {
    path for path in MESSAGES if path in model_config_pb2.DESCRIPTOR.message_types_by_name
} | {"ModelConfigResponse"}
# Of the protocol's own messages, and not of the stock client's, which passes over it.
PROPERTIES = ("ModelMetadataResponse", "properties")
# An enumeration is an int32 on the wire.
ENUM, INT32 = 14, 5


def stock(path: str) -> Any:
    outer, _, inner = path.partition(".")
    of_models = model_config_pb2.DESCRIPTOR.message_types_by_name
    message = of_models.get(outer) or service_pb2.DESCRIPTOR.message_types_by_name[outer]
    return message.nested_types_by_name[inner] if inner else message


def facts(message: Any) -> dict[str, Any]:
    """Everything that decides a message's bytes and its accessors, field by field."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.containing_oneof.name if field.containing_oneof else None,
            (field.message_type.full_name, facts(field.message_type)) if field.message_type else (),
            field.message_type.GetOptions().map_entry if field.message_type else False,
        )
        for field in message.fields
    }


@pytest.mark.parametrize("path", sorted(MESSAGES.keys() - PARTIAL))
def test_each_message_equals_the_stock_one_field_by_field(path: str) -> None:
    ours = facts(MESSAGES[path].DESCRIPTOR)
    if path == PROPERTIES[0]:
        del ours[PROPERTIES[1]]
    assert ours == facts(stock(path))


@pytest.mark.parametrize("path", sorted(PARTIAL))
def test_each_field_of_a_configuration_is_one_of_the_stock_ones(path: str) -> None:
    theirs = stock(path).fields_by_name
    for field in MESSAGES[path].DESCRIPTOR.fields:
        other = theirs[field.name]
        kind = INT32 if other.type == ENUM else other.type
        assert (field.number, field.type, field.is_repeated) == (
            other.number, kind, other.is_repeated,
        )  # fmt: skip
        if field.message_type:
            assert field.message_type.full_name == other.message_type.full_name


def test_each_call_of_the_service_is_the_stock_one() -> None:
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    ours = POOL.FindServiceByName(SERVICE)
    assert theirs.full_name == SERVICE
    for call in ours.methods:
        other = theirs.methods_by_name[call.name]
        assert (call.input_type.full_name, call.output_type.full_name) == (
            other.input_type.full_name, other.output_type.full_name,
        )  # fmt: skip
        assert (call.client_streaming, call.server_streaming) == (
            other.client_streaming, other.server_streaming,
        )  # fmt: skip


def test_health_says_serving_as_the_standard_enumeration_does() -> None:
    # grpc.health.v1: field 1, varint, SERVING = 1.
    assert HEALTH_MESSAGES["HealthCheckResponse"](status=1).SerializeToString() == b"\x08\x01"
    assert HEALTH_MESSAGES["HealthCheckRequest"](service="a").SerializeToString() == b"\x0a\x01a"
