"""What schemathesis must know of the API that its description cannot say: hooks for test_openapi."""

import os
import sys
from urllib.parse import parse_qsl, quote, urlsplit

import schemathesis
from schemathesis.core import NOT_SET
from schemathesis.core.parameters import ParameterLocation

sys.path.insert(0, os.path.dirname(__file__))

from harness import SECRET, hmac_hex, sign_body  # noqa: E402


def signed(path, text):
    """A query or a form with its sign; what is given twice stays so."""
    pairs = [pair for pair in parse_qsl(text, keep_blank_values=True) if pair[0] != "sign"]
    encode = lambda pair: "=".join(quote(part, safe="-._~") for part in pair)
    encoded = "&".join(map(encode, sorted(pairs)))
    return f"{encoded}&sign=" + hmac_hex(SECRET, f"{path}\n{encoded}")


def sign(request):
    """Signs a request of the library `requests`, as it is about to leave."""
    url = urlsplit(request.url)
    is_form = request.headers.get("Content-Type") == "application/x-www-form-urlencoded"
    if not url.path.startswith("/ws/"):
        return request
    if not request.body:
        request.url = url._replace(query=signed(url.path, url.query)).geturl()
    elif is_form:
        request.prepare_body(signed(url.path, request.body), None)
    else:
        request.headers["X-Sign"] = sign_body(url.path, request.body)
    return request


schemathesis.auth.set_from_requests(sign)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Parameters come from one place: the one that shall be wrong, else the body if there is one."""
    if not case.path.startswith("/ws/"):
        return
    is_wrong = lambda place: case.meta is not None and case.meta.is_negative_at(place)
    if is_wrong(ParameterLocation.QUERY):
        case.body = NOT_SET
    elif is_wrong(ParameterLocation.BODY):
        case.query = {}
    elif case.body is NOT_SET:
        # The parameters that a body would need.
        case.query = usable({"pid": "1", "data": "x", **(case.query or {})})
    else:
        case.query = {}
        case.body = with_integers(usable(case.body))


def usable(params):
    """For a project that is there, and not past its time: otherwise most answers were refusals."""
    return {name: value for name, value in params.items() if name != "exp"} | {"pid": "1"}


def with_integers(value):
    """To JSON Schema 7.0 is an integer. The API takes integers written as such."""
    if isinstance(value, dict):
        return {name: with_integers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_integers(item) for item in value]
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value
