#!/usr/bin/env python3
"""Calls the example provider (`cargo run -p examples --bin wire_provider`) in all the ways that docs/wire.md tells of, and
prints what came of each. Ends with an error if anything is not as that page says.

    python3 examples/python/try_it.py 127.0.0.1:9090 [TOKEN]
"""

import sys
import time

from hc_rpc import Client, RpcError

SERVICE = "hc.Desk"


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    token = sys.argv[2] if len(sys.argv) > 2 else None
    client = Client(host, int(port), token=token)
    unary(client)
    framework_errors(client)
    in_flight(client)
    attachments(client)
    streams(client)
    given_up(client)
    client.ping()
    print("ping:           pong")
    client.close()
    packed(host, int(port), token)
    if token:
        without_token(host, int(port))


def unary(client):
    """Values, text beyond ASCII, numbers at their ends, and the method's own typed error, in each serializer."""
    order = {"id": 2**64 - 1, "customer": "Zoë", "cents": -(2**63)}
    # In `msgpack` a struct is an array of its fields in their order, in the others a map of their names.
    ordered = list(order.values())
    for serializer, value in [("msgpack", ordered), ("msgpack-named", order), ("json", order)]:
        placed = client.call(SERVICE, "place", [value, 3], serializer=serializer)
        expect(placed, "order 18446744073709551615 of Zoë: 3 x -9223372036854775808")
        expect(client.call(SERVICE, "nothing", [], serializer=serializer), None)
        echoed = client.call(SERVICE, "same", [value], serializer=serializer)
        expect(echoed, value)
        error = fails(client, "place", [value, 0], serializer=serializer)
        expect((error.code, error.executed), ("App", "yes"))
        details = {"TooFew": [1]} if serializer == "msgpack" else {"TooFew": {"wanted": 1}}
        expect(error.details, details)
        print(f"{serializer + ':':<15} placed, and {error.details}")
    expect(client.call(SERVICE, "reversed", [b"\x00\xffabc"], serializer="raw"), b"cba\xff\x00")
    print("raw:            bytes")


def framework_errors(client):
    """What the framework answers, with whether the call ran."""
    cases = [
        ("NotFound", fails(client, "no_such_method", [])),
        ("NotFound", fails(client, "nothing", [], version="9.9")),
        ("BadRequest", fails(client, "place", ["neither"])),
        ("Internal", fails(client, "panics", [])),
        ("NotFound", fails(client, "no_such_method", [], serializer="json")),
        ("Internal", fails(client, "panics", [], serializer="json")),
    ]
    for expected, error in cases:
        expect((error.code, error.executed), (expected, "yes" if expected == "Internal" else "no"))
    print("errors:         NotFound, BadRequest, Internal")


def in_flight(client):
    """Many calls at once over one connection; a slow one does not hold up a fast one; answers are matched by id."""
    slow = client.start(SERVICE, "after_ms", [300, "slow"])
    calls = [(client.start(SERVICE, "after_ms", [0, str(n)]), str(n)) for n in range(200)]
    for call, expected in reversed(calls):
        expect(client.wait(call).result, expected)
    expect(client.wait(slow).result, "slow")
    expect(client.call(SERVICE, "meta", ["tenant"], meta={"tenant": "blue"}), "blue")
    client.wait(client.start(SERVICE, "nothing", []))
    before = client.call(SERVICE, "notes", [])
    client.start(SERVICE, "note", [], oneway=True)
    while client.call(SERVICE, "notes", []) == before:
        pass
    print("in flight:      200 calls, one oneway")


def attachments(client):
    """Raw bytes beside the envelope, both ways, in both envelopes."""
    blob = bytes(range(256)) * 400
    for serializer in ["msgpack", "json"]:
        call = client.start(SERVICE, "twice", [], attachment=blob, serializer=serializer)
        answer = client.wait(call)
        expect((answer.result, answer.attachment), (len(blob), blob + blob))
    print(f"attachment:     {len(blob)} bytes there, twice as many back")


def streams(client):
    """Items as they come, far more than the window has room for; a stream that fails; one that is given up."""
    for serializer in ["msgpack", "msgpack-named", "json"]:
        items = client.stream(SERVICE, "count_to", [500], items=4, serializer=serializer)
        expect(list(items), list(range(1, 501)))
        failing, got = client.stream(SERVICE, "count_to", [2000], serializer=serializer), []
        try:
            for item in failing:
                got.append(item)
        except RpcError as error:
            expect((error.code, error.executed, len(got)), ("App", "yes", 1000))
        else:
            raise AssertionError("a stream that fails has ended well")
    endless = client.stream(SERVICE, "count_to", [1000])
    expect([next(endless), next(endless)], [1, 2])
    endless.close()
    expect(client.call(SERVICE, "nothing", []), None)
    # The two kinds of methods do not mix.
    expect(fails(client, "count_to", [5]).code, "BadRequest")
    try:
        list(client.stream(SERVICE, "nothing", []))
    except RpcError as error:
        expect((error.code, error.executed), ("BadRequest", "no"))
    else:
        raise AssertionError("a method that answers once was streamed")
    print("streams:        500 items through a window of 4")


def given_up(client):
    """A call whose time is over is answered so, one that nobody waits for is cancelled, and the connection lives."""
    error = fails(client, "after_ms", [60_000, "never"], timeout=0.2)
    expect((error.code, error.executed), ("DeadlineExceeded", "maybe"))
    before = client.call(SERVICE, "cancelled", [])
    end = time.monotonic() + 5
    # A call that is given up before its handler began never begins: nobody counts it. So one after the other is.
    while client.call(SERVICE, "cancelled", []) == before:
        given_up = client.start(SERVICE, "after_ms", [60_000, "never"])
        client.call(SERVICE, "cancelled", [])
        client.cancel(given_up)
        if time.monotonic() > end:
            raise AssertionError("the handler was not told that nobody waits")
    print("given up:       in time, and by CANCEL")


def packed(host, port, token):
    """A provider packs what is large when it was offered a compressor."""
    client = Client(host, port, token=token, compressors=["lz4"])
    client.hello()
    lines = "shipped, paid, returned; " * 1000
    for serializer in ["msgpack", "json"]:
        expect(client.call(SERVICE, "after_ms", [0, lines], serializer=serializer), lines)
    expect(client.packed_answers, 2)
    client.close()
    print("packed:         two answers, by lz4")


def without_token(host, port):
    """Who shows no token is greeted, and refused."""
    client = Client(host, port)
    expect(client.hello()["hello"], 1)
    error = fails(client, "nothing", [])
    expect((error.code, error.executed), ("Unauthenticated", "no"))
    client.close()
    print("without token:  Unauthenticated")


def fails(client, method, params, **options):
    """The error of a call that must fail."""
    try:
        result = client.call(SERVICE, method, params, **options)
    except RpcError as error:
        return error
    raise AssertionError(f"{method}{tuple(params)} gave {result!r} and should have failed")


def expect(found, wanted):
    if found != wanted:
        raise AssertionError(f"{found!r}, expected {wanted!r}")


if __name__ == "__main__":
    main()
