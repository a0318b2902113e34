"""Schemathesis: replies to generated requests, valid and invalid, conform to the OpenAPI document."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, settings, strategies
from ipam_server import HOST, OTHER_HOST, PATIENCE, AddressService, World
from schemathesis.specs.openapi.checks import positive_data_acceptance

from sriov_fast.ipamd.api import create_app, describe
from sriov_fast.ipamd.metrics import Metrics

if TYPE_CHECKING:
    from sriov_fast.ipamd.service import Service

EXAMPLES = int(os.environ.get("SRIOV_FAST_EXAMPLES", "0"))  # set by `make fuzz`
# The schema has no rules between sections, so a configuration that conforms to the schema may be refused.
CONFIGURES = ("PUT", "/v1/config"), ("POST", "/v1/import")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(world: World) -> AddressService:
    Administrator.token = world.tokens.admin
    return world.serve("s")


# The last test compares this document with that of the server.
DOCUMENT = describe(create_app(cast("Service", None), Metrics()))
schema = schemathesis.openapi.from_dict(DOCUMENT)
schemathesis.openapi.format("ipv4", strategies.sampled_from([HOST, OTHER_HOST, "192.0.2.1"]))
schemathesis.openapi.format("cidr", strategies.sampled_from(["10.55.0.0/16", "192.0.2.1/32", "fd00::/64"]))
# Only `make fuzz` violates every constraint of every field.
schema.config.phases.coverage.enabled = bool(EXAMPLES)
# A request with an outdated revision is valid; its status is 412.
schema.config.checks.positive_data_acceptance.expected_statuses = ["2xx", "401", "403", "404", "409", "412"]


@schema.auth()
class Administrator:
    """The credentials that Schemathesis omits when it checks that authentication is required."""

    token = ""

    def get(self, case: schemathesis.Case, context: schemathesis.AuthContext) -> str:
        return self.token

    def set(self, case: schemathesis.Case, data: str, context: schemathesis.AuthContext) -> None:
        case.headers["authorization"] = f"Bearer {data}"


def configures(case: schemathesis.Case) -> bool:
    return any(case.method == method and case.path.startswith(path) for method, path in CONFIGURES)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES or 5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_the_api_does_what_its_description_says(
    case: schemathesis.Case, world: World, server: AddressService
) -> None:
    case.call_and_validate(
        base_url=server.url,
        verify=str(world.authority.ca),
        timeout=PATIENCE,
        excluded_checks=[positive_data_acceptance] if configures(case) else [],
    )


def test_some_of_it_was_accepted_and_some_refused(server: AddressService) -> None:
    """The generated requests include accepted and refused ones."""
    statuses = {(event["method"], event["status"]) for event in server.events() if event["msg"] == "request"}
    expected = {("PUT", 200), ("PUT", 422), ("POST", 404), ("DELETE", 404), ("PUT", 401)}
    assert expected <= statuses, sorted(statuses)


def test_nothing_went_wrong_inside(server: AddressService, world: World) -> None:
    """After the generated requests the process is ready and has logged no errors."""
    with world.admin(server) as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/openapi.json").json() == DOCUMENT
    assert server.process.poll() is None
    assert [event for event in server.events() if event["level"] == "error"] == []
