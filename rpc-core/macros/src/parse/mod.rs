//! From the tokens of `#[service(..)] trait ..` to a model, or to errors that say what to write instead.

use proc_macro2::TokenStream;
use syn::ext::IdentExt as _;
use syn::parse::Parser as _;
use syn::spanned::Spanned as _;
use syn::{
    Attribute, Block, FnArg, Ident, ItemTrait, LitInt, LitStr, Path, Result, ReturnType, TraitItem,
    TraitItemFn, Type,
};

use crate::returns::{self, Returns};

/// Names that the generated client needs for its own methods.
const TAKEN: [&str; 7] = ["refer", "local", "version", "group", "serializer", "clone", "fmt"];
/// serde supports no longer tuples.
const PARAMETERS_MAX: usize = 16;

/// A parsed service trait.
pub(crate) struct Service {
    /// The name on the wire.
    pub(crate) name: LitStr,
    /// The path of `rpc_core`.
    pub(crate) krate: Path,
    pub(crate) item: ItemTrait,
    pub(crate) methods: Vec<Method>,
}

/// One method.
pub(crate) struct Method {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) ident: Ident,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) output: ReturnType,
    pub(crate) returns: Returns,
    pub(crate) flags: Flags,
    /// The default body, if the trait has one.
    pub(crate) body: Option<Block>,
}

/// One parameter other than `&self`.
pub(crate) struct Parameter {
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
    pub(crate) attachment: bool,
}

/// The flags in `#[rpc(..)]`.
#[derive(Default)]
pub(crate) struct Flags {
    pub(crate) idempotent: bool,
    pub(crate) blocking: bool,
    pub(crate) long_poll: bool,
    pub(crate) in_flight_max: Option<u32>,
    pub(crate) parameter_types: Option<Vec<LitStr>>,
    pub(crate) result_type: Option<LitStr>,
}

/// Parses the attribute's arguments and the trait; all mistakes found are reported together.
pub(crate) fn service(attribute: TokenStream, item: TokenStream) -> Result<Service> {
    let item: ItemTrait = syn::parse2(item)
        .map_err(|error| syn::Error::new(error.span(), format!("#[service] applies to a trait: {error}")))?;
    let mut errors = Errors(None);
    let arguments = errors.keep(arguments(attribute, &item.ident));
    errors.keep(shape(&item));
    let mut methods = Vec::new();
    for part in &item.items {
        match part {
            TraitItem::Fn(function) => methods.extend(errors.keep(method(function))),
            other => {
                errors.keep::<()>(Err(syn::Error::new_spanned(
                    other,
                    "a service trait contains only `async fn`s",
                )));
            }
        }
    }
    let (name, krate) = errors.finish(arguments)?;
    Ok(Service {
        name,
        krate,
        item,
        methods,
    })
}

/// Collects errors, so that one compilation shows them all.
struct Errors(Option<syn::Error>);

impl Errors {
    fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                match &mut self.0 {
                    None => self.0 = Some(error),
                    Some(all) => all.combine(error),
                }
                None
            }
        }
    }

    fn finish<T>(self, value: Option<T>) -> Result<T> {
        match (self.0, value) {
            (None, Some(value)) => Ok(value),
            (Some(error), _) => Err(error),
            (None, None) => Err(syn::Error::new(
                proc_macro2::Span::call_site(),
                "no value and no error",
            )),
        }
    }
}

