//! Generates code from the model: the trait, its client, its server.

use proc_macro2::{Literal, TokenStream};
use quote::{format_ident, quote};
use syn::ext::IdentExt as _;
use syn::{Ident, Type};

use crate::java;
use crate::parse::{Method, Service};
use crate::returns::{self, Form};

/// All generated code of one service.
pub(crate) fn expand(service: &Service) -> TokenStream {
    let definition = definition(service);
    let client = client(service);
    let server = server(service);
    quote! { #definition #client #server }
}

/// The trait: `async fn` becomes `fn -> impl Future + Send`, so that handlers can be spawned.
fn definition(service: &Service) -> TokenStream {
    let item = &service.item;
    let (attributes, visibility, ident) = (&item.attrs, &item.vis, &item.ident);
    let supertraits = item.supertraits.iter();
    let methods = service.methods.iter().map(|method| {
        let (attributes, ident) = (&method.attributes, &method.ident);
        let parameters = parameters(method);
        let output = returns::sendable(&method.output);
        let body = match &method.body {
            None => quote!(;),
            Some(block) => quote!({ async move #block }),
        };
        quote! {
            #(#attributes)*
            fn #ident(&self #(, #parameters)*)
                -> impl ::core::future::Future<Output = #output> + ::core::marker::Send #body
        }
    });
    quote! {
        #(#attributes)*
        #visibility trait #ident: #(#supertraits +)* ::core::marker::Send + ::core::marker::Sync + 'static {
            #(#methods)*
        }
    }
}

fn client(service: &Service) -> TokenStream {
    let (krate, name, visibility, item) = (
        &service.krate,
        &service.name,
        &service.item.vis,
        &service.item.ident,
    );
    let (client, server) = (client_ident(service), server_ident(service));
    let doc =
        format!("Calls [`{item}`]: each method returns a `Call`, which is awaited or sent in another form.");
    let rows = service.methods.iter().map(|method| row(krate, method));
    let methods = service
        .methods
        .iter()
        .enumerate()
        .map(|(index, method)| call(service, index, method));
    quote! {
        #[doc = #doc]
        #[derive(::core::fmt::Debug, ::core::clone::Clone)]
        #visibility struct #client {
            stub: #krate::__private::Stub,
        }

        impl #client {
            /// The service's name on the wire.
            #visibility const NAME: &'static str = #name;
            /// The service's methods, in the order of the trait.
            #visibility const METHODS: &'static [#krate::message::Method] = &[#(#rows),*];

            /// A client that calls through `invoker`, version `1.0`, group `default`.
            #[must_use]
            #visibility fn refer(invoker: &#krate::Invoker) -> Self {
                Self { stub: #krate::__private::Stub::refer(invoker, Self::NAME) }
            }

            /// A client that calls `service` in this process, with the same encoding, deadlines and errors as over a
            /// network.
            #[must_use]
            #visibility fn local<S: #item>(service: S) -> Self {
                Self { stub: #krate::__private::Stub::local(#server::new(service).into()) }
            }

            /// The same client for this version of the service.
            #[must_use]
            #visibility fn version(self, version: impl ::core::convert::Into<::std::string::String>) -> Self {
                Self { stub: self.stub.version(version.into()) }
            }

            /// The same client for this group of the service.
            #[must_use]
            #visibility fn group(self, group: impl ::core::convert::Into<::std::string::String>) -> Self {
                Self { stub: self.stub.group(group.into()) }
            }

            /// Uses this serializer instead of the invoker's, as in `SerializerRef::named("json")?`.
            #[must_use]
            #visibility fn serializer(self, serializer: #krate::serialize::SerializerRef) -> Self {
                Self { stub: self.stub.serializer(serializer) }
            }

            #(#methods)*
        }
    }
}

