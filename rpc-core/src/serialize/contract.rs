//! The contract of every serializer, as checks that any can be put through: those of this crate, and yours. A
//! failed check panics with the broken promise. Anything that a peer could have sent is read on a stack of 2
//! MiB, the size of the runtime's threads.
//!
//! ```
//! use rpc_core::serialize::SerializerRef;
//! use rpc_core::serialize::contract::{self, Shapes};
//!
//! contract::check(&SerializerRef::named("msgpack-named").unwrap(), Shapes::Values, 1);
//! ```

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::SerializerRef;
use crate::limits::SERIALIZER_NAME_BYTES_MAX;

/// The values a serializer can express.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shapes {
    /// Every shape that serde's derive makes.
    Values,
    /// One piece of bytes or text, or nothing.
    Bytes,
}

/// The stack of a thread that reads data from a peer.
const STACK_BYTES: usize = 2 * 1024 * 1024;
/// Writing and dropping thousands of levels takes more; that never happens with data from a peer.
const WRITER_STACK_BYTES: usize = 256 * 1024 * 1024;
/// Inputs of the random check.
const ROUNDS: usize = 2_000;

/// Most shapes in one value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    text: String,
    small: u8,
    large: u64,
    low: i64,
    real: f64,
    flag: bool,
    letter: char,
    none: Option<u32>,
    some: Option<String>,
    unit: (),
    pair: (u16, String),
    blob: Bytes,
    kinds: Vec<Kind>,
    map: BTreeMap<String, i32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Kind {
    Unit,
    Newtype(u32),
    Tuple(i8, String),
    Struct { field: bool },
}

/// Any number of levels.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Nest(Vec<Self>);

/// A record of a newer peer.
#[derive(Serialize)]
struct Wide {
    known: u8,
    unknown: Nest,
}

/// The same as known to an older peer.
#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only whether it can be read matters")]
struct Narrow {
    known: u8,
}

/// Runs all checks. The same `seed` repeats a run.
///
/// # Panics
/// A promise is broken; the message names it and the seed.
pub fn check(serializer: &SerializerRef, shapes: Shapes, seed: u64) {
    names_itself(serializer);
    bytes_and_text_come_back(serializer);
    appends_only(serializer);
    survives_arbitrary_bytes(serializer, seed);
    if shapes == Shapes::Values {
        values_come_back(serializer);
        damaged_values_are_refused(serializer);
        deep_values_are_refused(serializer);
    } else {
        other_shapes_are_refused(serializer);
    }
}

/// Its name fits into a frame.
///
/// # Panics
/// It does not.
pub fn names_itself(serializer: &SerializerRef) {
    let name = serializer.name();
    assert!(
        (1..=SERIALIZER_NAME_BYTES_MAX).contains(&name.len()),
        "the name `{name}` has {} bytes; a frame has room for 1 to {SERIALIZER_NAME_BYTES_MAX}",
        name.len()
    );
}

/// Bytes, text and nothing survive a round trip, alone and as the parameters of a method.
///
/// # Panics
/// One did not.
pub fn bytes_and_text_come_back(serializer: &SerializerRef) {
    for bytes in [vec![], vec![0], vec![0xff; 40], vec![0x91; 70_000]] {
        comes_back(serializer, &Bytes::from(bytes.clone()));
        comes_back(serializer, &(Bytes::from(bytes),));
    }
    for text in ["", "ann", "\0\"\\\u{1F980}", &"é".repeat(40_000)] {
        comes_back(serializer, &text.to_owned());
        comes_back(serializer, &(text.to_owned(),));
    }
    comes_back(serializer, &());
    // A method without parameters.
    comes_back(serializer, &[(); 0]);
}

/// The previous content of the buffer is left unchanged.
///
/// # Panics
/// It was changed.
pub fn appends_only(serializer: &SerializerRef) {
    let mut out = BytesMut::from(&b"before"[..]);
    let encoded = serializer.encode("text", &mut out);
    assert!(encoded.is_ok(), "cannot express a text: {encoded:?}");
    assert!(
        out.starts_with(b"before"),
        "the previous content of the buffer was changed"
    );
    assert_eq!(
        out[6..],
        encode(serializer, "text"),
        "depends on the previous content"
    );
}

