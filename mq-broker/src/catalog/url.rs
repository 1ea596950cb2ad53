//! The URL of the catalog's database. Its password is never shown.

use std::fmt;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

/// A parsed PostgreSQL URL.
#[derive(Clone)]
pub struct DatabaseUrl {
    text: String,
    options: PgConnectOptions,
}

impl DatabaseUrl {
    pub(super) fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// The database in messages: user, host and name.
    pub(super) fn place(&self) -> String {
        let options = &self.options;
        let host = options.get_socket().map_or_else(
            || format!("{}:{}", options.get_host(), options.get_port()),
            |folder| folder.display().to_string(),
        );
        let user = options.get_username();
        let database = options.get_database().unwrap_or(user);
        format!("{user}@{host}/{database}")
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected `postgres://user:password@host:port/database`";
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(expected.to_owned());
        }
        let options = text
            .parse()
            .map_err(|error: sqlx::Error| format!("{error}; {expected}"))?;
        Ok(Self {
            text: text.to_owned(),
            options,
        })
    }
}

impl PartialEq for DatabaseUrl {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for DatabaseUrl {}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(&self.text))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// A URL as it may be shown: the password after the user's name and the parameter `password` become stars.
pub(crate) fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let (rest, parameters) = match rest.split_once('?') {
        Some((rest, parameters)) => (rest, Some(parameters)),
        None => (rest, None),
    };
    // The last `@`, so that an unencoded `@` in a password does not reveal half of it.
    let shown = match rest.rsplit_once('@') {
        Some((who, place)) => match who.split_once(':') {
            Some((user, _)) => format!("{user}:***@{place}"),
            None => rest.to_owned(),
        },
        None => rest.to_owned(),
    };
    let parameters = parameters.map_or_else(String::new, |parameters| {
        let shown = parameters
            .split('&')
            .map(|parameter| match parameter.split_once('=') {
                Some(("password", _)) => "password=***".to_owned(),
                _ => parameter.to_owned(),
            });
        format!("?{}", shown.collect::<Vec<_>>().join("&"))
    });
    format!("{scheme}://{shown}{parameters}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_never_shown() {
        for (text, shown) in [
            ("postgres://me:secret@h:1/d", "postgres://me:***@h:1/d"),
            ("postgres://me:se@cret@h/d", "postgres://me:***@h/d"),
            (
                "postgres://me@h/d?password=secret&x=1",
                "postgres://me@h/d?password=***&x=1",
            ),
            (
                "postgres://me:secret@h/d?sslmode=require",
                "postgres://me:***@h/d?sslmode=require",
            ),
            ("postgres://h/d", "postgres://h/d"),
            ("secretless", "secretless"),
        ] {
            assert_eq!(without_password(text), shown);
        }
        let url: DatabaseUrl = "postgres://me:secret@h:1/d".parse().unwrap();
        for text in [url.to_string(), format!("{url:?}"), url.place()] {
            assert!(!text.contains("secret") && text.contains("me"), "{text}");
        }
    }

    #[test]
    fn another_database_is_refused_with_what_was_expected() {
        for text in ["mysql://a/b", "host=a", "postgres://[::1"] {
            assert!(
                text.parse::<DatabaseUrl>()
                    .unwrap_err()
                    .contains("expected `postgres://"),
                "{text}"
            );
        }
    }
}