/// The entry of a method in `METHODS`.
fn row(krate: &syn::Path, method: &Method) -> TokenStream {
    let name = method.ident.unraw().to_string();
    let (idempotent, blocking) = (method.flags.idempotent, method.flags.blocking);
    let streaming = method.returns.stream.is_some();
    // The duration of a stream says nothing about its method either.
    let long_poll = method.flags.long_poll || streaming;
    let in_flight_max = match &method.flags.in_flight_max {
        Some(max) => quote!(::core::option::Option::Some(#max)),
        None => quote!(::core::option::Option::None),
    };
    let types: Vec<String> = match &method.flags.parameter_types {
        Some(types) => types.iter().map(syn::LitStr::value).collect(),
        None => serialized(method)
            .map(|(_, ty)| java::parameter_type(ty).to_owned())
            .collect(),
    };
    let result = match &method.flags.result_type {
        Some(class) => class.value(),
        None => java::class(&method.returns.value).to_owned(),
    };
    let borrowed = quote!(::std::borrow::Cow::Borrowed);
    quote! {
        #krate::message::Method {
            name: #borrowed(#name),
            idempotent: #idempotent,
            blocking: #blocking,
            in_flight_max: #in_flight_max,
            long_poll: #long_poll,
            streaming: #streaming,
            parameter_types: #borrowed(const { &[#(#borrowed(#types)),*] }),
            result_type: #borrowed(#result),
        }
    }
}

/// The client's method.
fn call(service: &Service, index: usize, method: &Method) -> TokenStream {
    let (krate, visibility, ident) = (&service.krate, &service.item.vis, &method.ident);
    let docs = method
        .attributes
        .iter()
        .filter(|a| a.path().is_ident("doc") || a.path().is_ident("deprecated"));
    let parameters = parameters(method);
    let (ok, error) = (&method.returns.ok, error_type(krate, method));
    let (tuple, types) = tuple(method);
    let attachment = match method.parameters.iter().find(|parameter| parameter.attachment) {
        Some(parameter) => {
            let ident = &parameter.ident;
            quote!(#ident)
        }
        None => quote!(#krate::Attachment::new()),
    };
    let (decode, form, call) = match (method.returns.stream.is_some(), method.returns.attachment) {
        (false, false) => ("decode_value", "call", "Call"),
        (false, true) => ("decode_pair", "call", "Call"),
        (true, false) => ("decode_item", "stream", "StreamCall"),
        (true, true) => ("decode_item_pair", "stream", "StreamCall"),
    };
    let [decode, form, call] = [decode, form, call].map(|name| format_ident!("{name}"));
    let index = Literal::usize_unsuffixed(index);
    quote! {
        #(#docs)*
        #visibility fn #ident(&self #(, #parameters)*) -> #krate::#call<#ok, #error> {
            let __rpc_params: #types = #tuple;
            self.stub.#form(&Self::METHODS[#index], &__rpc_params, #attachment, #krate::__private::#decode)
        }
    }
}

fn server(service: &Service) -> TokenStream {
    let (krate, visibility, item) = (&service.krate, &service.item.vis, &service.item.ident);
    let (client, server) = (client_ident(service), server_ident(service));
    let doc = format!("Serves an implementation of [`{item}`]: what `Provider::builder().serve(..)` takes.");
    let arms = service
        .methods
        .iter()
        .enumerate()
        .map(|(index, method)| arm(service, index, method));
    quote! {
        #[doc = #doc]
        #[derive(::core::fmt::Debug)]
        #visibility struct #server<S> {
            service: ::std::sync::Arc<S>,
            route: #krate::message::Route,
        }

        impl<S: #item> #server<S> {
            /// Serves `service` as version `1.0` in group `default`.
            #[must_use]
            #visibility fn new(service: S) -> Self {
                Self::shared(::std::sync::Arc::new(service))
            }

            /// Like `new`, for an implementation that is also used elsewhere.
            #[must_use]
            #visibility fn shared(service: ::std::sync::Arc<S>) -> Self {
                Self { service, route: #krate::message::Route::new(#client::NAME) }
            }

            /// Serves it as this version. Default `1.0`.
            #[must_use]
            #visibility fn version(mut self, version: impl ::core::convert::Into<::std::string::String>) -> Self {
                self.route.version = version.into();
                self
            }

            /// Serves it in this group. Default `default`.
            #[must_use]
            #visibility fn group(mut self, group: impl ::core::convert::Into<::std::string::String>) -> Self {
                self.route.group = group.into();
                self
            }
        }

        impl<S: #item> #krate::message::Service for #server<S> {
            fn methods(&self) -> &'static [#krate::message::Method] {
                #client::METHODS
            }

            fn call(
                &self,
                method: usize,
                request: #krate::message::Request,
            ) -> #krate::BoxFuture<'static, ::core::result::Result<#krate::message::Response, #krate::RpcError>> {
                match method {
                    #(#arms)*
                    _ => #krate::__private::no_such_method(&request),
                }
            }
        }

        impl<S: #item> ::core::convert::From<#server<S>> for #krate::message::Served {
            fn from(server: #server<S>) -> Self {
                Self {
                    route: ::std::sync::Arc::new(server.route.clone()),
                    service: ::std::sync::Arc::new(server),
                }
            }
        }
    }
}