/// Every shape survives a round trip: numbers at their limits, empty and long lists, enums of all kinds.
///
/// # Panics
/// One did not.
pub fn values_come_back(serializer: &SerializerRef) {
    comes_back(serializer, &record());
    comes_back(serializer, &vec![record(); 20]);
    comes_back(serializer, &(i8::MIN, i16::MIN, i32::MIN, i64::MIN, i64::MAX));
    comes_back(serializer, &(u8::MAX, u16::MAX, u32::MAX, u64::MAX));
    comes_back(
        serializer,
        &(f64::MIN, f64::MAX, f64::MIN_POSITIVE, -0.0_f64, 0.1_f32),
    );
    comes_back(serializer, &vec![Some(1_u8), None, Some(255)]);
    comes_back(serializer, &(0..70_000_u32).collect::<Vec<_>>());
    comes_back(serializer, &Vec::<String>::new());
    comes_back(serializer, &BTreeMap::<String, Record>::new());
    comes_back(serializer, &nest(32));
    // NaN stays NaN, or is an error, but never becomes a number.
    let mut out = BytesMut::new();
    if serializer.encode(&f64::NAN, &mut out).is_ok()
        && let Ok(number) = serializer.decode::<f64>(&out)
    {
        assert!(number.is_nan(), "not a number came back as {number}");
    }
}

/// A value that is cut off anywhere, or followed by anything, is refused, and so is a value of another type.
///
/// # Panics
/// It was accepted.
pub fn damaged_values_are_refused(serializer: &SerializerRef) {
    let whole = encode(serializer, &record());
    for end in 0..whole.len() {
        let cut = serializer.decode::<Record>(&whole[..end]);
        assert!(cut.is_err(), "{end} of {} bytes were read: {cut:?}", whole.len());
    }
    for more in [&whole[..], &[0], &[0xc0], b"1", b"null", b"}"] {
        let longer = serializer.decode::<Record>(&[&whole[..], more].concat());
        assert!(
            longer.is_err(),
            "{} bytes after the value were ignored",
            more.len()
        );
    }
    let number = serializer.decode::<u64>(&encode(serializer, "7"));
    assert!(number.is_err(), "a text was read as the number {number:?}");
    let small = serializer.decode::<u8>(&encode(serializer, &256_u16));
    assert!(small.is_err(), "256 was read as the byte {small:?}");
    let sign = serializer.decode::<u64>(&encode(serializer, &-1_i64));
    assert!(sign.is_err(), "-1 was read as {sign:?}");
}

/// Values nested thousands of levels deep are refused without a stack overflow, even within a field that the
/// reader does not know.
///
/// # Panics
/// It was accepted. (A stack overflow ends the process.)
pub fn deep_values_are_refused(serializer: &SerializerRef) {
    for levels in [200, 1_000, 10_000] {
        let writer = serializer.clone();
        let (deep, wide) = on_stack(WRITER_STACK_BYTES, move || {
            let unknown = nest(levels);
            let deep = encode(&writer, &unknown);
            (deep, encode(&writer, &Wide { known: 1, unknown }))
        });
        let reader = serializer.clone();
        on_stack(STACK_BYTES, move || {
            assert!(reader.decode::<Nest>(&deep).is_err(), "{levels} levels were read");
            let narrow = reader.decode::<Narrow>(&wide);
            assert!(
                narrow.is_err(),
                "{levels} levels of an unknown field were passed over: {narrow:?}"
            );
        });
    }
}