fn arguments(attribute: TokenStream, ident: &Ident) -> Result<(LitStr, Path)> {
    let (mut name, mut krate) = (None::<LitStr>, None::<Path>);
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("name") {
            if name.replace(meta.value()?.parse()?).is_some() {
                return Err(meta.error("`name` is given twice"));
            }
        } else if meta.path.is_ident("crate") {
            if krate.replace(meta.value()?.parse::<LitStr>()?.parse()?).is_some() {
                return Err(meta.error("`crate` is given twice"));
            }
        } else {
            return Err(meta.error("unknown argument; #[service] knows `name = \"..\"` and `crate = \"..\"`"));
        }
        Ok(())
    });
    parser.parse2(attribute)?;
    let name = name.ok_or_else(|| {
        let message =
            format!("the service needs a name on the wire, as in #[service(name = \"hc.{ident}\")]");
        syn::Error::new(ident.span(), message)
    })?;
    let text = name.value();
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '$');
    if text.is_empty() || text.len() > 255 || !text.chars().all(valid) || text.ends_with('.') {
        let message = format!(
            "`{text}` is not a service name: 1 to 255 letters, digits, `.`, `_`, `-` or `$`, as in `hc.Greeter`"
        );
        return Err(syn::Error::new(name.span(), message));
    }
    Ok((name, krate.unwrap_or_else(|| syn::parse_quote!(::rpc_core))))
}

fn shape(item: &ItemTrait) -> Result<()> {
    if !item.generics.params.is_empty() || item.generics.where_clause.is_some() {
        return Err(syn::Error::new(
            item.generics.span(),
            "a service trait cannot be generic: the other side could not know the types",
        ));
    }
    if let Some(token) = &item.unsafety {
        return Err(syn::Error::new(token.span, "a service trait cannot be unsafe"));
    }
    if let Some(token) = &item.auto_token {
        return Err(syn::Error::new(
            token.span,
            "a service trait cannot be an auto trait",
        ));
    }
    Ok(())
}

fn method(function: &TraitItemFn) -> Result<Method> {
    let signature = &function.sig;
    let name = signature.ident.unraw().to_string();
    if TAKEN.contains(&name.as_str()) {
        let message =
            format!("`{name}` is taken: the generated client has a method of that name; choose another one");
        return Err(syn::Error::new(signature.ident.span(), message));
    }
    if signature.asyncness.is_none() {
        let message = format!("`{name}` must be an `async fn`: every call may wait for the network");
        return Err(syn::Error::new(signature.fn_token.span, message));
    }
    if !signature.generics.params.is_empty() || signature.generics.where_clause.is_some() {
        let message = format!("`{name}` cannot be generic: the other side could not know the types");
        return Err(syn::Error::new(signature.generics.span(), message));
    }
    if let Some(token) = &signature.unsafety {
        return Err(syn::Error::new(token.span, "a service method cannot be unsafe"));
    }
    receiver(signature)?;
    let parameters = parameters(signature)?;
    let returns = returns::parse(&signature.output)?;
    let (flags, attributes) = flags(function, &parameters)?;
    Ok(Method {
        attributes,
        ident: signature.ident.clone(),
        parameters,
        output: signature.output.clone(),
        returns,
        flags,
        body: function.default.clone(),
    })
}

fn receiver(signature: &syn::Signature) -> Result<()> {
    let Some(FnArg::Receiver(receiver)) = signature.inputs.first() else {
        return Err(syn::Error::new(
            signature.ident.span(),
            format!("`{}` must take `&self` first", signature.ident),
        ));
    };
    if receiver.mutability.is_some() && receiver.reference.is_some() {
        return Err(syn::Error::new_spanned(
            receiver,
            "`&mut self` is not possible, many calls run at once: take `&self` and put what changes behind a lock",
        ));
    }
    if receiver.reference.is_none() || receiver.colon_token.is_some() {
        return Err(syn::Error::new_spanned(
            receiver,
            "a service is shared by all its calls and cannot be consumed by one: take `&self`",
        ));
    }
    Ok(())
}

