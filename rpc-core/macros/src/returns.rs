//! A method's return type: one of three forms, or a stream of them, recognised by their spelling, because a
//! macro sees no types.

use quote::ToTokens as _;
use syn::{
    GenericArgument, PathArguments, PathSegment, Result, ReturnType, Type, TypeImplTrait, TypeParamBound,
};

/// How a method reports failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `T`: it cannot fail.
    Plain,
    /// `Result<T, E>`.
    Result,
    /// `Result<T, CallError<E>>`.
    CallResult,
}

/// The parts of a method's return type.
pub(crate) struct Returns {
    pub(crate) form: Form,
    /// `T`; for a pair with an attachment, the whole pair.
    pub(crate) ok: Type,
    /// The serialized part of `ok`: `T` of `(T, Attachment)`, else `ok`.
    pub(crate) value: Type,
    /// `E`, unless the method declares none.
    pub(crate) error: Option<Type>,
    /// Whether `ok` is `(T, Attachment)`.
    pub(crate) attachment: bool,
    /// For a method that returns a stream, how it reports that there is none; the other fields then describe
    /// an item.
    pub(crate) stream: Option<Form>,
}

/// Reads the return type of a method.
pub(crate) fn parse(output: &ReturnType) -> Result<Returns> {
    let whole = match output {
        ReturnType::Default => syn::parse_quote!(()),
        ReturnType::Type(_, ty) => (**ty).clone(),
    };
    if let Some(stream) = stream(&whole)? {
        return Ok(stream);
    }
    let (form, ok, error) = split(&whole)?;
    plain(form, ok, error)
}

/// A stream, alone or as the success type of a `Result`.
fn stream(whole: &Type) -> Result<Option<Returns>> {
    if let Type::ImplTrait(stream) = whole {
        let mut returns = items(stream)?;
        returns.stream = Some(Form::Plain);
        return Ok(Some(returns));
    }
    if last_segment(whole).is_none_or(|segment| segment.ident != "Result") {
        return Ok(None);
    }
    let (form, ok, error) = split(whole)?;
    let Type::ImplTrait(stream) = &ok else {
        return Ok(None);
    };
    let mut returns = items(stream)?;
    let text = |ty: &Type| ty.to_token_stream().to_string();
    match (&returns.error, &error) {
        (None, _) => returns.error = error,
        (Some(inner), Some(outer)) if text(inner) == text(outer) => {}
        (Some(_), None) => {}
        (Some(_), Some(outer)) => {
            return Err(syn::Error::new_spanned(
                outer,
                "the stream and its items fail with one error type: the caller sees either as the last item",
            ));
        }
    }
    returns.stream = Some(form);
    Ok(Some(returns))
}

/// The items of `impl Stream<Item = ..>`.
fn items(stream: &TypeImplTrait) -> Result<Returns> {
    let item = stream.bounds.iter().find_map(|bound| match bound {
        TypeParamBound::Trait(bound) => item_of(bound.path.segments.last()?),
        _ => None,
    });
    let Some(item) = item else {
        return Err(syn::Error::new_spanned(
            stream,
            "`impl Trait` cannot be serialized: name a concrete type, or answer with `impl Stream<Item = ..>`",
        ));
    };
    let (form, ok, error) = split(item)?;
    plain(form, ok, error)
}

fn item_of(segment: &PathSegment) -> Option<&Type> {
    if segment.ident != "Stream" {
        return None;
    }
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else {
        return None;
    };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::AssocType(assigned) if assigned.ident == "Item" => Some(&assigned.ty),
        _ => None,
    })
}

fn plain(form: Form, ok: Type, error: Option<Type>) -> Result<Returns> {
    crossable(&ok)?;
    if let Some(error) = &error {
        crossable(error)?;
    }
    let value = match &ok {
        Type::Tuple(tuple) if tuple.elems.len() == 2 && is_attachment(&tuple.elems[1]) => {
            Some(tuple.elems[0].clone())
        }
        _ => None,
    };
    let serialized = value.as_ref().unwrap_or(&ok);
    if let Some(attachment) = find_attachment(serialized) {
        return Err(syn::Error::new_spanned(
            attachment,
            "an attachment is returned as the second half of a pair: `(T, Attachment)`, or `((), Attachment)` alone",
        ));
    }
    Ok(Returns {
        form,
        attachment: value.is_some(),
        value: value.unwrap_or_else(|| ok.clone()),
        ok,
        error,
        stream: None,
    })
}