/// One method in the server's `call`.
fn arm(service: &Service, index: usize, method: &Method) -> TokenStream {
    let (krate, item, ident) = (&service.krate, &service.item.ident, &method.ident);
    let (tuple, types) = tuple(method);
    let arguments = method
        .parameters
        .iter()
        .map(|parameter| match parameter.attachment {
            true => quote!(__rpc_attachment),
            false => {
                let ident = &parameter.ident;
                quote!(#ident)
            }
        });
    let error = error_type(krate, method);
    let lifted = lifted(krate, method.returns.form, &error);
    let paired = match method.returns.attachment {
        true => lifted,
        false => quote!(#lifted.map(|__rpc_value| (__rpc_value, #krate::Attachment::new()))),
    };
    let outcome = quote!(<S as #item>::#ident(&__rpc_service #(, #arguments)*).await);
    let (handle, outlet, body) = match method.returns.stream {
        None => (
            format_ident!("handle"),
            None,
            quote! {
                let __rpc_outcome = #outcome;
                #paired
            },
        ),
        Some(form) => {
            let begun = self::lifted(krate, form, &error);
            (
                format_ident!("handle_stream"),
                Some(quote!(, __rpc_outlet: #krate::__private::Outlet)),
                quote! {
                    let __rpc_outcome = #outcome;
                    match #begun {
                        ::core::result::Result::Ok(__rpc_stream) => {
                            __rpc_outlet.pour(__rpc_stream, |__rpc_outcome| #paired).await
                        }
                        ::core::result::Result::Err(__rpc_error) => ::core::result::Result::Err(__rpc_error),
                    }
                },
            )
        }
    };
    let index = Literal::usize_unsuffixed(index);
    quote! {
        #index => {
            let __rpc_service = ::std::sync::Arc::clone(&self.service);
            #krate::__private::#handle(
                request,
                |__rpc_error: &#error| {
                    #[allow(unused_imports, reason = "which one is used depends on what the error type can do")]
                    use #krate::__private::{ByDebug as _, ByDisplay as _, ByName as _};
                    (&&&#krate::__private::Words(__rpc_error)).words()
                },
                move |#tuple: #types, __rpc_attachment: #krate::Attachment #outlet| async move {
                    #body
                },
            )
        }
    }
}

/// Converts `__rpc_outcome`, of this form, to a `Result<_, CallError<E>>`.
fn lifted(krate: &syn::Path, form: Form, error: &TokenStream) -> TokenStream {
    match form {
        Form::Plain => quote!(::core::result::Result::<_, #krate::CallError<#error>>::Ok(__rpc_outcome)),
        Form::Result => quote!(__rpc_outcome.map_err(#krate::CallError::<#error>::App)),
        Form::CallResult => quote!(__rpc_outcome),
    }
}

/// Parameters as `name: Type`.
fn parameters(method: &Method) -> Vec<TokenStream> {
    let parameter = |parameter: &crate::parse::Parameter| {
        let (ident, ty) = (&parameter.ident, &parameter.ty);
        quote!(#ident: #ty)
    };
    method.parameters.iter().map(parameter).collect()
}

/// The parameters that are serialized.
fn serialized(method: &Method) -> impl Iterator<Item = (&Ident, &Type)> {
    let serialized = method.parameters.iter().filter(|parameter| !parameter.attachment);
    serialized.map(|parameter| (&parameter.ident, &parameter.ty))
}

/// The serialized parameters as one value and its type. Without parameters it is an empty array: `()` would
/// be nil.
fn tuple(method: &Method) -> (TokenStream, TokenStream) {
    let (idents, types): (Vec<_>, Vec<_>) = serialized(method).unzip();
    match idents.is_empty() {
        true => (quote!([]), quote!([(); 0])),
        false => (quote!((#(#idents,)*)), quote!((#(#types,)*))),
    }
}

fn error_type(krate: &syn::Path, method: &Method) -> TokenStream {
    match &method.returns.error {
        Some(error) => quote!(#error),
        None => quote!(#krate::Never),
    }
}

fn client_ident(service: &Service) -> Ident {
    format_ident!("{}Client", service.item.ident)
}

fn server_ident(service: &Service) -> Ident {
    format_ident!("{}Server", service.item.ident)
}
