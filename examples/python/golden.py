#!/usr/bin/env python3
"""Reads the golden files of the protocol, and writes the ones that a client writes: so that this client and the Rust one
cannot drift apart unseen.

    python3 examples/python/golden.py rpc-core/tests/golden
"""

import json
import pathlib
import sys

import hc_rpc
import packing

TEXT = "".join(f'{{"order":{line},"paid":true}}\n' for line in range(200))


def main():
    root = pathlib.Path(sys.argv[1])
    frames = sorted(root.glob("frame/*.hex")) + sorted(root.glob("compress/*.hex"))
    for path in frames:
        data = hex_bytes(path)
        frame, used = hc_rpc.parse(data)
        assert frame is not None and used == len(data), f"{path.name}: {used} of {len(data)} bytes are a frame"
        for end in range(len(data)):
            assert hc_rpc.parse(data[:end]) == (None, 0), f"{path.name}: {end} bytes were taken for a frame"
    for path in sorted(root.glob("compress/*.lz4.hex")):
        frame, _ = hc_rpc.parse(hex_bytes(path))
        body = frame.body
        if frame.status & hc_rpc.ATTACHMENT:
            length = int.from_bytes(body[:4], "big")
            assert body[4 + length :] == b"raw bytes", path.name
            body = body[4 : 4 + length]
        assert hc_rpc._unpacked(body, ["lz4"]).decode() == TEXT, path.name
    envelopes(root / "envelope")
    print(f"{len(frames)} frames and the envelopes are as pinned")


def envelopes(root):
    arguments = ("hc.Greeter", "1.0", "default", "greet", 1_500_000)
    meta = {"tenant": 'a"b', "trace": "é"}
    assert hc_rpc._request("msgpack", *arguments, None, ["ann", 7]) == hex_bytes(root / "request.msgpack.hex")
    assert hc_rpc._request("msgpack", *arguments, meta, ["ann", 7]) == hex_bytes(root / "request-meta.msgpack.hex")
    for name, pairs in [("request.json", None), ("request-meta.json", meta)]:
        ours = json.loads(hc_rpc._request("json", *arguments, pairs, ["ann", 7]))
        # Names of Java classes are for Java.
        theirs = {**json.loads((root / name).read_text()), "parameterTypes": []}
        assert ours == theirs, name
    for name in ["response", "response-app", "response-error"]:
        read = [
            outcome(hc_rpc._msgpack_answer, hex_bytes(root / f"{name}.msgpack.hex"), "msgpack"),
            outcome(hc_rpc._json_answer, (root / f"{name}.json").read_bytes(), "json"),
        ]
        # The two differ in the form of a struct only.
        assert read[0][:-1] == read[1][:-1], (name, read)
    assert packing.unpack(hex_bytes(root / "response-bin.msgpack.hex"))[0] == b"hello"


def outcome(read, envelope, serializer):
    try:
        result, meta = read(envelope, serializer)
        return (result, meta, None)
    except hc_rpc.RpcError as error:
        return (error.code, error.message, error.executed, error.retry_after_ms, error.details)


def hex_bytes(path):
    return bytes.fromhex(path.read_text())


if __name__ == "__main__":
    main()
