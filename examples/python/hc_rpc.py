"""A client of a provider, written from docs/wire.md alone, with Python's standard library alone.

    client = Client("127.0.0.1", 9090)
    client.call("hc.Greeter", "greet", ["ada"])

It is an example of the protocol, not a product: one socket, one thread, no reconnecting, no registry. Calls may be in
flight at once: `start` sends one, `wait` waits for its answer, in any order.
"""

import json
import socket
import struct
import time
from collections import deque, namedtuple

import packing

MAGIC, VERSION = 0x0010, 1
REQUEST, RESPONSE, HEARTBEAT = 0, 1, 2
CANCEL, GOAWAY, STREAM_ITEM, STREAM_END, STREAM_WINDOW = 16, 17, 18, 19, 20
FAILED, ONEWAY, ATTACHMENT, COMPRESSED = 0x01, 0x02, 0x04, 0x08
# Of frames of type 2.
PONG, PING, HELLO = 0x00, 0x01, 0x03
NO_CALL = -1
BODY_BYTES_MAX = 16 * 1024 * 1024
RATIO_MAX = 1024

CODES = {
    1: "App", 2: "NotFound", 3: "BadRequest", 4: "BadReply", 5: "DeadlineExceeded", 6: "Cancelled", 7: "Unavailable",
    8: "Overloaded", 9: "Draining", 10: "Unauthenticated", 11: "Forbidden", 12: "TooLarge", 13: "Unsupported", 14: "Internal",
}
EXECUTED = {0: "no", 1: "maybe", 2: "yes"}

Frame = namedtuple("Frame", "type status id serializer body")
Answer = namedtuple("Answer", "result attachment meta")


class RpcError(Exception):
    """A call that failed: `code` is a name of CODES, `executed` no, maybe or yes, `details` the method's own error."""

    def __init__(self, code, message, executed, retry_after_ms=None, details=None):
        super().__init__(f"{code}: {message} (executed: {executed})")
        self.code, self.message, self.executed = code, message, executed
        self.retry_after_ms, self.details = retry_after_ms, details


class ProtocolError(Exception):
    """The peer does not keep to docs/wire.md; the connection is of no more use."""


