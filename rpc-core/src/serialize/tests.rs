//! The built-in serializers against the contract, and their treatment of unusual values, including where two
//! of them differ.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::contract::{self, Shapes};
use super::*;

fn named(name: &str) -> SerializerRef {
    SerializerRef::named(name).unwrap()
}

fn encoded<T: Serialize>(name: &str, value: &T) -> BytesMut {
    let mut out = BytesMut::new();
    named(name).encode(value, &mut out).unwrap();
    out
}

#[test]
fn msgpack_keeps_the_contract() {
    contract::check(&named("msgpack"), Shapes::Values, 1);
}

#[test]
fn msgpack_named_keeps_the_contract() {
    contract::check(&named("msgpack-named"), Shapes::Values, 2);
}

#[test]
fn json_keeps_the_contract() {
    contract::check(&named("json"), Shapes::Values, 3);
}

#[test]
fn raw_keeps_the_contract() {
    contract::check(&named("raw"), Shapes::Bytes, 4);
}

/// The statically matched serializers behave the same as objects.
#[test]
fn objects_of_the_static_serializers_keep_the_contract() {
    for name in ["msgpack", "json"] {
        let object = SerializerPlugin::build(name, &Settings::new()).unwrap();
        contract::check(&SerializerRef::Named(object), Shapes::Values, 5);
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Old {
    name: String,
    age: u8,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct New {
    #[serde(default)]
    mail: Option<String>,
    age: u8,
    name: String,
}

fn old() -> Old {
    let name = "ann".to_owned();
    Old { name, age: 7 }
}

#[test]
fn named_fields_may_be_added_and_moved() {
    let new = New {
        mail: Some("a@b".to_owned()),
        age: 7,
        name: "ann".to_owned(),
    };
    for name in ["msgpack-named", "json"] {
        assert_eq!(named(name).decode::<Old>(&encoded(name, &new)).unwrap(), old());
        let read: New = named(name).decode(&encoded(name, &old())).unwrap();
        assert_eq!((read.mail, read.age, &*read.name), (None, 7, "ann"));
    }
    // Without names the order matters, and a wrong one is an error.
    assert!(named("msgpack").decode::<Old>(&encoded("msgpack", &new)).is_err());
}

#[test]
fn the_same_value_has_these_forms() {
    assert_eq!(encoded("msgpack", &old()), &b"\x92\xa3ann\x07"[..]);
    assert_eq!(
        encoded("msgpack-named", &old()),
        &b"\x82\xa4name\xa3ann\xa3age\x07"[..]
    );
    assert_eq!(encoded("json", &old()), &br#"{"name":"ann","age":7}"#[..]);
    assert_eq!(encoded("raw", &(Bytes::from_static(b"ann"),)), &b"ann"[..]);
}

#[test]
fn values_have_the_forms_that_the_page_of_the_wire_says() {
    #[derive(Serialize)]
    enum Kind {
        Unit,
        One(u8),
        Two(u8, u8),
        Named { a: u8 },
    }
    let kinds = [Kind::Unit, Kind::One(1), Kind::Two(1, 2), Kind::Named { a: 1 }];
    let unnamed = b"\x94\xa4Unit\x81\xa3One\x01\x81\xa3Two\x92\x01\x02\x81\xa5Named\x91\x01";
    assert_eq!(encoded("msgpack", &kinds), &unnamed[..]);
    let map = b"\x94\xa4Unit\x81\xa3One\x01\x81\xa3Two\x92\x01\x02\x81\xa5Named\x81\xa1a\x01";
    assert_eq!(encoded("msgpack-named", &kinds), &map[..]);
    let json = r#"["Unit",{"One":1},{"Two":[1,2]},{"Named":{"a":1}}]"#;
    assert_eq!(encoded("json", &kinds), json);
    let rest = (
        (),
        None::<u8>,
        Some(7),
        'x',
        Bytes::from_static(&[0, 255]),
        BTreeMap::from([(7, true)]),
    );
    for name in ["msgpack", "msgpack-named"] {
        assert_eq!(
            encoded(name, &rest),
            &b"\x96\xc0\xc0\x07\xa1x\xc4\x02\x00\xff\x81\x07\xc3"[..]
        );
        assert_eq!(
            named(name).decode::<u64>(b"\xd2\x00\x00\x00\x07").unwrap(),
            7,
            "any form is read"
        );
    }
    assert_eq!(encoded("json", &rest), r#"[null,null,7,"x",[0,255],{"7":true}]"#);
}

#[test]
fn p19_depth_bomb_is_refused_by_every_serializer() {
    let bombs = [
        ("msgpack", [vec![0x91; 1_000_000], vec![0xc0]].concat()),
        ("msgpack", [0x81_u8, 0xa1, b'k'].repeat(300_000)),
        ("msgpack-named", [0x81_u8, 0xa1, b'k'].repeat(300_000)),
        (
            "msgpack-named",
            [[0xdd, 0, 0, 0, 1].repeat(65), vec![0xc0]].concat(),
        ),
        ("json", b"[".repeat(1_000_000)),
        ("json", br#"{"k":"#.repeat(300_000)),
        ("json", [b"[".repeat(65), b"]".repeat(65)].concat()),
    ];
    for (name, bomb) in bombs {
        // The thread's stack is 2 MiB, in debug builds too.
        let error = named(name).decode::<serde_json::Value>(&bomb).unwrap_err();
        assert!(error.reason.contains("64 levels"), "{name}: {error}");
        let error = named(name).decode::<serde::de::IgnoredAny>(&bomb).unwrap_err();
        assert!(error.reason.contains("64 levels"), "{name}: {error}");
    }
}

#[test]
fn p20_element_count_bomb_is_refused_before_memory_is_taken() {
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its size matters")]
    struct Large([[u64; 32]; 32]);
    let claims: [&[u8]; 6] = [
        b"\xdd\xff\xff\xff\xff\xc0",
        b"\xdf\xff\xff\xff\xff\xc0\xc0",
        b"\xdb\xff\xff\xff\xffx",
        b"\xc6\xff\xff\xff\xffx",
        b"\xc9\xff\xff\xff\xff\x01x",
        b"\xdc\xff\xff\xc0",
    ];
    for name in ["msgpack", "msgpack-named"] {
        for claim in claims {
            let error = named(name).decode::<Vec<Large>>(claim).unwrap_err();
            assert!(error.reason.contains("end within a value"), "{name}: {error}");
            assert!(named(name).decode::<Bytes>(claim).is_err());
            assert!(named(name).decode::<String>(claim).is_err());
            assert!(named(name).decode::<BTreeMap<u8, Large>>(claim).is_err());
        }
        // As many elements as announced, each of one byte where 8 KiB are expected: the list grows with what
        // was read.
        let short = [&b"\xdd\x00\x10\x00\x00"[..], &vec![0xc0; 1 << 20]].concat();
        assert!(named(name).decode::<Vec<Large>>(&short).is_err());
    }
}

#[test]
fn p21_odd_values_get_these_answers() {
    // A repeated field is an error; of a repeated map key the last value counts.
    assert!(
        named("msgpack-named")
            .decode::<Old>(b"\x83\xa3age\x01\xa3age\x02\xa4name\xa1x")
            .is_err()
    );
    assert!(
        named("json")
            .decode::<Old>(br#"{"age":1,"age":2,"name":"x"}"#)
            .is_err()
    );
    let last = BTreeMap::from([("k".to_owned(), 2_u8)]);
    for name in ["msgpack", "msgpack-named"] {
        assert_eq!(
            named(name)
                .decode::<BTreeMap<String, u8>>(b"\x82\xa1k\x01\xa1k\x02")
                .unwrap(),
            last
        );
    }
    assert_eq!(
        named("json")
            .decode::<BTreeMap<String, u8>>(br#"{"k":1,"k":2}"#)
            .unwrap(),
        last
    );
    // Text is UTF-8.
    for name in ["msgpack", "msgpack-named"] {
        assert!(named(name).decode::<String>(b"\xa2\xc3\x28").is_err());
    }
    assert!(named("json").decode::<String>(b"\"\xc3\x28\"").is_err());
    assert!(
        named("json").decode::<String>(br#""\ud800""#).is_err(),
        "half a surrogate pair"
    );
    assert!(named("raw").decode::<String>(b"\xc3\x28").is_err());
    // JSON has no NaN: it becomes null, which is not a number either.
    for name in ["msgpack", "msgpack-named"] {
        assert!(
            named(name)
                .decode::<f64>(&encoded(name, &f64::NAN))
                .unwrap()
                .is_nan()
        );
        assert_eq!(
            named(name).decode::<f64>(&encoded(name, &f64::INFINITY)).unwrap(),
            f64::INFINITY
        );
    }
    assert_eq!(encoded("json", &f64::NAN), "null");
    assert!(named("json").decode::<f64>(b"null").is_err());
    assert!(named("json").decode::<f64>(b"NaN").is_err());
    // Numbers at their limits survive, and numbers that do not fit fail.
    for name in ["msgpack", "msgpack-named", "json"] {
        assert_eq!(
            named(name).decode::<i64>(&encoded(name, &i64::MIN)).unwrap(),
            i64::MIN
        );
        assert!(named(name).decode::<i64>(&encoded(name, &u64::MAX)).is_err());
        assert!(named(name).decode::<u64>(&encoded(name, &1.0)).is_err());
    }
    assert!(named("json").decode::<f64>(b"1e999").is_err());
    // An extension type of msgpack is not a value in serde.
    for name in ["msgpack", "msgpack-named"] {
        assert!(named(name).decode::<u32>(b"\xd6\xff\x00\x00\x00\x01").is_err());
    }
    // Nothing may follow a value.
    assert!(named("msgpack").decode::<u8>(b"\x01\x01").is_err());
    assert!(named("msgpack-named").decode::<u8>(b"\x01\xc0").is_err());
    assert!(named("json").decode::<u8>(b"1 1").is_err());
    assert_eq!(
        named("json").decode::<u8>(b" 1\n").unwrap(),
        1,
        "white space is JSON's own"
    );
}

proptest! {
    #[test]
    fn raw_bytes_are_what_they_are(bytes: Vec<u8>) {
        let bytes = Bytes::from(bytes);
        prop_assert_eq!(&encoded("raw", &(bytes.clone(),)), &bytes);
        prop_assert_eq!(named("raw").decode::<(Bytes,)>(&bytes).unwrap().0, bytes);
    }

    #[test]
    fn named_and_unnamed_msgpack_read_each_other(name in ".{0,40}", age: u8) {
        let value = Old { name, age };
        prop_assert_eq!(&named("msgpack").decode::<Old>(&encoded("msgpack-named", &value)).unwrap(), &value);
        prop_assert_eq!(&named("msgpack-named").decode::<Old>(&encoded("msgpack", &value)).unwrap(), &value);
    }
}
