//! A token in the metadata of each call: added at the invoker, checked at the provider. Unlike the token in
//! HELLO, which a connection shows once, it can differ from call to call.

use std::fmt;
use std::sync::Arc;

use super::{Filter, FilterPlugin, Next, Side};
use crate::BoxFuture;
use crate::dispatch::Answer;
use crate::error::{Code, Executed, RpcError};
use crate::message::Request;
use crate::plugin::{PluginError, Settings};
use crate::secret;

/// The metadata key of the token.
pub const TOKEN_KEY: &str = "auth_token";

/// At the invoker, adds a token to every call that has none; at the provider, answers every call without one
/// of the right tokens with `Unauthenticated`, not executed. The comparison takes no measurably different
/// time for different tokens. Handlers do not see the token, and their own calls do not inherit it.
///
/// A single call can carry another token with `.meta("auth_token", "..")`. By name: `auth_token?env=NAME`,
/// which reads an environment variable, or `auth_token?token=..`.
///
/// ```
/// use std::sync::Arc;
/// use rpc_core::filter::AuthToken;
/// use rpc_core::{Code, Invoker, Provider};
///
/// # #[rpc_core::service(name = "doc.Vault")] pub trait Vault { async fn open(&self) -> u32; }
/// # struct Keeper;
/// # impl Vault for Keeper { async fn open(&self) -> u32 { 7 } }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // During a change of tokens, the provider accepts the old one and the new one.
/// let guard = Arc::new(AuthToken::new("new").or("old"));
/// let provider = Provider::builder().serve(VaultServer::new(Keeper)).filter(guard).start().await?;
/// let direct = [provider.local_addr()];
/// let invoker = Invoker::builder().direct(direct).filter(Arc::new(AuthToken::new("old"))).build().await?;
/// let vault = VaultClient::refer(&invoker);
/// assert_eq!(vault.open().await?, 7);
/// let refused = vault.open().meta("auth_token", "guessed").await.unwrap_err();
/// assert_eq!(refused.rpc().map(|error| error.code), Some(Code::Unauthenticated));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct AuthToken {
    token: String,
    others: Vec<String>,
}

impl fmt::Debug for AuthToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthToken").finish_non_exhaustive()
    }
}

impl AuthToken {
    /// Adds and accepts this token.
    #[must_use]
    pub fn new(token: impl Into<String>) -> Self {
        Self {
            token: token.into(),
            others: Vec::new(),
        }
    }

    /// Also accepts this token, but adds it to no call.
    #[must_use]
    pub fn or(mut self, token: impl Into<String>) -> Self {
        self.others.push(token.into());
        self
    }

    fn from_settings(settings: &Settings) -> Result<Self, PluginError> {
        settings.only(&["token", "env"])?;
        let token = match (settings.text("token"), settings.text("env")) {
            (Some(token), None) => token.to_owned(),
            (None, Some(name)) => std::env::var(name)
                .map_err(|error| format!("variable `{name}`: {error}; set it to the token"))
                .map_err(|reason| PluginError::setting("env", reason))?,
            _ => {
                let reason = "say one of `env=NAME`, the variable that holds the token, and `token=..`";
                return Err(PluginError::setting("env", reason));
            }
        };
        if token.is_empty() {
            let key = if settings.text("env").is_some() {
                "env"
            } else {
                "token"
            };
            return Err(PluginError::setting(key, "the token is empty"));
        }
        Ok(Self::new(token))
    }

    fn accepts(&self, theirs: &str) -> bool {
        // All of them are compared, so that the time does not reveal which one matches.
        let others = self.others.iter().map(|ours| secret::is_same(ours, theirs));
        others.fold(secret::is_same(&self.token, theirs), |fits, other| fits | other)
    }
}

impl Filter for AuthToken {
    fn call<'a>(&'a self, side: Side, mut request: Request, next: &'a dyn Next) -> BoxFuture<'a, Answer> {
        let theirs = request.meta.value(TOKEN_KEY);
        match side {
            Side::Invoker => {
                if theirs.is_none() {
                    request.meta.0.push((TOKEN_KEY.to_owned(), self.token.clone()));
                }
            }
            Side::Provider => {
                if !theirs.is_some_and(|theirs| self.accepts(theirs)) {
                    let message = format!("the call's `{TOKEN_KEY}` is missing or wrong");
                    let error = RpcError::new(Code::Unauthenticated, Executed::No, message);
                    return Box::pin(std::future::ready(Err(error)));
                }
                request.meta.0.retain(|(key, _)| key != TOKEN_KEY);
            }
        }
        next.run(request)
    }
}

crate::plugin!(FilterPlugin, "auth_token", |settings| {
    Ok(Arc::new(AuthToken::from_settings(settings)?))
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::settings_are_checked_by;

    #[test]
    fn only_whole_tokens_are_accepted_and_none_is_shown() {
        let guard = AuthToken::new("secret").or("older");
        for (token, accepted) in [
            ("secret", true),
            ("older", true),
            ("secre", false),
            ("secrets", false),
            ("", false),
            ("Secret", false),
        ] {
            assert_eq!(guard.accepts(token), accepted, "{token}");
        }
        assert!(!format!("{guard:?}").contains("secret"));
    }

    #[test]
    fn settings_are_checked() {
        settings_are_checked_by(
            FilterPlugin::from_text,
            "auth_token?token=x",
            &[
                ("auth_token", "filter `auth_token`: setting `env`: say one of"),
                ("auth_token?token=", "setting `token`: the token is empty"),
                ("auth_token?token=x&env=Y", "say one of"),
                (
                    "auth_token?env=NO_SUCH_VARIABLE_HERE",
                    "variable `NO_SUCH_VARIABLE_HERE`: environment variable not found",
                ),
            ],
        );
    }
}