fn parameters(signature: &syn::Signature) -> Result<Vec<Parameter>> {
    let mut parameters = Vec::new();
    for input in signature.inputs.iter().skip(1) {
        let FnArg::Typed(typed) = input else { continue };
        let ident = match &*typed.pat {
            syn::Pat::Ident(pattern) if pattern.by_ref.is_none() && pattern.subpat.is_none() => {
                pattern.ident.clone()
            }
            other => {
                return Err(syn::Error::new_spanned(
                    other,
                    "a parameter needs a plain name, as in `order: Order`",
                ));
            }
        };
        returns::crossable(&typed.ty)?;
        let attachment = returns::is_attachment(&typed.ty);
        if !attachment && let Some(hidden) = returns::find_attachment(&typed.ty) {
            return Err(syn::Error::new_spanned(
                hidden,
                "an `Attachment` is a parameter of its own; an empty one says that there is none",
            ));
        }
        if attachment && parameters.iter().any(|earlier: &Parameter| earlier.attachment) {
            return Err(syn::Error::new_spanned(
                &typed.ty,
                "a method takes at most one `Attachment`; put several pieces into one, which is a list of them",
            ));
        }
        parameters.push(Parameter {
            ident,
            ty: (*typed.ty).clone(),
            attachment,
        });
    }
    if parameters
        .iter()
        .filter(|parameter| !parameter.attachment)
        .count()
        > PARAMETERS_MAX
    {
        return Err(syn::Error::new(
            signature.ident.span(),
            format!("more than {PARAMETERS_MAX} parameters: put them into a struct"),
        ));
    }
    Ok(parameters)
}

/// The flags in `#[rpc(..)]`, and the other attributes.
fn flags(function: &TraitItemFn, parameters: &[Parameter]) -> Result<(Flags, Vec<Attribute>)> {
    let (mut flags, mut others) = (Flags::default(), Vec::new());
    for attribute in &function.attrs {
        if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
            return Err(syn::Error::new_spanned(
                attribute,
                "a service method cannot depend on `cfg`: both sides must agree on the methods",
            ));
        }
        if attribute.path().is_ident("rpc") {
            attribute.parse_nested_meta(|meta| flag(&mut flags, &meta))?;
        } else {
            others.push(attribute.clone());
        }
    }
    let wanted = parameters
        .iter()
        .filter(|parameter| !parameter.attachment)
        .count();
    if let Some(types) = flags
        .parameter_types
        .as_ref()
        .filter(|types| types.len() != wanted)
    {
        let message = format!(
            "`parameter_types` names {} classes, but `{}` has {wanted} parameters (an attachment does not count)",
            types.len(),
            function.sig.ident
        );
        return Err(syn::Error::new(function.sig.ident.span(), message));
    }
    Ok((flags, others))
}

fn flag(flags: &mut Flags, meta: &syn::meta::ParseNestedMeta<'_>) -> Result<()> {
    let once = |seen: bool| {
        if seen {
            Err(meta.error("this flag is given twice"))
        } else {
            Ok(())
        }
    };
    if meta.path.is_ident("idempotent") {
        once(flags.idempotent)?;
        flags.idempotent = true;
    } else if meta.path.is_ident("blocking") {
        once(flags.blocking)?;
        flags.blocking = true;
    } else if meta.path.is_ident("long_poll") {
        once(flags.long_poll)?;
        flags.long_poll = true;
    } else if meta.path.is_ident("in_flight_max") {
        once(flags.in_flight_max.is_some())?;
        let literal: LitInt = meta.value()?.parse()?;
        let max = literal.base10_parse().ok().filter(|max| *max > 0);
        flags.in_flight_max = Some(max.ok_or_else(|| {
            let message = "`in_flight_max` is the number of calls that may run at once, 1 to 4294967295";
            syn::Error::new(literal.span(), message)
        })?);
    } else if meta.path.is_ident("parameter_types") {
        once(flags.parameter_types.is_some())?;
        let content;
        syn::parenthesized!(content in meta.input);
        let types = content.parse_terminated(<LitStr as syn::parse::Parse>::parse, syn::Token![,])?;
        flags.parameter_types = Some(types.into_iter().collect());
    } else if meta.path.is_ident("result_type") {
        once(flags.result_type.is_some())?;
        flags.result_type = Some(meta.value()?.parse()?);
    } else {
        return Err(meta.error(
            "unknown flag; #[rpc] knows `idempotent`, `blocking`, `long_poll`, `in_flight_max = 8`, \
             `parameter_types(\"..\", ..)` and `result_type = \"..\"`",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
