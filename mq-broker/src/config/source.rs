//! The sources of settings: a TOML file, the environment, flags. All three become `section.key = text`.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Error;
use super::keys::KEYS;

/// Prefix of the environment variables.
const PREFIX: &str = "MQ__";

/// One setting as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// `section.key`.
    pub key: String,
    /// The value as text.
    pub value: String,
    /// Where it was given.
    pub source: Source,
}

/// Where a setting was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: it is the default.
    Default,
    /// This file.
    File(PathBuf),
    /// The environment.
    Environment,
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("by default"),
            Self::File(path) => write!(f, "in file `{}`", path.display()),
            Self::Environment => f.write_str("in the environment"),
            Self::Flag => f.write_str("on the command line"),
        }
    }
}

impl Source {
    pub(super) fn unknown(&self, key: &str) -> Error {
        let section = key.split_once('.').map_or(key, |(section, _)| section);
        let in_section: Vec<&str> = KEYS
            .iter()
            .filter_map(|known| known.name.split_once('.'))
            .filter(|(known, _)| *known == section)
            .map(|(_, short)| short)
            .collect();
        let hint = if in_section.is_empty() {
            format!("known sections: {}", sections().join(", "))
        } else {
            format!("known keys of [{section}]: {}", in_section.join(", "))
        };
        let shown = |key: &str| match self {
            Self::Environment => variable(key),
            _ => key.to_owned(),
        };
        let hint = match elsewhere(key) {
            Some(meant) => format!("did you mean `{}`?", shown(meant)),
            None => hint,
        };
        Error::UnknownKey {
            key: shown(key),
            source_name: self.to_string(),
            hint,
        }
    }
}

/// The one key of another section that an unknown key names, as in `journal.tail_bytes_max` or
/// `store.journal_bytes_max`.
fn elsewhere(key: &str) -> Option<&'static str> {
    let (_, short) = key.split_once('.')?;
    let is_meant = |name: &str| {
        let is_same = name.split_once('.').is_some_and(|(_, known)| known == short);
        is_same || name.replacen('.', "_", 1) == short
    };
    let mut meant = KEYS.iter().map(|known| known.name).filter(|name| is_meant(name));
    meant.next().filter(|_| meant.next().is_none())
}

/// The settings of a TOML file.
///
/// # Errors
/// The file cannot be read or is not TOML with one level of sections.
pub fn file(path: &Path) -> Result<Vec<Given>, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::Unreadable {
        path: path.to_owned(),
        error,
    })?;
    let syntax = |reason: String| Error::Syntax {
        path: path.to_owned(),
        reason,
    };
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| syntax(error.to_string()))?;
    let source = Source::File(path.to_owned());
    let mut given = Vec::new();
    for (section, values) in table {
        let toml::Value::Table(values) = values else {
            return Err(syntax(format!(
                "`{section}` is outside any section; expected one of {}",
                sections()
                    .iter()
                    .map(|name| format!("[{name}]"))
                    .collect::<Vec<_>>()
                    .join(" ")
            )));
        };
        if values.is_empty() && !sections().contains(&section.as_str()) {
            return Err(source.unknown(&section));
        }
        for (key, value) in values {
            let key = format!("{section}.{key}");
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(truth) => truth.to_string(),
                other => {
                    return Err(syntax(format!(
                        "`{key}` is of type {}; expected a string, an integer or a boolean",
                        other.type_str()
                    )));
                }
            };
            given.push(Given {
                key,
                value,
                source: source.clone(),
            });
        }
    }
    Ok(given)
}

/// The settings among environment variables: those named `MQ__SECTION__KEY`.
pub fn environment(variables: impl IntoIterator<Item = (String, String)>) -> Vec<Given> {
    let ours = variables.into_iter().filter_map(|(name, value)| {
        let key = name.strip_prefix(PREFIX)?.replacen("__", ".", 1).to_lowercase();
        Some(Given {
            key,
            value,
            source: Source::Environment,
        })
    });
    let mut given: Vec<Given> = ours.collect();
    given.sort_by(|left, right| left.key.cmp(&right.key));
    given
}

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replacen('.', "__", 1).to_uppercase())
}

fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> = KEYS
        .iter()
        .filter_map(|key| Some(key.name.split_once('.')?.0))
        .collect();
    sections.dedup();
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn file_gives_dotted_keys() {
        let (_folder, path) =
            written("[network]\nlisten = \"127.0.0.1:1\"\n[checkpoint]\nevery_ms = 1_000\n");
        let keys: Vec<_> = file(&path)
            .unwrap()
            .into_iter()
            .map(|given| (given.key, given.value))
            .collect();
        assert!(keys.contains(&("network.listen".into(), "127.0.0.1:1".into())));
        assert!(keys.contains(&("checkpoint.every_ms".into(), "1000".into())));
    }

    #[test]
    fn key_outside_a_section_is_refused() {
        let (_folder, path) = written("listen = \"x\"\n");
        assert!(
            file(&path)
                .unwrap_err()
                .to_string()
                .contains("outside any section")
        );
    }

    #[test]
    fn broken_toml_names_the_line() {
        let (_folder, path) = written("[network]\nlisten = \n");
        assert!(file(&path).unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn environment_takes_only_our_prefix() {
        let given = environment([
            ("MQ__NETWORK__AUTH_TOKEN_FILE".to_owned(), "t".to_owned()),
            ("PATH".to_owned(), "x".to_owned()),
        ]);
        assert_eq!(given.len(), 1);
        assert_eq!(given[0].key, "network.auth_token_file");
    }

    #[test]
    fn key_of_another_section_is_suggested() {
        let said = |key: &str| Source::Flag.unknown(key).to_string();
        assert!(said("store.journal_bytes_max").contains("did you mean `journal.bytes_max`?"));
        assert!(said("journal.tail_bytes_max").contains("did you mean `store.tail_bytes_max`?"));
        assert!(
            said("store.check_ms").contains("known keys of [store]"),
            "several sections have it"
        );
        assert!(said("store.compact_map_bytes").contains("key_compaction_map_bytes"));
        let text = Source::Environment
            .unknown("store.journal_budget_bytes")
            .to_string();
        assert!(
            text.contains("did you mean `MQ__JOURNAL__BUDGET_BYTES`?"),
            "{text}"
        );
    }

    #[test]
    fn unknown_variable_is_named_as_it_was_given() {
        let text = Source::Environment.unknown("network.lisen").to_string();
        assert!(text.contains("`MQ__NETWORK__LISEN`"), "{text}");
    }
}