fn split(whole: &Type) -> Result<(Form, Type, Option<Type>)> {
    let Some(segment) = last_segment(whole) else {
        return Ok((Form::Plain, whole.clone(), None));
    };
    if segment.ident != "Result" {
        if segment.ident == "CallError" {
            return Err(unsupported(whole));
        }
        return Ok((Form::Plain, whole.clone(), None));
    }
    let arguments = type_arguments(whole);
    let [ok, error] = arguments.as_slice() else {
        return Err(unsupported(whole));
    };
    if last_segment(error).is_none_or(|segment| segment.ident != "CallError") {
        return Ok((Form::Result, (*ok).clone(), Some((*error).clone())));
    }
    match type_arguments(error).as_slice() {
        [] => Ok((Form::CallResult, (*ok).clone(), None)),
        [app] => Ok((Form::CallResult, (*ok).clone(), Some((*app).clone()))),
        _ => Err(unsupported(error)),
    }
}

fn unsupported(ty: &Type) -> syn::Error {
    syn::Error::new_spanned(
        ty,
        "this return form cannot be read: a service method returns `T`, `Result<T, E>` or `Result<T, CallError<E>>`, \
         spelled so and not through an alias, because the macro sees names and no types",
    )
}

/// Rejects types that the other side cannot own.
pub(crate) fn crossable(ty: &Type) -> Result<()> {
    match ty {
        Type::Reference(_) => Err(syn::Error::new_spanned(
            ty,
            "a reference cannot cross the wire: use an owned type, as in `String` for `&str` or `Vec<T>` for `&[T]`",
        )),
        Type::ImplTrait(_) => Err(syn::Error::new_spanned(
            ty,
            "`impl Trait` cannot be serialized: name a concrete type",
        )),
        _ => Ok(()),
    }
}

/// The return type as written in the trait: a stream can be sent between threads, since handlers are.
pub(crate) fn sendable(output: &ReturnType) -> Type {
    let mut whole = match output {
        ReturnType::Default => syn::parse_quote!(()),
        ReturnType::Type(_, ty) => (**ty).clone(),
    };
    add_send(&mut whole);
    whole
}

fn add_send(ty: &mut Type) {
    match ty {
        Type::ImplTrait(stream) => stream.bounds.push(syn::parse_quote!(::core::marker::Send)),
        Type::Paren(inner) => add_send(&mut inner.elem),
        Type::Path(path) => {
            let Some(PathArguments::AngleBracketed(arguments)) = path
                .path
                .segments
                .last_mut()
                .map(|segment| &mut segment.arguments)
            else {
                return;
            };
            for argument in &mut arguments.args {
                if let GenericArgument::Type(ty) = argument {
                    add_send(ty);
                }
            }
        }
        _ => {}
    }
}

/// Whether `ty` is spelled `Attachment`, with or without a path.
pub(crate) fn is_attachment(ty: &Type) -> bool {
    last_segment(ty).is_some_and(|segment| segment.ident == "Attachment" && segment.arguments.is_none())
}

/// An `Attachment` somewhere within `ty`.
pub(crate) fn find_attachment(ty: &Type) -> Option<&Type> {
    if is_attachment(ty) {
        return Some(ty);
    }
    match ty {
        Type::Tuple(tuple) => tuple.elems.iter().find_map(find_attachment),
        Type::Paren(inner) => find_attachment(&inner.elem),
        _ => type_arguments(ty).into_iter().find_map(find_attachment),
    }
}

/// The last segment of a path type: `Result<..>` of `std::result::Result<..>`.
pub(crate) fn last_segment(ty: &Type) -> Option<&PathSegment> {
    match ty {
        Type::Path(path) if path.qself.is_none() => path.path.segments.last(),
        Type::Paren(inner) => last_segment(&inner.elem),
        Type::Group(inner) => last_segment(&inner.elem),
        _ => None,
    }
}

/// The type arguments of a path type's last segment.
pub(crate) fn type_arguments(ty: &Type) -> Vec<&Type> {
    match last_segment(ty).map(|segment| &segment.arguments) {
        Some(PathArguments::AngleBracketed(arguments)) => arguments
            .args
            .iter()
            .filter_map(|argument| match argument {
                GenericArgument::Type(ty) => Some(ty),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}
