//! One line of output: named values in a fixed order, the same names in a table's header and in JSON.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::escape::visible;

/// Named values in order.
#[derive(Debug, Default)]
pub(crate) struct Record {
    fields: Vec<(&'static str, Value)>,
}

impl Record {
    /// No values yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a value at the end.
    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Names in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.fields.iter().map(|(name, _)| *name)
    }

    /// Values as a table shows them.
    pub(crate) fn cells(&self) -> impl Iterator<Item = String> + '_ {
        self.fields.iter().map(|(_, value)| cell(value))
    }

    /// Whether each value is a number, which a table puts to the right.
    pub(crate) fn numeric(&self) -> impl Iterator<Item = bool> + '_ {
        self.fields.iter().map(|(_, value)| value.is_number())
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => visible(text.as_bytes()),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len()))?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_the_order_of_fields() {
        let record = Record::new()
            .with("topic", "t")
            .with("queue", 3)
            .with("key", Value::Null);
        assert_eq!(
            serde_json::to_string(&record).expect("it is a map"),
            r#"{"topic":"t","queue":3,"key":null}"#
        );
    }

    #[test]
    fn cells_are_plain_text() {
        let record = Record::new()
            .with("a", "x\x1b")
            .with("b", Value::Null)
            .with("c", vec!["p", "q"]);
        assert_eq!(record.cells().collect::<Vec<_>>(), ["x\\x1b", "-", "p,q"]);
    }
}
