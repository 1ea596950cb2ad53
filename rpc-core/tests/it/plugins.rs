//! The plug-in mechanism as a user's crate meets it, and what rpc-core itself brings.

use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};
use rpc_core::compress::CompressorPlugin;
use rpc_core::fault::{Failfast, FaultTolerance, FaultTolerancePlugin};
use rpc_core::filter::FilterPlugin;
use rpc_core::plugin::{PluginError, Record, Settings, Table};
use rpc_core::serialize::{SerializeError, Serializer, SerializerPlugin, SerializerRef, Visit};

/// JSON, every byte inverted: surely nobody else's format.
#[derive(Debug)]
struct Inverted;

impl Serializer for Inverted {
    fn name(&self) -> &str {
        "inverted"
    }

    fn serialize(
        &self,
        value: &dyn erased_serde::Serialize,
        out: &mut BytesMut,
    ) -> Result<(), SerializeError> {
        let json = serde_json::to_vec(value).map_err(|error| SerializeError::new("inverted", error))?;
        json.iter().for_each(|byte| out.put_u8(!byte));
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8], visit: &mut Visit<'_>) -> Result<(), SerializeError> {
        let json: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        let mut deserializer = serde_json::Deserializer::from_slice(&json);
        visit(&mut <dyn erased_serde::Deserializer<'_>>::erase(
            &mut deserializer,
        ))
        .map_err(|error| SerializeError::new("inverted", error))
    }
}

rpc_core::plugin!(SerializerPlugin, "inverted", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(Inverted))
});

#[test]
fn serializer_of_another_crate_is_found_by_name() {
    let inverted = SerializerRef::named("inverted").unwrap();
    assert_eq!(inverted.name(), "inverted");
    let mut bytes = BytesMut::new();
    let value = ("ann".to_owned(), vec![1_u64, 2]);
    inverted.encode(&value, &mut bytes).unwrap();
    assert_eq!(bytes[0], !b'[');
    assert_eq!(inverted.decode::<(String, Vec<u64>)>(&bytes).unwrap(), value);
    assert!(inverted.decode::<u64>(&bytes).is_err());
}

#[test]
fn built_in_serializers_work_as_objects_too() {
    for name in ["msgpack", "json"] {
        let object = SerializerPlugin::build(name, &Settings::new()).unwrap();
        let mut as_object = BytesMut::new();
        let value = (7_u8, Some("x".to_owned()));
        object.serialize(&value, &mut as_object).unwrap();
        let by_name = SerializerRef::named(name).unwrap();
        assert!(matches!(by_name, SerializerRef::Msgpack | SerializerRef::Json));
        assert_eq!(by_name.decode::<(u8, Option<String>)>(&as_object).unwrap(), value);
        let mut read = None;
        let mut visit = |deserializer: &mut dyn erased_serde::Deserializer<'_>| {
            read = Some(erased_serde::deserialize::<(u8, Option<String>)>(deserializer)?);
            Ok(())
        };
        object.deserialize(&as_object, &mut visit).unwrap();
        assert_eq!(read, Some(value));
    }
}

#[test]
fn unknown_name_lists_the_known_ones_and_says_how_to_link() {
    let message = SerializerRef::named("hessian").unwrap_err().to_string();
    assert!(
        message.contains(
            "no serializer named `hessian`; linked in: inverted, json, msgpack, msgpack-named, raw"
        ),
        "{message}"
    );
    assert!(message.contains("use its_crate as _;"), "{message}");
}

#[test]
fn rpc_core_brings_these_plug_ins() {
    fn own<T: ?Sized>(table: Result<Table<T>, PluginError>) -> Vec<&'static str> {
        let origins = table.unwrap().origins();
        origins
            .into_iter()
            .filter(|(_, origin)| origin.contains("src/"))
            .map(|(name, _)| name)
            .collect()
    }
    assert_eq!(
        own(SerializerPlugin::table()),
        ["json", "msgpack", "msgpack-named", "raw"]
    );
    assert_eq!(
        own(FaultTolerancePlugin::table()),
        [
            "failback", "failfast", "failover", "failsafe", "forking", "hedging"
        ]
    );
    assert_eq!(
        own(FilterPlugin::table()),
        [
            "access_log",
            "auth_token",
            "concurrency_limit",
            "metrics",
            "rate_limit"
        ]
    );
    assert_eq!(own(CompressorPlugin::table()), ["lz4", "zstd"]);
    assert_eq!(own(rpc_core::balance::LoadBalancerPlugin::table()), [""; 0]);
    assert_eq!(own(rpc_core::registry::RegistryPlugin::table()), [""; 0]);
}

#[test]
fn name_claimed_twice_is_an_error_that_names_both() {
    fn build(_: &Settings) -> Result<Arc<dyn FaultTolerance>, PluginError> {
        Ok(Arc::new(Failfast))
    }
    const fn record(
        name: &'static str,
        aliases: &'static [&'static str],
        origin: &'static str,
    ) -> Record<dyn FaultTolerance> {
        Record {
            name,
            aliases,
            origin,
            factory: build,
        }
    }
    static ONE: Record<dyn FaultTolerance> = record("same", &[], "one (a.rs:1)");
    static TWO: Record<dyn FaultTolerance> = record("other", &["same"], "two (b.rs:2)");
    static ABLE: Record<dyn FaultTolerance> = record("able", &["zebra"], "one (a.rs:3)");
    for records in [[&ONE, &TWO], [&TWO, &ONE]] {
        let message = Table::new("fault tolerance", records).unwrap_err().to_string();
        assert!(
            message.contains("`same` is registered twice, by one (a.rs:1) and by two (b.rs:2)"),
            "{message}"
        );
    }
    let table = Table::new("fault tolerance", [&ONE, &ABLE]).unwrap();
    assert_eq!(table.names(), ["able", "same", "zebra"]);
    assert_eq!(
        table.origins(),
        [("able", "one (a.rs:3)"), ("same", "one (a.rs:1)")]
    );
}

#[test]
fn settings_of_a_plug_in_are_checked() {
    let error = FaultTolerancePlugin::build("failover", &Settings::new().with("retrys", "1")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("setting `retrys`: unknown; known settings: retries"),
        "{error}"
    );
}

#[test]
fn settings_may_stand_behind_the_name() {
    assert!(FaultTolerancePlugin::from_text("failover?retries=1&backoff_ms=5").is_ok());
    assert!(FaultTolerancePlugin::from_text("failfast").is_ok());
    let error = FaultTolerancePlugin::from_text("failover?retries=many").unwrap_err();
    assert_eq!(
        error.to_string(),
        "fault tolerance `failover`: setting `retries`: `many`: invalid digit found in string"
    );
    let error = FaultTolerancePlugin::from_text("fail_over?retries=1").unwrap_err();
    assert!(
        error.to_string().contains("no fault tolerance named `fail_over`"),
        "{error}"
    );
}

#[test]
fn all_kinds_are_listed_with_where_they_come_from() {
    let linked = rpc_core::plugin::linked().unwrap();
    assert!(linked.is_sorted());
    let mut kinds: Vec<&str> = linked.iter().map(|plugin| plugin.kind).collect();
    kinds.dedup();
    assert!(
        ["fault tolerance", "filter", "serializer"]
            .iter()
            .all(|kind| kinds.contains(kind)),
        "{kinds:?}"
    );
    let own = linked.iter().find(|plugin| plugin.name == "inverted").unwrap();
    assert!(own.origin.contains("plugins.rs:"), "{own:?}");
}
