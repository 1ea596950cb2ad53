//! The plug-in mechanism: implementations of a trait, found at link time and chosen by name.
//!
//! Each kind has its own record type and table, because `inventory` collects by concrete type, in the crate
//! that owns it. rustc does not link a crate that is not referenced: a binary that wants a plug-in by name
//! adds `use its_crate as _;`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use inventory;

/// The configuration of one use of a plug-in: `key = value` pairs, checked when the plug-in reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    values: BTreeMap<String, String>,
}

impl Settings {
    /// No settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one pair.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.values.insert(key.into(), value.into());
        self
    }

    /// The settings in a URL `scheme://address[?key=value&..]`: returns its scheme and the pairs; the pair
    /// `address` is the part after `://`.
    ///
    /// # Errors
    /// [`PluginError::Url`] if there is no scheme.
    pub fn from_url(url: &str) -> Result<(String, Self), PluginError> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| PluginError::Url { url: url.to_owned() })?;
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let settings = Self::new().with("address", address).with_query(query);
        Ok((scheme.to_owned(), settings))
    }

    /// The settings in `name[?key=value&..]`, as in `rate_limit?per_s=100&burst=20`: returns the name and the
    /// pairs. Values are taken literally; set a value that contains `&` with [`Settings::with`].
    ///
    /// ```
    /// let (name, settings) = rpc_core::plugin::Settings::from_name("rate_limit?per_s=100&burst=20");
    /// assert_eq!((name, settings.text("burst")), ("rate_limit", Some("20")));
    /// ```
    #[must_use]
    pub fn from_name(text: &str) -> (&str, Self) {
        let (name, query) = text.split_once('?').unwrap_or((text, ""));
        (name, Self::new().with_query(query))
    }

    fn with_query(mut self, query: &str) -> Self {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            self = self.with(key, value);
        }
        self
    }

    /// The text under `key`.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// The value under `key`, parsed; `default` if there is none.
    ///
    /// # Errors
    /// [`PluginError::Setting`] if the text does not parse.
    pub fn parse<T: FromStr>(&self, key: &str, default: T) -> Result<T, PluginError>
    where
        T::Err: fmt::Display,
    {
        self.text(key).map_or(Ok(default), |text| {
            text.parse()
                .map_err(|error: T::Err| PluginError::setting(key, format!("`{text}`: {error}")))
        })
    }

    /// Refuses every key that is not among `known`.
    ///
    /// # Errors
    /// [`PluginError::Setting`] naming the first unknown key and the known ones.
    pub fn only(&self, known: &[&str]) -> Result<(), PluginError> {
        match self.values.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(PluginError::setting(
                key,
                format!("unknown; known settings: {}", known.join(", ")),
            )),
        }
    }
}

/// Why a plug-in cannot be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// No linked plug-in of the kind has this name.
    #[error(
        "no {kind} named `{name}`; linked in: {}. If it lives in a crate of its own, name that crate in the binary: `use its_crate as _;`",
        .known.join(", ")
    )]
    Unknown {
        /// The kind, as in "load balancer".
        kind: &'static str,
        /// The requested name.
        name: String,
        /// All names and aliases, sorted.
        known: Vec<&'static str>,
    },
    /// Two plug-ins of one kind claim the same name.
    #[error("{kind} `{name}` is registered twice, by {first} and by {second}; remove or rename one of them")]
    Duplicate {
        /// The kind.
        kind: &'static str,
        /// The name claimed twice.
        name: &'static str,
        /// `crate (file:line)` of one.
        first: &'static str,
        /// `crate (file:line)` of the other.
        second: &'static str,
    },
    /// A setting is unknown or does not parse.
    #[error("setting `{key}`: {reason}")]
    Setting {
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A plug-in that was named together with settings refuses them.
    #[error("{kind} `{name}`: {error}")]
    Refused {
        /// The kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The reason.
        #[source]
        error: Box<Self>,
    },
    /// A URL without a scheme.
    #[error(
        "`{url}` is not a registry URL; expected `scheme://address`, with the name of a linked registry as scheme"
    )]
    Url {
        /// The text that was given.
        url: String,
    },
    /// The plug-in itself could not start.
    #[error("{kind} `{name}`: {reason}")]
    Start {
        /// The kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The reason.
        reason: String,
    },
}

impl PluginError {
    /// The error for a setting that a factory does not accept: give the value, what was expected, and what to
    /// do.
    pub fn setting(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Setting {
            key: key.into(),
            reason: reason.into(),
        }
    }
}

/// The registration of a plug-in whose trait is `T`: all of it constant.
pub struct Record<T: ?Sized + 'static> {
    /// The name it is chosen by.
    pub name: &'static str,
    /// Further names.
    pub aliases: &'static [&'static str],
    /// `crate (file:line)` of the registration.
    pub origin: &'static str,
    /// Builds one configured instance.
    pub factory: fn(&Settings) -> Result<Arc<T>, PluginError>,
}

