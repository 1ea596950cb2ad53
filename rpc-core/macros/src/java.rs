//! The Java class names that hc-rpc's `json` envelope needs, derived from the spelling of a Rust type.

use syn::Type;

use crate::returns::{last_segment, type_arguments};

/// The class name of a parameter: primitive where Java has one.
pub(crate) fn parameter_type(ty: &Type) -> &'static str {
    match name_of(ty).as_deref() {
        Some("bool") => "boolean",
        Some("i8") => "byte",
        Some("u8" | "i16") => "short",
        Some("u16" | "i32") => "int",
        Some("u32" | "i64" | "u64" | "usize" | "isize") => "long",
        Some("f32") => "float",
        Some("f64") => "double",
        Some("char") => "char",
        _ => class(ty),
    }
}

/// The class name of a result or of an optional parameter: always a class that a JVM can load.
pub(crate) fn class(ty: &Type) -> &'static str {
    match name_of(ty).as_deref() {
        Some("String") => "java.lang.String",
        Some("bool") => "java.lang.Boolean",
        Some("i8") => "java.lang.Byte",
        Some("u8" | "i16") => "java.lang.Short",
        Some("u16" | "i32") => "java.lang.Integer",
        Some("u32" | "i64" | "u64" | "usize" | "isize") => "java.lang.Long",
        Some("f32") => "java.lang.Float",
        Some("f64") => "java.lang.Double",
        Some("char") => "java.lang.Character",
        Some("Vec" | "VecDeque") => "java.util.List",
        Some("HashSet" | "BTreeSet") => "java.util.Set",
        Some("HashMap" | "BTreeMap") => "java.util.Map",
        Some("Option" | "Box" | "Arc") => type_arguments(ty)
            .first()
            .map_or("java.lang.Object", |inner| class(inner)),
        _ => "java.lang.Object",
    }
}

fn name_of(ty: &Type) -> Option<String> {
    last_segment(ty).map(|segment| segment.ident.to_string())
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::{class, parameter_type};

    #[test]
    fn types_get_the_class_java_would_use() {
        assert_eq!(parameter_type(&parse_quote!(String)), "java.lang.String");
        assert_eq!(parameter_type(&parse_quote!(i32)), "int");
        assert_eq!(parameter_type(&parse_quote!(Option<i32>)), "java.lang.Integer");
        assert_eq!(
            parameter_type(&parse_quote!(std::vec::Vec<String>)),
            "java.util.List"
        );
        assert_eq!(class(&parse_quote!(u64)), "java.lang.Long");
        assert_eq!(class(&parse_quote!(())), "java.lang.Object");
        assert_eq!(class(&parse_quote!(Order)), "java.lang.Object");
    }
}
