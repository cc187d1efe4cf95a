"""The private descriptors are field by field those of the stock client."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from serving.inference_proto import HEALTH_MESSAGES, MESSAGES, SERVICE


def stock(path: str) -> Any:
    outer, _, inner = path.partition(".")
    message = service_pb2.DESCRIPTOR.message_types_by_name[outer]
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


@pytest.mark.parametrize("path", MESSAGES)
def test_each_message_equals_the_stock_one_field_by_field(path: str) -> None:
    assert facts(MESSAGES[path].DESCRIPTOR) == facts(stock(path))


def test_the_service_and_its_calls_have_the_stock_names() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    for path in MESSAGES:
        if path.endswith("Request"):
            call = service.methods_by_name[path.removesuffix("Request")]
            assert call.output_type.name in MESSAGES


def test_health_says_serving_as_the_standard_enumeration_does() -> None:
    # grpc.health.v1: field 1, varint, SERVING = 1.
    assert HEALTH_MESSAGES["HealthCheckResponse"](status=1).SerializeToString() == b"\x08\x01"
    assert HEALTH_MESSAGES["HealthCheckRequest"](service="a").SerializeToString() == b"\x0a\x01a"