impl<T: ?Sized> fmt::Debug for Record<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("name", &self.name)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// All plug-ins of one kind by name; built once, the same for any link order.
pub struct Table<T: ?Sized + 'static> {
    kind: &'static str,
    by_name: BTreeMap<&'static str, &'static Record<T>>,
}

impl<T: ?Sized> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("kind", &self.kind)
            .field("names", &self.names())
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized> Table<T> {
    /// The table of `records`.
    ///
    /// # Errors
    /// [`PluginError::Duplicate`] if two plug-ins claim the same name.
    pub fn new(
        kind: &'static str,
        records: impl IntoIterator<Item = &'static Record<T>>,
    ) -> Result<Self, PluginError> {
        let mut by_name: BTreeMap<&'static str, &'static Record<T>> = BTreeMap::new();
        for record in records {
            for name in std::iter::once(record.name).chain(record.aliases.iter().copied()) {
                if let Some(other) = by_name.insert(name, record) {
                    let (first, second) = (other.origin.min(record.origin), other.origin.max(record.origin));
                    return Err(PluginError::Duplicate {
                        kind,
                        name,
                        first,
                        second,
                    });
                }
            }
        }
        Ok(Self { kind, by_name })
    }

    /// Names and aliases, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.by_name.keys().copied().collect()
    }

    /// `(name, origin)` of every plug-in, under its main name, sorted.
    #[must_use]
    pub fn origins(&self) -> Vec<(&'static str, &'static str)> {
        let own = self.by_name.iter().filter(|(name, record)| **name == record.name);
        own.map(|(name, record)| (*name, record.origin)).collect()
    }

    /// A new instance of the plug-in called `name`.
    ///
    /// # Errors
    /// [`PluginError::Unknown`], or the error of its factory.
    pub fn build(&self, name: &str, settings: &Settings) -> Result<Arc<T>, PluginError> {
        match self.by_name.get(name) {
            Some(record) => (record.factory)(settings),
            None => Err(PluginError::Unknown {
                kind: self.kind,
                name: name.to_owned(),
                known: self.names(),
            }),
        }
    }
}

/// `(name, origin)` of each plug-in of a kind.
pub type Origins = Vec<(&'static str, &'static str)>;

/// A kind of plug-in, as registered by `plugin_kind!`, so that all kinds can be listed, including those of
/// crates unknown to this one.
#[derive(Debug)]
pub struct Kind {
    /// The name of the kind in messages.
    pub label: &'static str,
    /// `(name, origin)` of its linked plug-ins, sorted by name.
    pub origins: fn() -> Result<Origins, PluginError>,
}

inventory::collect!(Kind);

/// A plug-in that is linked into this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Linked {
    /// Its kind, as in "load balancer".
    pub kind: &'static str,
    /// The name it is chosen by.
    pub name: &'static str,
    /// `crate (file:line)` of its registration.
    pub origin: &'static str,
}

/// All linked plug-ins of all kinds, sorted by kind and name.
///
/// # Errors
/// Two plug-ins of one kind claim the same name.
///
/// ```
/// let linked = rpc_core::plugin::linked()?;
/// assert!(linked.iter().any(|plugin| (plugin.kind, plugin.name) == ("filter", "access_log")));
/// # Ok::<(), rpc_core::plugin::PluginError>(())
/// ```
pub fn linked() -> Result<Vec<Linked>, PluginError> {
    let mut all = Vec::new();
    for kind in inventory::iter::<Kind> {
        let of_kind = (kind.origins)()?.into_iter();
        all.extend(of_kind.map(|(name, origin)| Linked {
            kind: kind.label,
            name,
            origin,
        }));
    }
    all.sort_unstable();
    Ok(all)
}

/// A builder's choice of a plug-in: a name (for a registry a URL; with settings as in `name?key=value&..`)
/// that is looked up by `build`, or a value, which also makes the linker keep its crate.
pub enum Source<T: ?Sized> {
    /// Looked up in the kind's table.
    Named(String),
    /// Used as it is.
    Value(Arc<T>),
}

impl<T: ?Sized> fmt::Debug for Source<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.debug_tuple("Named").field(name).finish(),
            Self::Value(_) => f.write_str("Value"),
        }
    }
}

impl<T: ?Sized> From<&str> for Source<T> {
    fn from(name: &str) -> Self {
        Self::Named(name.to_owned())
    }
}

impl<T: ?Sized> From<String> for Source<T> {
    fn from(name: String) -> Self {
        Self::Named(name)
    }
}

impl<T: ?Sized> From<Arc<T>> for Source<T> {
    fn from(value: Arc<T>) -> Self {
        Self::Value(value)
    }
}

macro_rules! source_from_value {
    ($($trait:path),*) => {$(
        impl<X: $trait> From<Arc<X>> for Source<dyn $trait> {
            fn from(value: Arc<X>) -> Self {
                Self::Value(value)
            }
        }
    )*};
}

