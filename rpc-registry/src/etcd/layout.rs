//! Keys and values in etcd: the single definition for both sides.
//!
//! Key: `/hc-rpc/<group>/<service>:<version>/<instance id>`, each part percent-encoded, all but
//! `A-Z a-z 0-9 - . _ ~`, so that `/`, `:` and `%` within a name cannot lead to another key. Value: the instance
//! as JSON, without its id.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rpc_core::registry::{Instance, InstanceId, ServiceKey};

/// RFC 3986, 2.3: all but the unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

fn encoded(part: &str) -> String {
    utf8_percent_encode(part, ENCODED).to_string()
}

/// The prefix of the keys of all instances of a service. It ends with `/`, so `Bank` does not match `Bank2`.
pub(super) fn prefix(key: &ServiceKey) -> String {
    let (group, service, version) = (encoded(&key.group), encoded(&key.service), encoded(&key.version));
    format!("/hc-rpc/{group}/{service}:{version}/")
}

/// The key of one instance.
pub(super) fn key(service: &ServiceKey, id: &InstanceId) -> String {
    prefix(service) + &encoded(&id.0)
}

/// The value of one instance.
pub(super) fn value(instance: &Instance) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(instance)
}

/// The instance under `key` below `prefix`; `None` if the key or the value is not one of ours.
pub(super) fn decode(prefix: &str, key: &[u8], value: &[u8]) -> Option<Instance> {
    let mut instance: Instance = serde_json::from_slice(value).ok()?;
    instance.id = decode_id(prefix, key)?;
    Some(instance)
}

/// The id at the end of `key`.
pub(super) fn decode_id(prefix: &str, key: &[u8]) -> Option<InstanceId> {
    let part = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    if part.contains('/') {
        return None;
    }
    let id = percent_decode_str(part).decode_utf8().ok()?;
    Some(InstanceId(id.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(group: &str, service: &str, version: &str) -> ServiceKey {
        ServiceKey {
            group: group.into(),
            service: service.into(),
            version: version.into(),
        }
    }

    #[test]
    fn layout_is_pinned() {
        let plain = service("default", "hc.mq.Admin", "1.0");
        assert_eq!(
            key(&plain, &InstanceId("0123abcd".into())),
            "/hc-rpc/default/hc.mq.Admin:1.0/0123abcd"
        );
        let odd = service("a/b", "c:d", "é%");
        assert_eq!(
            key(&odd, &InstanceId("x y".into())),
            "/hc-rpc/a%2Fb/c%3Ad:%C3%A9%25/x%20y"
        );
    }

    #[test]
    fn value_is_pinned() {
        let mut instance: Instance = serde_json::from_str(r#"{"address": "h:1"}"#).unwrap();
        instance.id = InstanceId("x".into());
        let text = String::from_utf8(value(&instance).unwrap()).unwrap();
        assert_eq!(
            text,
            r#"{"address":"h:1","name":"","http":null,"weight":100,"zone":null,"started_ms":0,"serializers":[],"meta":{}}"#
        );
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut instance: Instance = serde_json::from_str(r#"{"address": "h:1", "later": [1]}"#).unwrap();
        for id in ["x", "a/b%2F:", "", "é\u{0}", ".."] {
            instance.id = InstanceId(id.into());
            let service = service("g/", "s:%", "v");
            let (prefix, key) = (prefix(&service), key(&service, &instance.id));
            let read = decode(&prefix, key.as_bytes(), &value(&instance).unwrap());
            assert_eq!(read.as_ref(), Some(&instance));
        }
    }

    #[test]
    fn foreign_keys_and_values_are_passed_over() {
        let prefix = "/hc-rpc/g/s:v/";
        let good = br#"{"address": "h:1"}"#;
        assert!(decode(prefix, b"/hc-rpc/g/s:v/x", good).is_some());
        for (key, value) in [
            (b"/hc-rpc/g/s:v/x/y".as_slice(), good.as_slice()),
            (b"/hc-rpc/g/s2:v/x", good),
            (b"/hc-rpc/g/s:v/\xff", good),
            (b"/hc-rpc/g/s:v/%ff", good),
            (b"/hc-rpc/g/s:v/x", b"{}"),
            (b"/hc-rpc/g/s:v/x", b"not json"),
        ] {
            assert!(decode(prefix, key, value).is_none(), "{}", key.escape_ascii());
        }
    }
}
