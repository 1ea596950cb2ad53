//! Values shared by several unit tests.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::message::{Attachment, Meta, Method, MethodRef, Request, Route};
use crate::plugin::PluginError;
use crate::serialize::SerializerRef;

/// A method as the macro describes it.
pub(crate) static GREET: Method = Method {
    name: Cow::Borrowed("greet"),
    idempotent: false,
    blocking: false,
    in_flight_max: None,
    long_poll: false,
    streaming: false,
    parameter_types: Cow::Borrowed(&[Cow::Borrowed("java.lang.String"), Cow::Borrowed("int")]),
    result_type: Cow::Borrowed("java.lang.String"),
};

/// An idempotent method.
pub(crate) static COUNT: Method = Method {
    name: Cow::Borrowed("count"),
    idempotent: true,
    blocking: false,
    in_flight_max: None,
    long_poll: false,
    streaming: false,
    parameter_types: Cow::Borrowed(&[]),
    result_type: Cow::Borrowed("java.lang.Long"),
};

/// A request of `greet` with the parameters `("ann", 7)`, in msgpack.
pub(crate) fn request() -> Request {
    Request {
        route: Arc::new(Route::new("hc.Greeter")),
        method: MethodRef::Known(&GREET),
        serializer: SerializerRef::Msgpack,
        params: Bytes::from_static(b"\x92\xa3ann\x07"),
        attachment: Attachment::new(),
        meta: Meta::default(),
        started: now(),
        deadline: now() + Duration::from_secs(1),
        oneway: false,
        hash_key: None,
        items: None,
        peer: None,
        cancelled: None,
    }
}

fn now() -> Instant {
    crate::call::now()
}

/// Asserts that a plug-in is built from the text `good`, and that each of the texts in `bad` is refused with
/// these words.
#[track_caller]
pub(crate) fn settings_are_checked_by<T: ?Sized>(
    build: fn(&str) -> Result<Arc<T>, PluginError>,
    good: &str,
    bad: &[(&str, &str)],
) {
    assert!(build(good).is_ok(), "{good}");
    for (text, expected) in bad {
        let error = build(text).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

/// Compares `bytes` with a golden file in `tests/golden`: text files as they are, `.hex` files as hex digits.
/// A golden file is written once, by running the test with `GOLDEN=write`, and never edited after a release.
pub(crate) fn golden(name: &str, bytes: &[u8]) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let text = match name.ends_with(".hex") {
        false => String::from_utf8(bytes.to_vec()).unwrap() + "\n",
        true => bytes.chunks(16).fold(String::new(), |mut text, row| {
            let digits: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            text += &digits.join(" ");
            text.push('\n');
            text
        }),
    };
    if !path.exists() && std::env::var("GOLDEN").as_deref() == Ok("write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; a new one is written with GOLDEN=write",
            path.display()
        )
    });
    assert_eq!(text, known, "the encoding differs from {}", path.display());
}