source_from_value!(
    crate::registry::Registry,
    crate::balance::LoadBalancer,
    crate::fault::FaultTolerance,
    crate::filter::Filter
);

/// Declares a kind of plug-in: its record type, its collection and its table.
///
/// The type gets `table() -> Result<Table<dyn Trait>, PluginError>`, `build(name, settings)`,
/// `from_text("name?key=value")` and `names()`, and its plug-ins appear in [`linked`](crate::plugin::linked).
#[macro_export]
macro_rules! plugin_kind {
    ($(#[$meta:meta])* $vis:vis struct $kind:ident for dyn $trait:path as $label:literal) => {
        $(#[$meta])*
        #[derive(Debug)]
        $vis struct $kind(pub $crate::plugin::Record<dyn $trait>);

        $crate::plugin::inventory::collect!($kind);

        $crate::plugin::inventory::submit! {
            $crate::plugin::Kind {
                label: $label,
                origins: || Ok($kind::table()?.origins()),
            }
        }

        impl $kind {
            /// The name of the kind in messages.
            pub const LABEL: &'static str = $label;

            /// All linked plug-ins of this kind.
            ///
            /// # Errors
            /// Two of them claim the same name.
            pub fn table() -> Result<$crate::plugin::Table<dyn $trait>, $crate::plugin::PluginError> {
                let records = $crate::plugin::inventory::iter::<$kind>.into_iter().map(|kind| &kind.0);
                $crate::plugin::Table::new($label, records)
            }

            /// A new instance of the plug-in called `name`.
            ///
            /// # Errors
            /// The name is unknown or claimed twice, or the plug-in refuses its settings.
            pub fn build(
                name: &str,
                settings: &$crate::plugin::Settings,
            ) -> Result<::std::sync::Arc<dyn $trait>, $crate::plugin::PluginError> {
                Self::table()?.build(name, settings)
            }

            /// A new instance of the plug-in with the settings in `text`: `name[?key=value&..]`.
            ///
            /// # Errors
            /// The name is unknown or claimed twice, or the plug-in refuses its settings; the error names it.
            pub fn from_text(
                text: &str,
            ) -> Result<::std::sync::Arc<dyn $trait>, $crate::plugin::PluginError> {
                let (name, settings) = $crate::plugin::Settings::from_name(text);
                Self::build(name, &settings).map_err(|error| match error {
                    $crate::plugin::PluginError::Setting { .. } => $crate::plugin::PluginError::Refused {
                        kind: $label,
                        name: name.to_owned(),
                        error: ::std::boxed::Box::new(error),
                    },
                    other => other,
                })
            }

            /// Names and aliases of all linked plug-ins of this kind, sorted.
            ///
            /// # Errors
            /// Two of them claim the same name.
            pub fn names() -> Result<Vec<&'static str>, $crate::plugin::PluginError> {
                Ok(Self::table()?.names())
            }
        }
    };
}

/// Registers a plug-in: `plugin!(LoadBalancerPlugin, "maglev", |settings|
/// Ok(Arc::new(Maglev::new(settings)?)));`, with aliases as `plugin!(Kind, "name", aliases ["other"],
/// |settings| ..)`.
///
/// ```
/// use std::sync::Arc;
/// use rpc_core::fault::{Failure, FaultTolerance, FaultTolerancePlugin, Verdict};
/// use rpc_core::plugin::Settings;
///
/// /// Ignores failures of a fair number of calls.
/// #[derive(Debug)]
/// struct Lenient {
///     attempts: u32,
/// }
///
/// impl FaultTolerance for Lenient {
///     fn on_failure(&self, failure: &Failure<'_>) -> Verdict {
///         if failure.attempt < self.attempts { Verdict::Ignore } else { Verdict::Return }
///     }
/// }
///
/// rpc_core::plugin!(FaultTolerancePlugin, "lenient", |settings| {
///     settings.only(&["attempts"])?;
///     Ok(Arc::new(Lenient { attempts: settings.parse("attempts", 3)? }))
/// });
///
/// assert!(FaultTolerancePlugin::names().unwrap().contains(&"lenient"));
/// let error = FaultTolerancePlugin::build("lenient", &Settings::new().with("atempts", "1")).unwrap_err();
/// assert_eq!(error.to_string(), "setting `atempts`: unknown; known settings: attempts");
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! plugin {
    ($kind:path, $name:literal, aliases [$($alias:literal),*], $factory:expr) => {
        $crate::plugin::inventory::submit! {
            $kind($crate::plugin::Record {
                name: $name,
                aliases: &[$($alias),*],
                origin: concat!(env!("CARGO_PKG_NAME"), " (", file!(), ":", line!(), ")"),
                factory: $factory,
            })
        }
    };
    ($kind:path, $name:literal, $factory:expr) => {
        $crate::plugin!($kind, $name, aliases [], $factory);
    };
}
