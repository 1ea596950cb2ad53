//! The `#[consumer]` attribute; `mq-client` re-exports and documents it.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::{FnArg, ItemFn, LitInt, LitStr, ReturnType};

/// Registers an async function as a handler; see `mq_client::consumer`.
#[proc_macro_attribute]
pub fn consumer(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(arguments.into(), item.into())
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

#[derive(Default)]
struct Arguments {
    topic: Option<LitStr>,
    group: Option<LitStr>,
    threads: Option<LitInt>,
    start: Option<LitStr>,
}

fn parse(arguments: Tokens) -> syn::Result<Arguments> {
    let mut parsed = Arguments::default();
    let parser = syn::meta::parser(|meta| {
        let name = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
        match name.as_str() {
            "topic" => parsed.topic = Some(meta.value()?.parse()?),
            "group" => parsed.group = Some(meta.value()?.parse()?),
            "threads" => parsed.threads = Some(meta.value()?.parse()?),
            "start" => parsed.start = Some(meta.value()?.parse()?),
            _ => return Err(meta.error("expected `topic`, `group`, `threads` or `start`")),
        }
        Ok(())
    });
    parser.parse2(arguments)?;
    Ok(parsed)
}

fn expand(arguments: Tokens, item: Tokens) -> syn::Result<Tokens> {
    let span = item.span();
    let parsed = parse(arguments)?;
    let function: ItemFn = syn::parse2(item)?;
    let missing = |what: &str| syn::Error::new(span, format!("`#[consumer]` needs `{what} = \"..\"`"));
    let topic = parsed.topic.ok_or_else(|| missing("topic"))?;
    let group = parsed.group.ok_or_else(|| missing("group"))?;
    let threads = match parsed.threads {
        Some(threads) => quote!(::std::option::Option::Some(#threads)),
        None => quote!(::std::option::Option::None),
    };
    let latest = match &parsed.start {
        None => false,
        Some(start) if start.value() == "earliest" => false,
        Some(start) if start.value() == "latest" => true,
        Some(start) => return Err(syn::Error::new(start.span(), "expected `earliest` or `latest`")),
    };
    check(&function)?;
    let name = &function.sig.ident;
    Ok(quote! {
        #function

        const _: () = {
            struct Registered;

            #[::mq_client::async_trait]
            impl ::mq_client::Handler for Registered {
                async fn handle(
                    &self,
                    message: &::mq_client::Delivery,
                ) -> ::std::result::Result<(), ::mq_client::HandlerError> {
                    ::mq_client::HandlerError::of(#name(message).await)
                }
            }

            ::mq_client::inventory::submit! {
                ::mq_client::consumer::ConsumerRecord {
                    name: concat!(module_path!(), "::", stringify!(#name)),
                    topic: #topic,
                    group: #group,
                    threads: #threads,
                    latest: #latest,
                    handler: || ::std::sync::Arc::new(Registered),
                }
            }
        };
    })
}

fn check(function: &ItemFn) -> syn::Result<()> {
    let signature = &function.sig;
    if signature.asyncness.is_none() {
        return Err(syn::Error::new(
            signature.span(),
            "`#[consumer]` needs an `async fn`",
        ));
    }
    if !signature.generics.params.is_empty() {
        return Err(syn::Error::new(
            signature.generics.span(),
            "a consumer function must not be generic",
        ));
    }
    let one = signature.inputs.len() == 1 && matches!(signature.inputs.first(), Some(FnArg::Typed(_)));
    if !one {
        return Err(syn::Error::new(
            signature.inputs.span(),
            "a consumer function takes one parameter, the message: `&Delivery`",
        ));
    }
    if matches!(signature.output, ReturnType::Default) {
        return Err(syn::Error::new(
            signature.span(),
            "a consumer function returns `Result<(), E>`: `Ok` acks the message",
        ));
    }
    Ok(())
}