class Client:
    """One connection. `serializer` is the default of calls; `compressors` are offered to the provider ("lz4" is there)."""

    def __init__(self, host, port, serializer="msgpack", token=None, compressors=(), timeout=5.0):
        self.serializer, self.timeout = serializer, timeout
        self.peer = None  # what the provider's HELLO said
        self.going_away = False
        self.packed_answers = 0
        self.pongs = 0
        self._answers = {}
        self._deadlines = {}
        self._streams = {}
        self._cancelled = set()
        self._next_id = 1
        self._offered = list(compressors)
        self._received = bytearray()
        self._socket = socket.create_connection((host, port), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        hello = {
            "hello": 1,
            "flags": ONEWAY | ATTACHMENT | (COMPRESSED if self._offered else 0),
            "types": [CANCEL, GOAWAY, STREAM_ITEM, STREAM_END, STREAM_WINDOW],
            "compressors": self._offered,
            "frame_bytes_max": BODY_BYTES_MAX,
        }
        if token is not None:
            hello["token"] = token
        self._send(HEARTBEAT, HELLO, NO_CALL, "json", json.dumps(hello).encode())

    def close(self):
        self._socket.close()

    def call(self, service, method, params, **options):
        """The result of a call; RpcError if it failed. Options as of `start`."""
        return self.wait(self.start(service, method, params, **options)).result

    def start(self, service, method, params, version="1.0", group="default", timeout=None, meta=None, attachment=b"",
              oneway=False, serializer=None):
        """Sends a request and gives its id, for `wait`. With `oneway` there is no answer."""
        serializer = serializer or self.serializer
        timeout_us = int((timeout or self.timeout) * 1e6)
        envelope = _request(serializer, service, version, group, method, timeout_us, meta, params)
        status, body = 0x01, envelope
        if attachment:
            status, body = status | ATTACHMENT, struct.pack(">I", len(envelope)) + envelope + attachment
        if oneway:
            status |= ONEWAY
        self._needs(status & ~0x01)
        call, self._next_id = self._next_id, self._next_id + 1
        if not oneway:
            self._deadlines[call] = time.monotonic() + (timeout or self.timeout)
        self._send(REQUEST, status, call, serializer, body)
        return call

    def wait(self, call):
        """The answer to the call with this id, as an Answer. Gives the call up when its time is over."""
        deadline = self._deadlines.pop(call)
        while call not in self._answers:
            try:
                self._take(deadline)
            except TimeoutError:
                self.cancel(call)
                raise RpcError("DeadlineExceeded", "no answer in time", "maybe") from None
        return _answer(self._answers.pop(call), self)

    def stream(self, service, method, params, items=16, window_bytes=65536, serializer=None, **options):
        """Gives the items of a streaming method as they come; RpcError at its end if it failed. At most `items` of them, and
        `window_bytes` of their bodies, are ever on their way; more are asked for when half was taken. To stop taking them
        is to cancel."""
        if not {STREAM_ITEM, STREAM_END, STREAM_WINDOW} <= set(self.hello().get("types", [])):
            raise RpcError("Unsupported", "the provider has no streams", "no")
        serializer = serializer or self.serializer
        call = self._next_id
        # The window goes directly before the request, with the id that the request will have.
        self._send(STREAM_WINDOW, 0, call, "", struct.pack(">II", items, window_bytes))
        frames = self._streams[call] = deque()
        assert call == self.start(service, method, params, serializer=serializer, **options)
        # A stream is waited for item by item.
        del self._deadlines[call]
        taken = taken_bytes = 0
        try:
            while True:
                while not frames:
                    self._take(time.monotonic() + self.timeout)
                frame = frames.popleft()
                if frame.type == STREAM_END:
                    call = None
                    # Raises if it says that the stream failed.
                    _answer(frame._replace(serializer=serializer), self)
                    return
                taken, taken_bytes = taken + 1, taken_bytes + len(frame.body)
                if taken >= items // 2 or taken_bytes >= window_bytes // 2:
                    self._send(STREAM_WINDOW, 0, call, "", struct.pack(">II", taken, taken_bytes))
                    taken = taken_bytes = 0
                yield _item(frame, serializer)
        finally:
            if call is not None:
                self._streams.pop(call, None)
                self.cancel(call)

    def cancel(self, call):
        """Tells the provider that nobody waits for this call any more."""
        self._cancelled.add(call)
        self._deadlines.pop(call, None)
        if self.peer is not None and CANCEL in self.peer.get("types", []):
            self._send(CANCEL, 0, call, "", b"")

    def ping(self):
        """Waits for a pong."""
        before, deadline = self.pongs, time.monotonic() + self.timeout
        self._send(HEARTBEAT, PING, NO_CALL, "json", b"")
        while self.pongs == before:
            self._take(deadline)

    def hello(self):
        """The provider's HELLO; waits for it if it has not come yet."""
        deadline = time.monotonic() + self.timeout
        while self.peer is None:
            self._take(deadline)
        return self.peer

    def _needs(self, bits):
        """Status bits above 0x01 are only for a peer that announced them."""
        if bits and self.hello().get("flags", 0) & bits != bits:
            raise RpcError("Unsupported", f"the provider did not announce status bits {bits:#04x}", "no")

    def _send(self, kind, status, call, serializer, body):
        name = serializer.encode()
        head = struct.pack(">HBBBqi", MAGIC, VERSION, kind, status, call, len(name))
        self._socket.sendall(head + name + struct.pack(">i", len(body)) + body)

    def _take(self, deadline):
        """Reads one frame and puts it where it belongs."""
        frame = self._frame(deadline)
        if frame.type == RESPONSE:
            if frame.id in self._cancelled:
                self._cancelled.remove(frame.id)
            else:
                self._answers[frame.id] = frame
        elif frame.type in (STREAM_ITEM, STREAM_END):
            # Of a stream that was given up, items may still be on their way, and its end.
            if frame.id in self._streams:
                self._streams[frame.id].append(frame)
                if frame.type == STREAM_END:
                    del self._streams[frame.id]
            elif frame.type == STREAM_END:
                self._cancelled.discard(frame.id)
        elif frame.type == HEARTBEAT and frame.status == HELLO:
            self.peer = json.loads(frame.body)
        elif frame.type == HEARTBEAT and frame.status == PONG:
            self.pongs += 1
        elif frame.type == GOAWAY:
            self.going_away = True
        else:
            raise ProtocolError(f"a provider does not send {frame}")

    def _frame(self, deadline):
        while True:
            frame, used = parse(self._received)
            if frame is not None:
                del self._received[:used]
                return frame
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            # A timeout here leaves what was received where it is: the next read goes on.
            piece = self._socket.recv(65536)
            if not piece:
                raise ConnectionError("the provider has closed the connection")
            self._received += piece


def parse(data):
    """The frame at the start of `data` and its length, or (None, 0) if it is not all there."""
    if len(data) < 17:
        return None, 0
    magic, version, kind, status, call, name_bytes = struct.unpack_from(">HBBBqi", data)
    if (magic, version) != (MAGIC, VERSION):
        raise ProtocolError(f"magic {magic:#06x}, version {version}")
    if not 0 <= name_bytes <= 32:
        raise ProtocolError(f"a serializer's name of {name_bytes} bytes")
    body_at = 17 + name_bytes + 4
    if len(data) < body_at:
        return None, 0
    (body_bytes,) = struct.unpack_from(">i", data, body_at - 4)
    if not 0 <= body_bytes <= BODY_BYTES_MAX:
        raise ProtocolError(f"a body of {body_bytes} bytes")
    end = body_at + body_bytes
    if len(data) < end:
        return None, 0
    name = bytes(data[17 : 17 + name_bytes]).decode()
    return Frame(kind, status, call, name, bytes(data[body_at:end])), end


def _request(serializer, service, version, group, method, timeout_us, meta, params):
    if serializer == "json":
        envelope = {
            "version": version,
            "clazzName": service.rsplit(".", 1)[-1],
            "methodName": method,
            "parameters": list(params),
            "parameterTypes": [],
            "serviceAttachments": {},
            "clientAttachments": {},
            "group": group,
            "timeoutUs": timeout_us,
        }
        if meta:
            envelope["meta"] = meta
        return json.dumps(envelope).encode()
    head = [service, version, group, method, timeout_us, meta or None]
    # An array of seven, the parameters last: as they are for msgpack, else in a bin.
    return b"\x97" + b"".join(map(packing.pack, head)) + _value(serializer, params)


def _value(serializer, params):
    if serializer == "msgpack":
        return packing.pack(list(params))
    if serializer == "msgpack-named":
        return packing.pack(packing.pack(list(params)))
    if serializer == "raw":
        (only,) = params
        return packing.pack(only.encode() if isinstance(only, str) else bytes(only))
    raise ValueError(f"no serializer {serializer!r} here")


def _answer(frame, client):
    envelope, attachment = frame.body, b""
    if frame.status & ATTACHMENT:
        (length,) = struct.unpack_from(">I", envelope)
        envelope, attachment = envelope[4 : 4 + length], envelope[4 + length :]
    if frame.status & COMPRESSED:
        envelope = _unpacked(envelope, client._offered)
        client.packed_answers += 1
    read = _json_answer if frame.serializer == "json" else _msgpack_answer
    result, meta = read(envelope, frame.serializer)
    return Answer(result, attachment, meta)


def _item(frame, serializer):
    """The value of an item: as it is, without an envelope and without a bin."""
    value = frame.body
    if frame.status & ATTACHMENT:
        (length,) = struct.unpack_from(">I", value)
        value = value[4 : 4 + length]
    if serializer == "json":
        return json.loads(value)
    return value if serializer == "raw" else packing.unpack(value)


def _msgpack_answer(envelope, serializer):
    result, error, meta = packing.unpack(envelope)
    if error is not None:
        code, message, executed, retry_after_ms, details = error
        code, executed = CODES.get(code, "Internal"), EXECUTED.get(executed, "maybe")
        raise RpcError(code, message, executed, retry_after_ms, _inner(serializer, details))
    return _inner(serializer, result), meta or {}


def _inner(serializer, value):
    """A value of the envelope: it stands there as it is for msgpack, else in a bin."""
    return packing.unpack(value) if serializer == "msgpack-named" and value is not None else value


def _json_answer(envelope, _serializer):
    answer = json.loads(envelope)
    error = answer.get("error")
    if error is not None:
        code, executed = CODES.get(error["code"], "Internal"), error["executed"]
        raise RpcError(code, error["message"], executed, error.get("retryAfterMs"), error.get("details"))
    if answer.get("exception") is not None:
        raise RpcError("App", answer["exception"].get("message"), "yes")
    return answer["result"], answer.get("meta") or {}


def _unpacked(envelope, offered):
    name_bytes = envelope[0]
    name = envelope[1 : 1 + name_bytes].decode()
    (plain_bytes,) = struct.unpack_from(">I", envelope, 1 + name_bytes)
    packed = envelope[1 + name_bytes + 4 :]
    if name not in offered or name != "lz4":
        raise ProtocolError(f"packed by {name!r}, which was not offered")
    if plain_bytes > BODY_BYTES_MAX or plain_bytes >= RATIO_MAX * max(1, len(packed)):
        raise ProtocolError(f"{len(packed)} packed bytes that claim to be {plain_bytes}")
    return _lz4(packed, plain_bytes)


def _lz4(packed, plain_bytes):
    """An LZ4 block: sequences of literals, then a match of at least four bytes that were there before."""
    plain, at = bytearray(), 0

    def length(nibble):
        nonlocal at
        total = nibble
        while nibble == 15:
            more = packed[at]
            at += 1
            total += more
            if more != 255:
                break
        return total

    while at < len(packed):
        token = packed[at]
        at += 1
        literals = length(token >> 4)
        plain += packed[at : at + literals]
        at += literals
        if at >= len(packed):
            break
        offset = packed[at] | packed[at + 1] << 8
        at += 2
        match = 4 + length(token & 15)
        if not 0 < offset <= len(plain) or len(plain) + match > plain_bytes:
            raise ProtocolError("a damaged LZ4 block")
        for _ in range(match):
            plain.append(plain[-offset])
    if len(plain) != plain_bytes:
        raise ProtocolError(f"{len(plain)} plain bytes, announced were {plain_bytes}")
    return bytes(plain)
