//! Envelopes against golden files, Java's texts, arbitrary bytes and their own reflections.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::message::{Attachment, Outcome, Route};
use crate::serialize::{SerializeError, Serializer, Visit};
use crate::testing::{COUNT, GREET, golden, request};

/// A serializer that is neither of the built-in ones.
#[derive(Debug)]
struct Foreign;

impl Serializer for Foreign {
    fn name(&self) -> &str {
        "foreign"
    }

    fn serialize(&self, _: &dyn erased_serde::Serialize, _: &mut BytesMut) -> Result<(), SerializeError> {
        Err(SerializeError::new("foreign", "not here"))
    }

    fn deserialize(&self, _: &[u8], _: &mut Visit<'_>) -> Result<(), SerializeError> {
        Err(SerializeError::new("foreign", "not here"))
    }
}

fn foreign() -> SerializerRef {
    SerializerRef::Named(Arc::new(Foreign))
}

fn encoded(request: &Request, time_left_us: u64) -> Bytes {
    let mut out = BytesMut::new();
    encode_request(request, Duration::from_micros(time_left_us), &mut out).unwrap();
    out.freeze()
}

fn answered(serializer: &SerializerRef, answer: &Result<Response, RpcError>) -> Bytes {
    let mut out = BytesMut::new();
    encode_response(serializer, Some(&GREET), answer, &mut out).unwrap();
    out.freeze()
}

fn with_meta(mut request: Request) -> Request {
    request.meta.0.push(("tenant".to_owned(), "a\"b".to_owned()));
    request.meta.0.push(("trace".to_owned(), "é".to_owned()));
    request
}

