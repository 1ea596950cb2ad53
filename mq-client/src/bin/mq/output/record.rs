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

    /// The same with these names in this order, `null` where it has no value, so that all rows of a table
    /// have the same columns.
    fn with_names(&self, names: &[&'static str]) -> Self {
        let value = |name| {
            let field = self.fields.iter().find(|(own, _)| *own == name);
            field.map_or(Value::Null, |(_, value)| value.clone())
        };
        Self {
            fields: names.iter().map(|&name| (name, value(name))).collect(),
        }
    }
}

/// The records, each with all names that any of them has, in the order of the longest record.
pub(crate) fn of_one_width(records: &[Record]) -> Vec<Record> {
    let longest = records.iter().rev().max_by_key(|record| record.fields.len());
    let mut names: Vec<_> = longest.into_iter().flat_map(Record::names).collect();
    for name in records.iter().flat_map(Record::names) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    records.iter().map(|record| record.with_names(&names)).collect()
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
    fn rows_of_a_list_have_the_same_columns() {
        let short = Record::new().with("a", 1).with("d", 2);
        let long = Record::new().with("a", 1).with("b", "x").with("c", "y");
        let lines: Vec<_> = of_one_width(&[short, long])
            .iter()
            .map(|record| record.cells().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(lines, ["1 - - 2", "1 x y -"]);
        assert!(of_one_width(&[]).is_empty());
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
