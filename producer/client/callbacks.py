"""Callbacks, from both sides: verifying those that arrive, and the clients' methods for where they go and went."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from pydantic import RootModel, ValidationError
from standardwebhooks import Webhook, WebhookVerificationError
from standardwebhooks.webhooks import EmptyWebhookSecretError

from producer.client.bulk import BulkPlans
from producer.client.errors import CallbackRefused
from producer.client.plans import PATIENCE, Plan, invalid, refused, surely_undone
from schemas.callback import (
    Callback,
    CallbackEvent,
    CallbackPage,
    CallbackState,
    Endpoint,
    EndpointPage,
    EndpointRequest,
    EventType,
    NewEndpoint,
    Replayed,
    ReplayRequest,
    Rotation,
    Secret,
)
from schemas.ids import parse_prefixed

_ENDPOINTS, _CALLBACKS, _DEFAULT_SECRET = "/v1/callback-endpoints", "/v1/callbacks", "/v1/callback-secret"


def verify_callback(body: bytes | str, headers: Mapping[str, str], secret: str | Sequence[str]) -> CallbackEvent:
    """Make sure that a callback is from the service, unchanged, and not older than five minutes; give its event.

    The same event may arrive more than once. Keep the ids that you have seen, and do nothing twice.

    Args:
        body: the request's body, exactly as it came.
        headers: the request's headers, in any case.
        secret: the endpoint's `whsec_...`; several while you change from one to the next.

    Raises:
        CallbackRefused: it is not, or it cannot be told. Answer 400; do not act on it.
    """
    secrets = [secret] if isinstance(secret, str) else list(secret)
    if not secrets or not all(each.startswith("whsec_") for each in secrets):
        raise CallbackRefused("there is no secret that begins with whsec_ to verify it with")
    given = {str(name): str(value) for name, value in headers.items()}
    why = "it could not be verified"
    for each in secrets:
        try:
            Webhook(each).verify(body, given, json_parse=False)
            return CallbackEvent.model_validate_json(body)
        except WebhookVerificationError as error:
            why = str(error)
        except ValidationError:
            raise CallbackRefused("it is signed, but no event of nightcourt") from None
        except (EmptyWebhookSecretError, ValueError):
            # What the library stumbles over: a header that is no signature, a body that is no text, a broken secret.
            why = "Invalid Signature Headers"
    raise CallbackRefused(why)


def _endpoint(endpoint_id: str) -> str:
    if parse_prefixed(endpoint_id, "cep_") is None:
        raise invalid("endpoint_id", "looks like cep_ and 32 hexadecimal digits; this is none")
    return f"{_ENDPOINTS}/{endpoint_id}"


def _one(callback_id: str) -> str:
    if parse_prefixed(callback_id, "cbk_") is None:
        raise invalid("callback_id", "looks like cbk_ and 32 hexadecimal digits; this is none")
    return f"{_CALLBACKS}/{callback_id}"


class CallbackPlans(BulkPlans):
    """The plans for callbacks, beside those for comparisons and batches."""

    def add_endpoint(
        self, url: str, *, events: Sequence[EventType | str] = (), description: str | None = None
    ) -> Plan[NewEndpoint]:
        """Register a receiver, of some types of events or of all. Its secret is shown this once.

        Two calls make two endpoints, so this one is not repeated by itself where it may have been carried out.
        """
        try:
            request = EndpointRequest.model_validate({"url": url, "events": list(events), "description": description})
        except ValidationError as error:
            raise refused(error) from None
        return self.call(NewEndpoint, "POST", _ENDPOINTS, again=surely_undone, content=request.model_dump_json())

    def endpoints(self) -> Plan[EndpointPage]:
        """Read the registered endpoints, and those named by requests that fail or are held."""
        return self.call(EndpointPage, "GET", _ENDPOINTS)

    def disable_endpoint(self, endpoint_id: str) -> Plan[Endpoint]:
        """Have nothing sent to an endpoint until it is enabled. Its events are kept, to be replayed."""
        return self.call(Endpoint, "POST", f"{_endpoint(endpoint_id)}/disable")

    def enable_endpoint(self, endpoint_id: str) -> Plan[Endpoint]:
        """Have callbacks sent to an endpoint again, at once where it was held, also to one that requests named."""
        return self.call(Endpoint, "POST", f"{_endpoint(endpoint_id)}/enable")

    def remove_endpoint(self, endpoint_id: str) -> Plan[None]:
        """Remove an endpoint with all of its callbacks, those on their way included.

        It is not repeated by itself where it may have been carried out: the second call would find no endpoint.
        """
        path = _endpoint(endpoint_id)
        yield from self.call(RootModel[None], "DELETE", path, patience=PATIENCE, again=surely_undone)

    def test_endpoint(self, endpoint_id: str) -> Plan[Callback]:
        """Send an endpoint a `callback.test` event; read the callback to see how it went.

        It is not repeated by itself where it may have been carried out: that would send another.
        """
        return self.call(Callback, "POST", f"{_endpoint(endpoint_id)}/test", again=surely_undone)

    def rotate_secret(self, endpoint_id: str | None = None, *, grace_seconds: float = 86400.0) -> Plan[Secret]:
        """Make a new secret, shown this once: an endpoint's, or the one for what goes to requests' `callback_url`.

        It is not repeated by itself where it may have been carried out: that would end the secret just made.

        Args:
            endpoint_id: the endpoint; None for the default secret.
            grace_seconds: how long the earlier secret signs too, up to a week; 0 ends it at once.
        """
        path = _DEFAULT_SECRET if endpoint_id is None else f"{_endpoint(endpoint_id)}/rotate-secret"
        body = Rotation.model_construct(grace_seconds=grace_seconds).model_dump_json()
        return self.call(Secret, "POST", path, again=surely_undone, content=body)

    def callbacks(
        self,
        *,
        limit: int = 20,
        after: str | None = None,
        status: CallbackState | str | None = None,
        endpoint_id: str | None = None,
        object_id: str | None = None,
    ) -> Plan[CallbackPage]:
        """Read a page of 1 to 100 callbacks, newest first: of a state, an endpoint, or one comparison or batch."""
        asked = {"after": after, "status": status, "endpoint_id": endpoint_id, "object_id": object_id}
        params = {"limit": str(limit)} | {name: str(value) for name, value in asked.items() if value is not None}
        return self.call(CallbackPage, "GET", _CALLBACKS, params=params)

    def callback(self, callback_id: str) -> Plan[Callback]:
        """Read a callback with every attempt."""
        return self.call(Callback, "GET", _one(callback_id))

    def replay(self, callback_id: str) -> Plan[Callback]:
        """Have a callback sent again, now, under the id it has always had.

        Two calls send it twice, so this one is not repeated by itself where it may have been carried out.
        """
        return self.call(Callback, "POST", f"{_one(callback_id)}/replay", again=surely_undone)

    def replay_dead(self, since: datetime, *, endpoint_id: str | None = None) -> Plan[Replayed]:
        """Have everything dead of events since a moment sent again, except to disabled endpoints.

        It is not repeated by itself where it may have been carried out: the second call would count what is left.
        """
        try:
            request = ReplayRequest(since=since, endpoint_id=endpoint_id)
        except ValidationError as error:
            raise refused(error) from None
        body = request.model_dump_json()
        return self.call(Replayed, "POST", f"{_CALLBACKS}/replay", patience=PATIENCE, again=surely_undone, content=body)