fn json_request() -> Request {
    let mut request = request();
    request.serializer = SerializerRef::Json;
    request.params = Bytes::from_static(br#"["ann",7]"#);
    request
}

fn ok(result: &'static [u8]) -> Result<Response, RpcError> {
    let mut response = Response::empty();
    response.outcome = Outcome::Ok(Bytes::from_static(result));
    Ok(response)
}

fn app(details: &'static [u8]) -> Result<Response, RpcError> {
    let mut response = Response::empty();
    let details = Bytes::from_static(details);
    let message = "too rude".to_owned();
    response.outcome = Outcome::App { details, message };
    Ok(response)
}

fn overloaded() -> Result<Response, RpcError> {
    let mut error = RpcError::new(Code::Overloaded, Executed::No, "4096 requests in flight");
    error.retry_after = Some(Duration::from_millis(250));
    Err(error)
}

#[test]
fn requests_are_as_pinned_and_read_back() {
    let mut named = with_meta(request());
    named.serializer = foreign();
    let cases = [
        ("envelope/request.msgpack.hex", request()),
        ("envelope/request-meta.msgpack.hex", with_meta(request())),
        ("envelope/request-bin.msgpack.hex", named),
        ("envelope/request.json", json_request()),
        ("envelope/request-meta.json", with_meta(json_request())),
    ];
    for (name, request) in cases {
        let envelope = encoded(&request, 1_500_000);
        golden(name, &envelope);
        let incoming = decode_request(request.serializer.name(), &envelope).unwrap();
        let service = if name.ends_with("json") {
            "Greeter"
        } else {
            "hc.Greeter"
        };
        assert_eq!((&*incoming.service, &*incoming.method), (service, "greet"));
        assert_eq!((&*incoming.version, &*incoming.group), ("1.0", "default"));
        assert_eq!(incoming.timeout, Some(Duration::from_micros(1_500_000)));
        assert_eq!(incoming.meta, request.meta);
        assert_eq!(incoming.params, request.params);
        let (start, end) = (
            envelope.as_ptr() as usize,
            envelope.as_ptr() as usize + envelope.len(),
        );
        assert!(
            (start..end).contains(&(incoming.params.as_ptr() as usize)),
            "{name}: the parameters were copied"
        );
    }
}

#[test]
fn answers_are_as_pinned_and_read_back() {
    let msgpack = SerializerRef::Msgpack;
    let json = SerializerRef::Json;
    let cases = [
        ("envelope/response.msgpack.hex", &msgpack, ok(b"\xa5hello")),
        (
            "envelope/response-app.msgpack.hex",
            &msgpack,
            app(b"\x81\xa4Rude\x91\xa3oaf"),
        ),
        ("envelope/response-error.msgpack.hex", &msgpack, overloaded()),
        ("envelope/response-bin.msgpack.hex", &foreign(), ok(b"hello")),
        ("envelope/response-app-bin.msgpack.hex", &foreign(), app(b"oaf")),
        ("envelope/response.json", &json, ok(br#""hello""#)),
        (
            "envelope/response-app.json",
            &json,
            app(br#"{"Rude":{"word":"oaf"}}"#),
        ),
        ("envelope/response-error.json", &json, overloaded()),
    ];
    for (name, serializer, answer) in cases {
        let envelope = answered(serializer, &answer);
        golden(name, &envelope);
        assert_eq!(decode_response(serializer, &envelope), answer, "{name}");
    }
}

#[test]
fn java_request_is_read() {
    let text = br#"{"version":"1.0","clazzName":"Greeter","methodName":"greet","parameters":["ann"],
        "parameterTypes":["java.lang.String"],"serviceAttachments":{"a":{"b":[1]}},"clientAttachments":null}"#;
    let envelope = Bytes::from_static(text);
    let incoming = decode_request("json", &envelope).unwrap();
    assert_eq!(
        (&*incoming.service, &*incoming.group, incoming.timeout),
        ("Greeter", "default", None)
    );
    assert_eq!(incoming.params, r#"["ann"]"#);
    let text = br#"{"clazzName":"Greeter","methodName":"count","parameters":null,"version":null}"#;
    let envelope = Bytes::from_static(text);
    let incoming = decode_request("json", &envelope).unwrap();
    assert_eq!((&*incoming.version, &incoming.params[..]), ("1.0", &b"[]"[..]));
}

/// A file of `tests/golden/java`.
fn java(name: &str) -> Bytes {
    let path = format!("{}/tests/golden/java/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{path}: {error}"))
        .into()
}

#[test]
fn what_java_writes_is_read_as_pinned() {
    let plain = java("request.json");
    let plain = decode_request("json", &plain).unwrap();
    // The same that is written here for Java, but for the fields that only we have.
    let ours = encoded(&json_request(), 1_500_000);
    let ours = decode_request("json", &ours).unwrap();
    assert_eq!(plain.timeout, None);
    assert_eq!(
        IncomingRequest {
            timeout: ours.timeout,
            ..plain
        },
        ours
    );
    let beans = java("request-beans.json");
    let beans = decode_request("json", &beans).unwrap();
    assert_eq!(
        (&*beans.service, &*beans.version, &*beans.group),
        ("OrderService", "2.1", "default")
    );
    let values: serde_json::Value = SerializerRef::Json.decode(&beans.params).unwrap();
    assert_eq!(values[0]["lines"][0]["cents"], 1250);
    let none = java("request-no-parameters.json");
    assert_eq!(decode_request("json", &none).unwrap().params, "[]");

    let json = SerializerRef::Json;
    assert_eq!(decode_response(&json, &java("response.json")), ok(br#""hello""#));
    assert_eq!(decode_response(&json, &java("response-void.json")), ok(b"null"));
    let thrown = decode_response(&json, &java("response-exception.json")).unwrap_err();
    assert_eq!((thrown.code, thrown.executed), (Code::App, Executed::Yes));
    assert!(thrown.message.ends_with("no money"), "{thrown}");
}

/// hc-rpc's decoder fails on a null where it wants an array or a class, and on an exception that is no bean.
#[test]
fn what_java_reads_is_never_null_where_it_must_not_be() {
    let mut nothing = json_request();
    nothing.method = (&COUNT).into();
    nothing.params = Bytes::from_static(b"[]");
    for request in [json_request(), with_meta(json_request()), nothing] {
        let text: serde_json::Value = serde_json::from_slice(&encoded(&request, 1)).unwrap();
        assert!(
            text["parameters"].is_array() && text["parameterTypes"].is_array(),
            "{text}"
        );
        assert!(
            text["version"].is_string() && !text["clazzName"].as_str().unwrap().contains('.'),
            "{text}"
        );
    }
    for answer in [
        ok(b"null"),
        ok(br#""hello""#),
        app(br#"{"Rude":1}"#),
        overloaded(),
    ] {
        let text: serde_json::Value =
            serde_json::from_slice(&answered(&SerializerRef::Json, &answer)).unwrap();
        assert!(text["resultClazz"].is_string(), "{text}");
        let failed = !matches!(
            &answer,
            Ok(Response {
                outcome: Outcome::Ok(_),
                ..
            })
        );
        assert_eq!(text["exception"].is_object(), failed, "{text}");
        if failed {
            let exception = &text["exception"];
            assert!(
                exception["message"].is_string() && exception["stackTrace"].is_array(),
                "{text}"
            );
        }
    }
}

#[test]
fn java_answer_is_read() {
    let result = Bytes::from_static(
        br#"{"result":"hello","resultClazz":"java.lang.String","msg":"ok","exception":null}"#,
    );
    assert_eq!(decode_response(&SerializerRef::Json, &result), ok(br#""hello""#));
    let void = Bytes::from_static(br#"{"result":null,"resultClazz":null}"#);
    assert_eq!(decode_response(&SerializerRef::Json, &void), ok(b"null"));
    let thrown = Bytes::from_static(
        br#"{"result":null,"exception":{"message":null,"cause":{"message":"no money","cause":null,"stackTrace":[{"lineNumber":3}]},
            "stackTrace":[],"localizedMessage":null,"suppressed":[]}}"#,
    );
    let error = decode_response(&SerializerRef::Json, &thrown).unwrap_err();
    assert_eq!((error.code, error.executed), (Code::App, Executed::Yes));
    assert!(error.message.contains("no money"), "{error}");
}

#[test]
fn answer_to_an_unknown_method_names_a_class_that_java_can_load() {
    for answer in [ok(b""), ok(b"null"), overloaded()] {
        let mut out = BytesMut::new();
        encode_response(&SerializerRef::Json, None, &answer, &mut out).unwrap();
        let text: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(text["resultClazz"], "java.lang.Object");
        assert_eq!(text["exception"].is_null(), answer.is_ok());
    }
}

#[test]
fn too_much_metadata_is_refused_on_both_sides() {
    let mut crowded = request();
    crowded.meta = Meta(
        (0..=META_PAIRS_MAX)
            .map(|n| (n.to_string(), String::new()))
            .collect(),
    );
    let error = encode_request(&crowded, Duration::from_secs(1), &mut BytesMut::new()).unwrap_err();
    assert_eq!((error.code, error.executed), (Code::TooLarge, Executed::No));
    // A map that claims 4 G pairs.
    let lie = Bytes::from_static(b"\x97\xa1s\xa1v\xa1g\xa1m\x01\xdf\xff\xff\xff\xff\x90");
    let error = decode_request("msgpack", &lie).unwrap_err();
    assert!(error.message.contains("4294967295 pairs"), "{error}");
    let pairs: Vec<String> = (0..=META_PAIRS_MAX).map(|n| format!("\"{n}\":\"\"")).collect();
    let text = format!(
        r#"{{"clazzName":"G","methodName":"m","meta":{{{}}}}}"#,
        pairs.join(",")
    );
    let error = decode_request("json", &Bytes::from(text)).unwrap_err();
    assert!(error.message.contains("metadata"), "{error}");
}

#[test]
fn deep_nesting_is_refused_before_any_decoder() {
    let deep = [vec![0x91; 100_000], vec![0xc0]].concat();
    let error = SerializerRef::Msgpack
        .decode::<serde_json::Value>(&deep)
        .unwrap_err();
    assert!(error.to_string().contains("64 levels"), "{error}");
    let deep = "[".repeat(100_000);
    let error = SerializerRef::Json
        .decode::<serde_json::Value>(deep.as_bytes())
        .unwrap_err();
    assert!(error.to_string().contains("64 levels"), "{error}");
    let envelope = [&[0x93][..], &[0x91; 100_000][..]].concat();
    let error = decode_response(&SerializerRef::Msgpack, &Bytes::from(envelope)).unwrap_err();
    assert_eq!(error.code, Code::BadReply);
}

#[test]
fn unknown_codes_and_executed_values_are_the_careful_ones() {
    let envelope = Bytes::from_static(b"\x93\xc0\x95\xcc\xc8\xa1x\x09\xc0\xc0\xc0");
    let error = decode_response(&SerializerRef::Msgpack, &envelope).unwrap_err();
    assert_eq!((error.code, error.executed), (Code::Internal, Executed::Maybe));
}

fn any_request() -> impl Strategy<Value = (Request, u64)> {
    let texts = (".{0,40}", ".{0,300}", ".{0,10}");
    let meta = prop::collection::vec((".{0,20}", ".{0,40}"), 0..20);
    let values = any::<(String, Vec<u32>)>();
    (texts, meta, values, any::<u64>(), 0..3_u8).prop_map(|(texts, meta, values, time_left, serializer)| {
        let mut request = request();
        let (service, version, group) = texts;
        request.route = Arc::new(Route {
            service,
            version,
            group,
        });
        request.meta = Meta(meta);
        request.serializer = match serializer {
            0 => SerializerRef::Msgpack,
            1 => SerializerRef::Json,
            _ => foreign(),
        };
        request.method = (&COUNT).into();
        request.params = match serializer {
            1 => serde_json::to_vec(&values).unwrap().into(),
            _ => rmp_serde::to_vec(&values).unwrap().into(),
        };
        (request, time_left)
    })
}

fn any_answer() -> impl Strategy<Value = (SerializerRef, Result<Response, RpcError>)> {
    (
        any::<(String, Vec<i64>)>(),
        ".{0,60}",
        0..3_u8,
        0..4_u8,
        1..=14_u8,
        any::<Option<u32>>(),
    )
        .prop_map(|(value, message, serializer, kind, code, retry_after)| {
            let (serializer, value): (_, Bytes) = match serializer {
                0 => (SerializerRef::Msgpack, rmp_serde::to_vec(&value).unwrap().into()),
                1 => (SerializerRef::Json, serde_json::to_vec(&value).unwrap().into()),
                _ => (foreign(), value.0.into_bytes().into()),
            };
            let outcome = match kind {
                0 => Outcome::Ok(value),
                1 => Outcome::App {
                    details: value,
                    message,
                },
                _ => {
                    let executed = if kind == 2 { Executed::No } else { Executed::Maybe };
                    let mut error = RpcError::new(Code::from_number(code.max(2)), executed, message);
                    error.retry_after = retry_after.map(|ms| Duration::from_millis(u64::from(ms)));
                    return (serializer, Err(error));
                }
            };
            let meta = Meta(vec![("k".to_owned(), "v".to_owned())]);
            let attachment = Attachment::new();
            (
                serializer,
                Ok(Response {
                    outcome,
                    attachment,
                    meta,
                }),
            )
        })
}

#[test]
fn large_values_apart_make_the_same_envelope() {
    for serializer in [SerializerRef::Msgpack, SerializerRef::Json, foreign()] {
        for bytes in [APART_BYTES_MIN - 1, APART_BYTES_MIN, 70_000] {
            let mut large = request();
            large.serializer = serializer.clone();
            // Digits are one value of `json` too.
            large.params = Bytes::from(vec![b'7'; bytes]);
            let mut response = Response::empty();
            response.outcome = Outcome::Ok(large.params.clone());
            let answer = Ok(response);
            let apart = |begin: &dyn Fn(&mut BytesMut) -> Option<Vec<Bytes>>| {
                let mut out = BytesMut::new();
                let rest = begin(&mut out);
                rest.iter()
                    .flatten()
                    .for_each(|piece| out.extend_from_slice(piece));
                (rest.is_some(), out.freeze())
            };
            let wanted = !matches!(serializer, SerializerRef::Json) && bytes >= APART_BYTES_MIN;
            let pieces = |rest: Option<Apart<'_>>| {
                rest.map(|rest| {
                    assert_eq!(rest.len(), rest.pieces().iter().map(Bytes::len).sum::<usize>());
                    rest.pieces().to_vec()
                })
            };
            let sent = apart(&|out| pieces(begin_request(&large, Duration::from_micros(5), out).unwrap()));
            assert_eq!(sent, (wanted, encoded(&large, 5)));
            let sent = apart(&|out| pieces(begin_response(&serializer, Some(&GREET), &answer, out).unwrap()));
            assert_eq!(sent, (wanted, answered(&serializer, &answer)));
        }
    }
}

proptest! {
    #[test]
    fn requests_come_back((request, time_left) in any_request()) {
        let envelope = encoded(&request, time_left);
        let incoming = decode_request(request.serializer.name(), &envelope).unwrap();
        let service = match request.serializer {
            SerializerRef::Json => request.route.simple_name(),
            _ => &request.route.service,
        };
        prop_assert_eq!(&*incoming.service, service);
        prop_assert_eq!(&*incoming.version, &request.route.version);
        prop_assert_eq!(&*incoming.group, &request.route.group);
        prop_assert_eq!(&*incoming.method, "count");
        prop_assert_eq!(incoming.timeout, Some(Duration::from_micros(time_left)));
        prop_assert_eq!(&incoming.meta, &request.meta);
        prop_assert_eq!(&incoming.params, &request.params);
    }

    #[test]
    fn answers_come_back((serializer, answer) in any_answer()) {
        let envelope = answered(&serializer, &answer);
        prop_assert_eq!(decode_response(&serializer, &envelope), answer);
    }

    #[test]
    fn cut_envelopes_are_refused((serializer, answer) in any_answer(), at in any::<prop::sample::Index>()) {
        let envelope = answered(&serializer, &answer);
        let cut = envelope.slice(..at.index(envelope.len()));
        let error = decode_response(&serializer, &cut).unwrap_err();
        prop_assert_eq!(error.code, Code::BadReply);
    }

    #[test]
    fn damaged_requests_are_answered((request, _) in any_request(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut envelope = encoded(&request, 1).to_vec();
        let at = at.index(envelope.len());
        envelope[at] = byte;
        drop(decode_request(request.serializer.name(), &Bytes::from(envelope)).map(|incoming| incoming.params));
    }

    #[test]
    fn damaged_answers_are_read_or_refused(
        (serializer, answer) in any_answer(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut envelope = answered(&serializer, &answer).to_vec();
        for (at, byte) in changes {
            let at = at.index(envelope.len());
            envelope[at] = byte;
        }
        drop(decode_response(&serializer, &Bytes::from(envelope)));
    }

    #[test]
    fn arbitrary_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300), header: bool) {
        let mut bytes = bytes;
        if header {
            bytes.splice(0..0, [0x97, 0xa1]);
        }
        let bytes = Bytes::from(bytes);
        for serializer in [SerializerRef::Msgpack, SerializerRef::Json, foreign()] {
            if let Err(error) = decode_request(serializer.name(), &bytes) {
                prop_assert_eq!((error.code, error.executed), (Code::BadRequest, Executed::No));
            }
            drop(decode_response(&serializer, &bytes));
            drop(serializer.decode::<serde_json::Value>(&bytes));
            drop(serializer.decode::<(String, u64)>(&bytes));
        }
    }
}