/// For arbitrary bytes the result is a value or an error.
///
/// # Panics
/// The serializer panicked.
pub fn survives_arbitrary_bytes(serializer: &SerializerRef, seed: u64) {
    let serializer = serializer.clone();
    on_stack(STACK_BYTES, move || {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut whole = BytesMut::new();
        if serializer.encode(&record(), &mut whole).is_err() {
            whole = BytesMut::from(&b"text"[..]);
        }
        for _ in 0..ROUNDS {
            let mut bytes = whole.to_vec();
            if random.bool() {
                bytes.truncate(random.usize(..200));
                random.fill(&mut bytes);
            }
            // 0xff bytes make lengths large; one wrong byte changes the meaning of the rest.
            for _ in 0..random.usize(..4) {
                let at = random.usize(..=bytes.len());
                let end = bytes.len().min(at + random.usize(1..=8));
                let with = if random.bool() { 0xff } else { random.u8(..) };
                bytes[at..end].fill(with);
            }
            drop(serializer.decode::<Record>(&bytes));
            drop(serializer.decode::<Vec<Record>>(&bytes));
            drop(serializer.decode::<BTreeMap<String, Kind>>(&bytes));
            drop(serializer.decode::<Nest>(&bytes));
            drop(serializer.decode::<(Bytes,)>(&bytes));
            drop(serializer.decode::<String>(&bytes));
        }
    });
}

/// Values other than bytes, text or nothing are refused with a message, on both sides.
///
/// # Panics
/// One was accepted.
pub fn other_shapes_are_refused(serializer: &SerializerRef) {
    let mut out = BytesMut::new();
    let outcomes = [
        serializer.encode(&7, &mut out),
        serializer.encode(&Some("text"), &mut out),
        serializer.encode(&("two", "texts"), &mut out),
        serializer.encode(&vec![1_u8, 2], &mut out),
        serializer.encode(&record(), &mut out),
        serializer.encode(&Kind::Unit, &mut out),
        serializer.encode(&BTreeMap::from([("key", "value")]), &mut out),
        serializer.decode::<u64>(b"\x07").map(drop),
        serializer.decode::<Option<String>>(b"text").map(drop),
        serializer.decode::<(String, String)>(b"text").map(drop),
        serializer.decode::<Vec<u8>>(b"text").map(drop),
        serializer.decode::<Record>(b"text").map(drop),
        serializer.decode::<Kind>(b"Unit").map(drop),
        serializer.decode::<BTreeMap<String, String>>(b"text").map(drop),
        serializer.decode::<()>(b"text"),
        serializer.decode::<[(); 0]>(b"text").map(drop),
        serializer.decode::<String>(b"\xff").map(drop),
    ];
    for (index, outcome) in outcomes.into_iter().enumerate() {
        assert!(outcome.is_err(), "shape {index} was accepted");
    }
}

fn record() -> Record {
    Record {
        text: "\u{1F980} \"quoted\"\n".to_owned(),
        small: 200,
        large: u64::MAX,
        low: i64::MIN,
        real: -1.5e300,
        flag: true,
        letter: 'é',
        none: None,
        some: Some(String::new()),
        unit: (),
        pair: (65_535, "x".repeat(300)),
        blob: Bytes::from_static(&[0, 0x7f, 0x80, 0xff]),
        kinds: vec![
            Kind::Unit,
            Kind::Newtype(7),
            Kind::Tuple(-7, "t".to_owned()),
            Kind::Struct { field: true },
        ],
        map: BTreeMap::from([(String::new(), -1), ("key".to_owned(), i32::MAX)]),
    }
}

fn nest(levels: usize) -> Nest {
    (1..levels).fold(Nest(Vec::new()), |inner, _| Nest(vec![inner]))
}

fn encode<T: Serialize + ?Sized>(serializer: &SerializerRef, value: &T) -> BytesMut {
    let mut out = BytesMut::new();
    if let Err(error) = serializer.encode(value, &mut out) {
        panic!("{} cannot be expressed: {error}", std::any::type_name::<T>());
    }
    out
}

fn comes_back<T>(serializer: &SerializerRef, value: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let bytes = encode(serializer, value);
    match serializer.decode::<T>(&bytes) {
        Ok(back) => assert!(back == *value, "{value:?} came back as {back:?}"),
        Err(error) => panic!("{value:?} was written and cannot be read: {error}"),
    }
}

/// Runs `run` on a stack of its own and returns the result.
fn on_stack<T: Send + 'static>(bytes: usize, run: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().stack_size(bytes).spawn(run);
    let thread = thread.expect("a thread for a check");
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
