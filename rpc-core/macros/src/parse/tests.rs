//! Mistakes are reported where they stand, in words that say what to write.

use super::*;
use crate::returns::Form;
use quote::{ToTokens as _, quote};

fn trait_with(method: TokenStream) -> Result<Service> {
    service(quote!(name = "hc.Test"), quote!(pub trait Test { #method }))
}

/// The message of the only mistake in `method`, and the source text at its span.
fn mistake(method: TokenStream) -> String {
    let error = trait_with(method).err().unwrap();
    assert_eq!(error.clone().into_iter().count(), 1, "{error}");
    error.to_string()
}

#[track_caller]
fn assert_mistake(method: TokenStream, words: &str) {
    let message = mistake(method);
    assert!(message.contains(words), "`{message}` does not say `{words}`");
}

#[test]
fn stream_is_told_by_its_spelling_and_all_else_is_about_its_items() {
    let service = service(
        quote!(name = "hc.Feed"),
        quote! {
            trait Feed {
                async fn plain(&self) -> impl Stream<Item = u64>;
                async fn typed(&self) -> impl rpc_core::Stream<Item = Result<(u64, Attachment), FeedError>> + Send;
                async fn refused(&self) -> Result<impl Stream<Item = u64>, FeedError>;
                async fn both(&self) -> Result<impl Stream<Item = Result<u64, E>>, CallError<E>>;
            }
        },
    )
    .unwrap();
    let returns: Vec<_> = service.methods.iter().map(|method| &method.returns).collect();
    let forms: Vec<_> = returns
        .iter()
        .map(|returns| (returns.stream, returns.form))
        .collect();
    assert_eq!(
        forms,
        [
            (Some(Form::Plain), Form::Plain),
            (Some(Form::Plain), Form::Result),
            (Some(Form::Result), Form::Plain),
            (Some(Form::CallResult), Form::Result),
        ]
    );
    let errors: Vec<_> = returns.iter().map(|returns| returns.error.is_some()).collect();
    assert_eq!(errors, [false, true, true, true]);
    assert!(returns[1].attachment);
    let given = returns::sendable(&service.methods[2].output);
    let wanted = quote!(Result<impl Stream<Item = u64> + ::core::marker::Send, FeedError>);
    assert_eq!(given.to_token_stream().to_string(), wanted.to_string());
}

#[test]
fn stream_of_what_cannot_cross_is_refused() {
    assert_mistake(
        quote!(
            async fn a(&self) -> impl Stream<Item = &str>;
        ),
        "cannot cross the wire",
    );
    assert_mistake(
        quote!(
            async fn a(&self) -> impl Display;
        ),
        "impl Stream<Item = ..>",
    );
    assert_mistake(
        quote!(
            async fn a(&self) -> impl Stream<Item = impl Display>;
        ),
        "name a concrete type",
    );
    assert_mistake(
        quote!(
            async fn a(&self) -> Result<impl Stream<Item = Result<u8, E>>, F>;
        ),
        "one error type",
    );
    assert_mistake(
        quote!(
            fn a(&self) -> impl Stream<Item = u8>;
        ),
        "must be an `async fn`",
    );
}

#[test]
fn good_trait_is_understood() {
    let service = service(
        quote!(name = "hc.Bank", crate = "mq::rpc"),
        quote! {
            /// Money.
            pub trait Bank {
                /// Moves it.
                #[rpc(idempotent, blocking)]
                async fn transfer(&self, to: String, proof: Attachment, amount: u64) -> Result<u64, BankError>;
                async fn lifted(&self) -> std::result::Result<(u8, rpc_core::Attachment), rpc_core::CallError<BankError>>;
                #[rpc(in_flight_max = 8)]
                async fn never(&self) -> Result<(), CallError>;
                #[rpc(long_poll)]
                async fn nothing(&self);
            }
        },
    )
    .unwrap();
    assert_eq!(service.name.value(), "hc.Bank");
    let [transfer, lifted, never, nothing] = &service.methods[..] else {
        panic!("four methods")
    };
    assert!(transfer.flags.idempotent && transfer.flags.blocking);
    assert_eq!(
        (transfer.flags.in_flight_max, never.flags.in_flight_max),
        (None, Some(8))
    );
    assert!(nothing.flags.long_poll && !never.flags.long_poll);
    assert_eq!(transfer.attributes.len(), 1, "the doc comment stays, #[rpc] goes");
    let attachments: Vec<_> = transfer
        .parameters
        .iter()
        .map(|parameter| parameter.attachment)
        .collect();
    assert_eq!(attachments, [false, true, false]);
    assert_eq!(
        (transfer.returns.form, transfer.returns.attachment),
        (Form::Result, false)
    );
    assert_eq!(
        (lifted.returns.form, lifted.returns.attachment),
        (Form::CallResult, true)
    );
    assert_eq!(lifted.returns.value.to_token_stream().to_string(), "u8");
    assert_eq!(
        (never.returns.form, never.returns.error.is_none()),
        (Form::CallResult, true)
    );
    assert_eq!(nothing.returns.form, Form::Plain);
    assert_eq!(nothing.returns.ok.to_token_stream().to_string(), "()");
    assert!(
        crate::expand::expand(&service)
            .to_string()
            .matches("mq :: rpc")
            .count()
            > 5
    );
}

#[test]
fn receivers_must_be_shared() {
    assert_mistake(
        quote!(
            async fn f(self);
        ),
        "take `&self`",
    );
    assert_mistake(
        quote!(
            async fn f(self: Arc<Self>);
        ),
        "take `&self`",
    );
    assert_mistake(
        quote!(
            async fn f(&mut self);
        ),
        "behind a lock",
    );
    assert_mistake(
        quote!(
            async fn f(name: String);
        ),
        "must take `&self` first",
    );
    assert_mistake(
        quote!(
            async fn f();
        ),
        "must take `&self` first",
    );
}

#[test]
fn methods_must_be_async_and_concrete() {
    assert_mistake(
        quote!(
            fn f(&self) -> u8;
        ),
        "`f` must be an `async fn`",
    );
    assert_mistake(
        quote!(
            async fn f<T: Send>(&self, value: T);
        ),
        "`f` cannot be generic",
    );
    assert_mistake(
        quote!(
            async fn f(&self)
            where
                Self: Sized;
        ),
        "`f` cannot be generic",
    );
    assert_mistake(
        quote!(
            async fn f(&self, value: impl Send);
        ),
        "name a concrete type",
    );
    assert_mistake(
        quote!(
            async unsafe fn f(&self);
        ),
        "cannot be unsafe",
    );
    assert_mistake(
        quote!(
            const N: u8;
        ),
        "contains only `async fn`s",
    );
    assert_mistake(
        quote!(
            async fn version(&self) -> String;
        ),
        "`version` is taken",
    );
    assert_mistake(
        quote!(
            #[cfg(unix)]
            async fn f(&self);
        ),
        "both sides must agree",
    );
}

#[test]
fn arguments_are_owned_and_named() {
    assert_mistake(
        quote!(
            async fn f(&self, name: &str);
        ),
        "`String` for `&str`",
    );
    assert_mistake(
        quote!(
            async fn f(&self, (a, b): (u8, u8));
        ),
        "a plain name",
    );
    assert_mistake(
        quote!(
            async fn f(&self, a: Attachment, b: rpc_core::Attachment);
        ),
        "at most one `Attachment`",
    );
    assert_mistake(
        quote!(
            async fn f(&self, a: Option<Attachment>);
        ),
        "a parameter of its own",
    );
    let parameters = (0..17).map(|n| quote::format_ident!("p{n}"));
    assert_mistake(
        quote!(async fn f(&self #(, #parameters: u8)*);),
        "put them into a struct",
    );
}

#[test]
fn return_forms_are_spelled_out() {
    assert_mistake(
        quote!(
            async fn f(&self) -> io::Result<u8>;
        ),
        "not through an alias",
    );
    assert!(
        trait_with(quote!(
            async fn f(&self) -> QueryResult<u8>;
        ))
        .is_ok()
    );
    assert_mistake(
        quote!(
            async fn f(&self) -> CallError<E>;
        ),
        "cannot be read",
    );
    assert_mistake(
        quote!(
            async fn f(&self) -> Attachment;
        ),
        "`((), Attachment)`",
    );
    assert_mistake(
        quote!(
            async fn f(&self) -> Result<(Attachment, u8), E>;
        ),
        "second half of a pair",
    );
    assert_mistake(
        quote!(
            async fn f(&self) -> (Attachment, Attachment);
        ),
        "second half of a pair",
    );
    assert_mistake(
        quote!(
            async fn f(&self) -> &str;
        ),
        "owned type",
    );
    assert_mistake(
        quote!(
            async fn f(&self) -> impl Serialize;
        ),
        "concrete type",
    );
}

#[test]
fn flags_are_known_and_given_once() {
    assert_mistake(
        quote!(
            #[rpc(idempotent, idempotent)]
            async fn f(&self);
        ),
        "given twice",
    );
    assert_mistake(
        quote!(
            #[rpc(blocking)]
            #[rpc(blocking)]
            async fn f(&self);
        ),
        "given twice",
    );
    for nonsense in [quote!(0), quote!(5000000000), quote!("8")] {
        assert_mistake(
            quote!(
                #[rpc(in_flight_max = #nonsense)]
                async fn f(&self);
            ),
            if nonsense.to_string().starts_with('"') {
                "expected integer"
            } else {
                "may run at once"
            },
        );
    }
    assert_mistake(
        quote!(
            #[rpc(idempotnet)]
            async fn f(&self);
        ),
        "#[rpc] knows `idempotent`",
    );
    assert_mistake(
        quote!(
            #[rpc(parameter_types("a.B"))]
            async fn f(&self);
        ),
        "names 1 classes",
    );
}

#[test]
fn service_needs_a_name() {
    let item = || {
        quote!(
            pub trait Greeter {}
        )
    };
    let message = |attribute| service(attribute, item()).err().unwrap().to_string();
    assert!(message(quote!()).contains("hc.Greeter"), "{}", message(quote!()));
    assert!(message(quote!(name = "a b")).contains("not a service name"));
    assert!(message(quote!(name = "a.")).contains("not a service name"));
    assert!(message(quote!(name = "a", name = "b")).contains("given twice"));
    assert!(message(quote!(nam = "a")).contains("unknown argument"));
    let not_a_trait = service(
        quote!(name = "a"),
        quote!(
            struct S;
        ),
    )
    .err()
    .unwrap();
    assert!(
        not_a_trait.to_string().contains("applies to a trait"),
        "{not_a_trait}"
    );
    let generic = service(
        quote!(name = "a"),
        quote!(
            trait G<T> {}
        ),
    )
    .err()
    .unwrap();
    assert!(generic.to_string().contains("cannot be generic"), "{generic}");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let error = trait_with(quote! {
        fn first(&self);
        async fn second(self);
        async fn third(&self, name: &str);
    });
    assert_eq!(error.err().unwrap().into_iter().count(), 3);
}
